"""The two inputs of a layer, chunk by chunk, and the two covariances that sum them up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from laq.quantization.patches import Patches, Places, rows_as_patches
from laq.quantization.pool import Pool
from laq.quantization.walk import ROWS

_WIDEST: Final = 128  # columns of a block
_LANES: Final = 16  # matrix products are fast where their sides are multiples of this
_PER_BLOCK: Final = 2e7  # what a block costs for its own sake, in operations
_PER_STEP: Final = 20  # and the walk, per neuron and pair of columns
_TILE: Final = 16 * 2**20  # bytes of patches that are multiplied at a time


class Covariances(NamedTuple):
    """``G`` = X X̃ᵀ and ``H`` = X̃ X̃ᵀ, (groups, d, d) in float64, X and X̃ being (groups, d, m)."""

    G: Tensor
    H: Tensor


@dataclass(frozen=True)
class Inputs:
    """What a layer was given: ``chunks`` make the patches of some of the images, when called.

    There are G ``groups`` of ``columns`` d, ``kernel`` of them for each channel; ``counts`` are the
    images (or whatever has a constant number of patches) of each chunk.
    """

    chunks: Sequence[Callable[[], Patches]]
    counts: Sequence[int]
    groups: int
    columns: int
    kernel: int
    pool: Pool

    @classmethod
    def of_rows(cls, X: Tensor, X_q: Tensor, pool: Pool) -> "Inputs":
        """Matrices (G, m, d) of m inputs."""
        return cls([lambda: rows_as_patches(X, X_q)], [X.shape[1]], X.shape[0], X.shape[2], 1, pool)

    @cached_property
    def m(self) -> int:
        """The number of patches in all."""
        return self.chunks[0]().m * sum(self.counts) // self.counts[0]

    def width(self, neurons: int) -> int:
        """How many columns GPFQ's residual form should walk at a time: whole channels, least cost.

        Few columns mean many products of their own cost; many, that more of their products with each
        other are computed, which grow with the width.
        """
        channels = range(1, max(1, _WIDEST // self.kernel) + 1)
        widths = [min(self.columns, c * self.kernel) for c in channels]
        return min(widths, key=lambda B: self._cost(B, neurons) / B)

    def _cost(self, B: int, neurons: int) -> float:
        padded = padded_width(B)
        overhead = _PER_BLOCK * (len(self.chunks) + self.groups * neurons / ROWS)
        products = self.m * padded * (6 * neurons + 4 * padded)
        return self.groups * (products + _PER_STEP * neurons * B * B) + overhead

    def covariances(self, *, cross: bool = True) -> Covariances:
        """The sums over all chunks; without ``cross``, G stays empty."""
        parts = self.pool.map(lambda chunk: _products(chunk(), cross=cross), self.chunks)
        total = next(parts).double()
        for part in parts:
            total += part
        return Covariances(total[:, : -self.columns], total[:, -self.columns :])

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean of every column of X and of X̃: (G, d) in float64."""
        sums = list(self.pool.map(lambda chunk: _column_sums(chunk()), self.chunks))
        X, X_q = torch.stack(sums).sum(0) / self.m
        return X, X_q


def _products(patches: Patches, *, cross: bool) -> Tensor:
    """[X; X̃] X̃ᵀ, or X̃ X̃ᵀ, of a chunk, tile by tile so that patches stay in the cache."""
    sides = 2 if cross else 1
    groups, d = patches.X.shape[0], patches.X.shape[1:4].numel()
    total = patches.X.new_zeros(groups, sides * d, d)
    per_image = sides * groups * d * patches.m * total.element_size() / patches.images
    step = max(1, int(_TILE / per_image))
    for start in range(0, patches.images, step):
        tile = patches.of_images(start, start + step)
        S = total.new_empty(groups, sides * d, tile.m)
        for out, which in zip(torch.split(S, d, 1), (tile.X, tile.X_q)[-sides:], strict=True):
            tile.write(which, slice(0, d), out)
        total.baddbmm_(S, S[:, -d:].mT)
    return total


def _column_sums(patches: Patches) -> Tensor:
    """Of X and of X̃: (2, G, d) in float64."""
    return torch.stack([_sum(view, patches.places) for view in (patches.X, patches.X_q)])


def _sum(view: Tensor, places: Places | None) -> Tensor:
    if places is not None:
        return view[(..., *places)].sum(4, dtype=torch.float64).flatten(1)
    return view.sum((4, 5, 6), dtype=torch.float64).flatten(1)


def padded_width(B: int) -> int:
    """B rounded up to where matrix products are fast; as it is, if it is small."""
    return B if B < _LANES else -(-B // _LANES) * _LANES


def choose_form(inputs: Inputs, neurons: int, memory: float) -> Literal["residual", "covariance"]:
    """The cheaper exact form of GPFQ, unless it would take more than ``memory`` bytes and the other less.

    The residual form multiplies d (6 N + 4 B) numbers per patch and keeps N + 2 B of them; the
    covariance form 4 d², and 2 N d² once, and keeps 3 d² in float64.
    """
    groups, d = inputs.groups, inputs.columns
    need_residual = 4.0 * groups * (neurons + 2 * inputs.width(neurons)) * inputs.m
    need_covariance = 24.0 * groups * d * d
    if (need_residual > memory) != (need_covariance > memory):
        return "covariance" if need_residual > memory else "residual"
    by_residual, by_covariance = residual_flops(inputs, neurons), covariance_flops(inputs, neurons)
    return "residual" if by_residual <= by_covariance else "covariance"


def residual_flops(inputs: Inputs, neurons: int) -> float:
    """Operations inside matrix products of the residual form."""
    B = inputs.width(neurons)
    return float(inputs.groups * inputs.m * inputs.columns * (6 * neurons + 4 * B))


def covariance_flops(inputs: Inputs, neurons: int, *, cross: bool = True) -> float:
    """Operations inside matrix products of the covariance form, and of what else needs covariances."""
    groups, d = inputs.groups, inputs.columns
    return float(groups * ((4 if cross else 2) * inputs.m * d * d + 2 * neurons * d * d))
