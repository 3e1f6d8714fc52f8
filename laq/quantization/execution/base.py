"""Running the analog and the partly quantized networks side by side, from one layer to the next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laq.quantization.execution.offload import IMAGES, Shelf
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


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def errors_of(outputs: Iterable[Tensor]) -> tuple[Error, ...]:
    """The errors of a layer's or a network's outputs, the analog one first, then each quantized one."""
    rest = iter(outputs)
    analog = next(rest)
    size = _square(analog)
    return tuple(Error(size, _square(analog - quantized)) for quantized in rest)


def totals(errors: Iterable[tuple[Error, ...]]) -> tuple[Error, ...]:
    """Those over all images, which come in parts."""
    return tuple(reduce(Error.plus, parts, Error()) for parts in zip(*errors, strict=True))


Stop = tuple[str, Sequence[Sequence[Callable[[], Pair]]]]


@dataclass(frozen=True)
class Networks:
    """The analog and the quantized networks, and the names of the layers to quantize."""

    analog: nn.Module
    quantized: tuple[nn.Module, ...]
    names: frozenset[str]

    def all(self) -> tuple[nn.Module, ...]:
        """The analog network, then the quantized ones."""
        return (self.analog, *self.quantized)

    def layers(self, name: str) -> tuple[nn.Module, ...]:
        """A layer of all."""
        return tuple(network.get_submodule(name) for network in self.all())


class Execution(ABC):
    """Goes from layer to layer, with all images.

    What the networks have in hand is on the shelf by chunk and by their numbers in ``Networks.all``: each
    has tensors of its own, so that an operation in place reaches no other.

    ``errors`` holds, for each quantized network, the layers' errors as soon as the next one is reached,
    and the networks' under ``OUTPUTS`` in the end. ``counts`` are the images per chunk.
    """

    def __init__(self, networks: Networks, pool: Pool, shelf: Shelf) -> None:
        self.networks = networks
        self.pool = pool
        self.shelf = shelf
        self.errors: dict[str, tuple[Error, ...]] = {}
        self.counts: list[int] = []

    @abstractmethod
    def stops(self, chunks: Iterable[Tensor]) -> Iterator[Stop]:
        """Each layer's name and, for each quantized network, its inputs, chunk by chunk.

        In the order of execution. The quantized layers must have their weights before the next stop is
        asked for.
        """

    def _keep(self, chunks: Iterable[Tensor]) -> range:
        """Put the images on the shelf; returns the chunks' numbers."""
        for chunk, images in enumerate(chunks):
            self.counts.append(len(images))
            self.shelf.put((chunk, IMAGES), {"images": images})
        return range(len(self.counts))

    def _by_network(self, pair: Callable[[int, int], Pair]) -> list[list[Callable[[], Pair]]]:
        """``pair`` of every chunk, for each quantized network's number."""
        numbers = range(1, len(self.networks.all()))
        return [[partial(pair, chunk, n) for chunk in range(len(self.counts))] for n in numbers]
