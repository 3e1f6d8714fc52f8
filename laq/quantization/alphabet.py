"""Alphabets: the equally spaced levels that a layer's weights may take."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

AlphabetKind = Literal["symmetric", "twos_complement", "predecessor"]
# Few levels are better spent inside the range than at its ends. Fractions of max|w|, for GPFQ;
# benchmarks/radius.py measures what others give.
AUTO_RADIUS: Final = {2: 0.7, 3: 0.8, 4: 0.9}
PREDECESSOR_RADIUS: Final = 1.16


@dataclass(frozen=True)
class Alphabet:
    """The levels ``step * c`` for integer codes ``low <= c <= high``.

    ``step`` has the shape of the weights without their last dimension, then 1: a step per neuron
    (negative ones turn the alphabet around).
    """

    step: Tensor
    low: int
    high: int

    @property
    def levels(self) -> int:
        """How many values a weight may take."""
        return self.high - self.low + 1

    def encode(self, values: Tensor) -> Tensor:
        """The codes (int64) of the levels nearest to ``values`` (..., N, d)."""
        return (values / self.step).round().clamp(self.low, self.high).to(torch.int64)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels that ``codes`` (..., N, d) stand for."""
        return codes.to(self.step.dtype) * self.step

    def view(self, *shape: int) -> "Alphabet":
        """The same alphabet for weights of ``shape``."""
        return Alphabet(self.step.view(*shape[:-1], 1), self.low, self.high)


def make_alphabet(
    W: Tensor,
    kind: AlphabetKind,
    bits: int,
    radius: float | Literal["auto"] = "auto",
    percentile: float = 1.0,
) -> Alphabet:
    """The alphabet of a layer with weights ``W`` (N, d).

    The radius, the largest level, is ``radius`` times the ``percentile`` (1: the maximum) of |w|:

    - ``symmetric``: per neuron, 2^bits - 1 levels;
    - ``twos_complement``: per neuron, 2^bits levels, the odd one on the side of the largest weight;
    - ``predecessor``: one radius per layer, the mean of the neurons', and 2^bits + 1 levels (one
      more than ``bits`` can hold), as in the GPFQ authors' code (Zhang, Zhou, Saab 2023).
    """
    half = 2 ** (bits - 1)
    reach = _quantile(W.abs(), percentile) * _radius(kind, bits, radius)
    if kind == "predecessor":
        return Alphabet(_nonzero(reach.mean().expand_as(reach) / half), -half, half)
    if kind == "symmetric":
        return Alphabet(_nonzero(reach / (half - 1)), 1 - half, half - 1)
    largest = W.gather(1, W.abs().argmax(1, keepdim=True))
    return Alphabet(_nonzero(torch.where(largest > 0, -reach, reach) / half), -half, half - 1)


def _radius(kind: AlphabetKind, bits: int, radius: float | Literal["auto"]) -> float:
    if radius != "auto":
        return radius
    return PREDECESSOR_RADIUS if kind == "predecessor" else AUTO_RADIUS.get(bits, 1.0)


def _quantile(magnitudes: Tensor, percentile: float) -> Tensor:
    if percentile == 1.0:
        return magnitudes.amax(1, keepdim=True)
    return magnitudes.quantile(percentile, dim=1, keepdim=True)


def _nonzero(step: Tensor) -> Tensor:
    """A neuron of zeros has no radius; any step serves it."""
    return torch.where(step == 0, torch.ones_like(step), step)
