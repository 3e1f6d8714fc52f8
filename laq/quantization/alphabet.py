"""Alphabets: the equally spaced levels that a layer's weights may take."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from laq.quantization.options import BITS, AlphabetKind, Granularity, Radius, check

# Few levels are better spent inside the range than at its ends. Fractions of max|w|;
# benchmarks/accuracy.py measures what others give.
AUTO_RADIUS: Final = {2: 0.7, 3: 0.9}
PREDECESSOR_RADIUS: Final = 1.16
# What is tried where the radius is chosen: by a layer's reconstruction error, by its weights' error.
ERROR_RADII: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MSE_RADII: Final = tuple(percent / 100 for percent in range(20, 101, 2))


@dataclass(frozen=True)
class AlphabetSpec:
    """Which alphabet a layer gets; see ``make_alphabet``.

    Raises:
        QuantizationError: an option is not allowed.
    """

    kind: AlphabetKind = "symmetric"
    bits: int = 4
    granularity: Granularity = "channel"
    radius: Radius = "auto"
    percentile: float = 1.0

    def __post_init__(self) -> None:
        check("alphabet", self.kind)
        object.__setattr__(self, "bits", check("bits", self.bits, BITS))
        for name in ("granularity", "radius", "percentile"):
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        half: int = 2 ** (self.bits - 1)
        return {
            "symmetric": (1 - half, half - 1),
            "twos_complement": (-half, half - 1),
            "midrise": (-half, half - 1),
            "predecessor": (-half, half),
        }[self.kind]

    @property
    def fraction(self) -> float:
        """The radius as a fraction of the largest weight, where it is not chosen by an error."""
        if isinstance(self.radius, float):
            return self.radius
        return PREDECESSOR_RADIUS if self.kind == "predecessor" else AUTO_RADIUS.get(self.bits, 1.0)


@dataclass(frozen=True)
class Alphabet:
    """The levels ``step * (c + offset)`` for integer codes ``low <= c <= high``.

    ``step`` has the shape of the weights without their last dimension, then 1: a step per neuron
    (negative ones turn the alphabet around; of a neuron whose step is zero, all levels are zero).
    """

    step: Tensor
    low: int
    high: int
    offset: float = 0.0

    @property
    def levels(self) -> int:
        """How many values a weight may take."""
        return self.high - self.low + 1

    def in_steps(self, values: Tensor) -> Tensor:
        """How many steps ``values`` (..., N, d) are from zero; none where the step is zero."""
        return values / torch.where(self.step == 0, torch.inf, self.step)

    def encode(self, values: Tensor) -> Tensor:
        """The codes (int32) of the levels nearest to ``values`` (..., N, d)."""
        steps = self.in_steps(values)
        return (steps - self.offset).round().clamp(self.low, self.high).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels that ``codes`` (..., N, d) stand for."""
        return (codes.to(self.step.dtype) + self.offset) * self.step

    def with_step(self, step: Tensor) -> "Alphabet":
        """The same codes for other steps."""
        return Alphabet(step, self.low, self.high, self.offset)


def make_alphabet(W: Tensor, spec: AlphabetSpec) -> Alphabet:
    """The alphabet of a layer with weights ``W`` (G, N, d); steps are (G, N, 1).

    The kinds, for b bits:

    - ``symmetric``: 2^b - 1 levels around zero;
    - ``twos_complement``: 2^b levels, the odd one on the side of the largest weight;
    - ``midrise``: 2^b levels around zero, which is not one of them: so the step of a neuron whose weights
      are all zero is zero, whatever the granularity, and they stay zero;
    - ``predecessor``: 2^b + 1 levels (one more than b bits can hold) whose radius is the mean of the
      channels', as in the GPFQ authors' code (Zhang, Zhou, Saab 2023).

    The radius, the largest level's magnitude, is a fraction of the ``percentile`` (1: the maximum) of
    a channel's |w|, or of the layer's: a given one, or ``auto``, or the one of least squared error of
    the weights (``mse``). ``error`` leaves the choice to the solver (``candidates``).
    """
    if spec.radius != "mse":
        return _alphabet(W, spec, spec.fraction)
    trials = [_alphabet(W, spec, fraction) for fraction in MSE_RADII]
    errors = torch.stack([(t.decode(t.encode(W)) - W).square().sum(-1) for t in trials])
    best = best_candidates(errors, spec)[None, ..., None]
    return trials[0].with_step(torch.stack([t.step for t in trials]).gather(0, best)[0])


def candidates(W: Tensor, spec: AlphabetSpec) -> list[Alphabet]:
    """The alphabets to choose from by the layer's reconstruction error; one if there is no choice."""
    if spec.radius != "error":
        return [make_alphabet(W, spec)]
    return [_alphabet(W, spec, fraction) for fraction in ERROR_RADII]


def best_candidates(errors: Tensor, spec: AlphabetSpec) -> Tensor:
    """Which candidate each neuron takes, (G, N), from their squared errors (K, G, N)."""
    if spec.granularity == "layer":
        errors = errors.sum((1, 2), keepdim=True).expand_as(errors)
    return errors.argmin(0)


def _alphabet(W: Tensor, spec: AlphabetSpec, fraction: float) -> Alphabet:
    low, high = spec.codes
    reach = _reach(W, spec) * fraction
    if spec.kind == "midrise":
        of_zeros = W.abs().amax(-1, keepdim=True) == 0
        return Alphabet(torch.where(of_zeros, 0, reach / (high + 0.5)), low, high, 0.5)
    if spec.kind == "twos_complement":
        largest = W.gather(-1, W.abs().argmax(-1, keepdim=True))
        reach = torch.where(largest > 0, -reach, reach)
    step = reach / (-low if spec.kind == "twos_complement" else high)
    # Any step serves a neuron of zeros, of which zero is a level.
    return Alphabet(torch.where(step == 0, torch.ones_like(step), step), low, high)


def _reach(W: Tensor, spec: AlphabetSpec) -> Tensor:
    """The magnitude that stands for the largest weight, per neuron (G, N, 1).

    It is the maximum where the percentile of |w| is zero, as of a neuron most of whose weights are.
    """
    magnitudes = W.abs()
    largest = magnitudes.amax(-1, keepdim=True)
    full = spec.percentile == 1.0
    reach = largest if full else magnitudes.quantile(spec.percentile, dim=-1, keepdim=True)
    if spec.kind == "predecessor":
        reach, largest = (t.mean().expand_as(t) for t in (reach, largest))
    elif spec.granularity == "layer":
        reach, largest = (t.amax().expand_as(t) for t in (reach, largest))
    return torch.where(reach == 0, largest, reach)
