"""Running the analog and the partly quantized networks side by side, from one layer to the next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.layers import Layer
from laq.quantization.execution.offload import INPUTS, Offload
from laq.quantization.execution.outputs import Output
from laq.quantization.operations import Operation
from laq.quantization.threads import Pool

OUTPUTS = "the network's outputs"


class Pair(NamedTuple):
    """A value of the analog network and its counterpart of a quantized one."""

    analog: Any
    quantized: Any


class Error(NamedTuple):
    """The squares of ‖Y‖ and of ‖Y - Ỹ‖ over some images."""

    size: float = 0.0
    error: float = 0.0

    def plus(self, other: "Error") -> "Error":
        """That of both sets of images."""
        return Error(self.size + other.size, self.error + other.error)

    @property
    def relative(self) -> float:
        """‖Y - Ỹ‖ / ‖Y‖."""
        return float((self.error / self.size if self.size > 0 else self.error) ** 0.5)


Errors = tuple[Error, ...]  # of each quantized network


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def errors_of(outputs: Iterable[Tensor]) -> Errors:
    """The errors of a layer's or a network's outputs, the analog one first, then each quantized one.

    Where they are made one by one, each is done with while it is in the cache, before the next is made.
    """
    values = map(in_float32, outputs)
    analog = next(values)
    size = _square(analog)
    return tuple(Error(size, _square(analog - quantized)) for quantized in values)


def in_float32(values: Tensor) -> Tensor:
    """Values of at least that precision: half of it is too coarse for sums and differences."""
    return values if values.dtype in {torch.float32, torch.float64} else values.float()


def total(errors: Iterable[Errors]) -> Errors:
    """Those over all images, which come in parts."""
    return tuple(reduce(Error.plus, parts, Error()) for parts in zip(*errors, strict=True))


@dataclass(frozen=True)
class CallInputs:
    """What one call of a layer is given in one chunk of images.

    Attributes:
        call: its number among the layer's calls.
        shape: of the inputs.
        first: how many images the chunks before hold.
        pair: reads the inputs in the analog and in a quantized network.
    """

    call: int
    operation: Operation
    shape: torch.Size
    first: int
    pair: Callable[[], Pair]


@dataclass(frozen=True)
class Stop:
    """A layer that is to be quantized now: ``given`` holds its inputs for each quantized network."""

    layer: Layer
    given: Sequence[Sequence[CallInputs]]


@dataclass(frozen=True)
class Networks:
    """The analog and the quantized networks, and which of their outputs are the logits."""

    analog: nn.Module
    quantized: tuple[nn.Module, ...]
    output: Output = None

    def all(self) -> tuple[nn.Module, ...]:
        """The analog network, then the quantized ones."""
        return (self.analog, *self.quantized)


class Execution(ABC):
    """Goes from layer to layer, with all images.

    What the networks have in hand is kept by chunk and by their numbers in ``Networks.all``: each has
    tensors of its own, so that an operation in place reaches no other.

    ``errors`` holds, for each quantized network, the layers' errors by name and the networks' under
    ``OUTPUTS``, all of them in the end where they are measured.
    """

    def __init__(self, networks: Networks, pool: Pool, offload: Offload) -> None:
        self.networks = networks
        self.pool = pool
        self.offload = offload
        self.errors: dict[str, Errors] = {}
        self.chunks = 0

    def keep(self, batches: Iterable[Batch]) -> None:
        """Keep the images, in chunks, for what follows."""
        for batch in batches:
            self.offload.put((self.chunks, INPUTS), {"batch": (batch.args, batch.kwargs)})
            self.chunks += 1

    def images(self) -> Iterator[Batch]:
        """The images that are kept, chunk by chunk."""
        return map(self._batch, range(self.chunks))

    @abstractmethod
    def stops(self, layers: Sequence[Layer], *, measure: bool = True) -> Iterator[Stop]:
        """The layers in the order in which their weights are first read, each with its inputs.

        The quantized networks must have the layer's weights before the next stop is asked for. Errors are
        there in the end where ``measure`` asks for them.
        """

    @abstractmethod
    def add_bias(self, layer: Layer) -> str:
        """The name of the parameter that is added to a layer's outputs, which has a place if not a value.

        Raises:
            QuantizationError: nothing is added, and there is no place for it.
        """

    def _batch(self, chunk: int, *, last: bool = False) -> Batch:
        """The images of a chunk; ``last`` tells that they are not needed again."""
        read = self.offload.take if last else self.offload.look
        return Batch(*read((chunk, INPUTS))["batch"])

    def _add(self, name: str, errors: Errors) -> None:
        """Count errors of a layer, or of the networks, in."""
        self.errors[name] = total([self.errors[name], errors]) if name in self.errors else errors


def given_by_network(
    networks: int, shapes: Sequence[Sequence[torch.Size]], layer: Layer, pair: Callable[[int, int, int], Pair]
) -> list[list[CallInputs]]:
    """What a layer's calls are given, for each of so many quantized networks.

    Args:
        networks: how many are quantized.
        shapes: of the inputs, by chunk and call.
        layer: whose inputs they are.
        pair: reads them, given a chunk, a call and a network's number.
    """
    firsts = [0] * len(layer.operations)
    places: list[tuple[int, int, int]] = []
    for chunk, calls in enumerate(shapes):
        for call, shape in enumerate(calls):
            places.append((chunk, call, firsts[call]))
            firsts[call] += layer.operations[call].grid(shape)[0]
    return [
        [
            CallInputs(
                call, layer.operations[call], shapes[chunk][call], first, partial(pair, chunk, call, number)
            )
            for chunk, call, first in places
        ]
        for number in range(1, networks + 1)
    ]
