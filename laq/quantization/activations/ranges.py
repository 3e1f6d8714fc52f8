"""Ranges of activations: what calibration images have shown of them, and rules that choose by that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_BINS: Final = 2**16  # of a float32's sign, its exponent and 7 bits of its mantissa: 0.8 % apart
_TAIL: Final = 1e-4  # of the values, beyond each end of a range by percentiles
_CANDIDATES: Final = 64  # fractions of the largest range that are tried for the least error
_SMALLEST: Final = 0.1  # of these fractions


@dataclass(frozen=True)
class Histogram:
    """How often values have occurred, in bins that are the same for all data, and their bounds.

    Histograms of parts add up to that of the whole, to the last count, in whatever order, and take the same
    memory however many values there are.

    Attributes:
        low, high: the least and the largest value.
        counts: int64 (65536,), of the bins by the upper half of their values' bits in float32.
    """

    low: float
    high: float
    counts: Tensor

    @classmethod
    def of(cls, X: Tensor) -> "Histogram":
        """That of all values of ``X``, of any shape and any type of floats."""
        values = X.detach().float().flatten()
        low, high = values.aminmax()
        bins = (values.view(torch.int32) >> 16) & (_BINS - 1)
        return cls(low.item(), high.item(), bins.bincount(minlength=_BINS).cpu())

    def plus(self, other: "Histogram") -> "Histogram":
        """That of the values of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Histogram(low, high, self.counts + other.counts)

    def values(self) -> tuple[Tensor, Tensor]:
        """The bins' middles that occur, float32 (m,) in ascending order, and how often, float64 (m,)."""
        bins = self.counts.nonzero()[:, 0]
        middles = ((bins << 16) | (1 << 15)).to(torch.int32).view(torch.float32)
        order = middles.argsort()
        return middles[order].clamp(self.low, self.high), self.counts[bins[order]].double()


@dataclass(frozen=True)
class ActivationGrid:
    """The values that a rounded activation may have: ``step`` times 0 to ``highest``, less ``zero_point``."""

    step: float
    zero_point: int
    highest: int

    @classmethod
    def over(cls, low: float, high: float, bits: int) -> "ActivationGrid":
        """The grid over a range, which is made to hold 0: a value that paddings and ReLUs have often."""
        low, high = min(low, 0.0), max(high, 0.0)
        highest = 2**bits - 1
        step = (high - low) / highest or 1.0
        return cls(step, round(-low / step), highest)

    def round(self, X: Tensor) -> Tensor:
        """The nearest values of the grid, in the type of ``X``; of two equally near ones the even code's."""
        rounded = torch.fake_quantize_per_tensor_affine(
            X.float(), self.step, self.zero_point, 0, self.highest
        )
        return rounded.to(X.dtype)


def minmax(seen: Histogram, bits: int) -> ActivationGrid:
    """All that was seen is within the range."""
    return ActivationGrid.over(seen.low, seen.high, bits)


def percentile(seen: Histogram, bits: int) -> ActivationGrid:
    """The range leaves out one value in ten thousand at each end."""
    values, counts = seen.values()
    shares = counts.cumsum(0) / counts.sum()
    low = values[int((shares <= _TAIL).sum())]
    high = values[min(int((shares < 1 - _TAIL).sum()), len(values) - 1)]
    return ActivationGrid.over(low.item(), high.item(), bits)


def mse(seen: Histogram, bits: int) -> ActivationGrid:
    """The range has the least mean squared error of rounding, among fractions of the largest one."""
    values, counts = seen.values()
    fractions = torch.linspace(1, _SMALLEST, _CANDIDATES).tolist()
    grids = [ActivationGrid.over(f * seen.low, f * seen.high, bits) for f in fractions]
    errors = [((grid.round(values) - values).double().square() @ counts).item() for grid in grids]
    return grids[errors.index(min(errors))]


RANGES: Final[Mapping[str, Callable[[Histogram, int], ActivationGrid]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}
