"""Running the analog and the partly quantized network side by side, from one layer to the next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laq.quantization.pool import Pool
from laq.quantization.shelf import Shelf

OUTPUTS = "the network's outputs"


class Pair(NamedTuple):
    """A value of the analog network and its counterpart of the quantized one."""

    analog: Any
    quantized: Any


class Error(NamedTuple):
    """The squares of ‖Y‖ and of ‖Y - Ỹ‖ over some images."""

    size: float = 0.0
    error: float = 0.0

    @classmethod
    def of(cls, outputs: Pair) -> "Error":
        """The error of a layer's or a network's two outputs."""
        return cls(_square(outputs.analog), _square(outputs.analog - outputs.quantized))

    def plus(self, other: "Error") -> "Error":
        """That of both sets of images."""
        return Error(self.size + other.size, self.error + other.error)

    @property
    def relative(self) -> float:
        """‖Y - Ỹ‖ / ‖Y‖."""
        return float((self.error / self.size if self.size > 0 else self.error) ** 0.5)


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def total(errors: Iterable[Error]) -> Error:
    """The error over all images."""
    return reduce(Error.plus, errors, Error())


Stop = tuple[str, Sequence[Callable[[], Pair]]]


@dataclass(frozen=True)
class Networks:
    """The analog and the quantized network, and the names of the layers to quantize."""

    analog: nn.Module
    quantized: nn.Module
    names: frozenset[str]

    def both(self) -> Pair:
        """The two networks."""
        return Pair(self.analog, self.quantized)

    def layers(self, name: str) -> Pair:
        """A layer of both."""
        return Pair(*(network.get_submodule(name) for network in self.both()))


class Execution(ABC):
    """Goes from layer to layer, with all images.

    ``errors`` holds each layer's error as soon as the next one is reached, and the network's under
    ``OUTPUTS`` in the end. ``counts`` are the images per chunk.
    """

    def __init__(self, networks: Networks, pool: Pool, shelf: Shelf) -> None:
        self.networks = networks
        self.pool = pool
        self.shelf = shelf
        self.errors: dict[str, Error] = {}
        self.counts: list[int] = []

    @abstractmethod
    def stops(self, chunks: Iterable[Tensor]) -> Iterator[Stop]:
        """Each layer's name and its inputs, chunk by chunk, in the order of execution.

        The quantized layer must have its weights before the next one is asked for.
        """

    def _keep(self, chunks: Iterable[Tensor]) -> range:
        """Put the images on the shelf; returns the chunks' numbers."""
        for chunk, images in enumerate(chunks):
            self.counts.append(len(images))
            self.shelf.put(chunk, {"images": images})
        return range(len(self.counts))
