"""The two inputs of a layer, chunk by chunk, and the two covariances that sum them up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from laq.quantization.patches import Patches, Places, rows_as_patches
from laq.quantization.pool import Pool
from laq.quantization.shifts import OPERATIONS_FOR_G, OPERATIONS_FOR_H, assemble, correlate
from laq.quantization.walk import BLOCK, ROWS

_WIDEST: Final = 128  # columns of a block
_LANES: Final = 16  # matrix products are fast where their sides are multiples of this
_PER_BLOCK: Final = 2e7  # what a block costs for its own sake, in operations
_PER_STEP: Final = 20  # and the walk, per neuron and pair of columns
_PER_ENTRY: Final = 500  # an entry of a covariance, which is summed up and moved about
_TILE: Final = 8 * 2**20  # bytes of patches that are multiplied at a time


class Covariances(NamedTuple):
    """``G`` = X X̃ᵀ and ``H`` = X̃ X̃ᵀ, (groups, d, d) in float64, X and X̃ being (groups, d, m)."""

    G: Tensor
    H: Tensor


@dataclass(frozen=True)
class Inputs:
    """What a layer was given: ``chunks`` make the patches of some of the images, when called.

    There are G ``groups`` of ``columns`` d, ``kernel`` of them for each channel; ``counts`` are the
    images (or whatever has a constant number of patches) of each chunk. ``shifts`` tells that a
    channel's columns are its images moved about within a border of zeros (``patches.has_shifts``).
    """

    chunks: Sequence[Callable[[], Patches]]
    counts: Sequence[int]
    groups: int
    columns: int
    kernel: int
    pool: Pool
    shifts: bool = False

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
        return min(widths, key=lambda B: self.cost(B, neurons) / B)

    def cost(self, B: int, neurons: int) -> float:
        """What GPFQ's residual form takes for B columns, in operations."""
        padded = padded_width(B)
        overhead = _PER_BLOCK * (len(self.chunks) + self.groups * neurons / ROWS)
        products = self.m * padded * (6 * neurons + 4 * padded)
        return self.groups * (products + _PER_STEP * neurons * B * B) + overhead

    def covariances(self, *, cross: bool = True) -> Covariances:
        """The sums over all chunks; without ``cross``, G stays empty."""
        products = _products_of_shifts if self.shifts else _products
        parts = self.pool.map(lambda chunk: products(chunk(), cross=cross), self.chunks)
        total = next(parts).double()
        for part in parts:
            total += part
        if self.shifts:
            return Covariances(*assemble(total, self.columns // self.kernel, self.pool))
        return Covariances(total[:, : -self.columns], total[:, -self.columns :])

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean of every column of X and of X̃: (G, d) in float64."""
        sums = list(self.pool.map(lambda chunk: _column_sums(chunk()), self.chunks))
        X, X_q = torch.stack(sums).sum(0) / self.m
        return X, X_q


def _products(patches: Patches, *, cross: bool) -> Tensor:
    """[X; X̃] X̃ᵀ, or X̃ X̃ᵀ, of a chunk."""
    sides = 2 if cross else 1
    groups, d = patches.X.shape[0], patches.X.shape[1:4].numel()
    total = patches.X.new_zeros(groups, sides * d, d)
    for tile in _tiles(patches, sides * groups * d * patches.m / patches.images):
        S = total.new_empty(groups, sides * d, tile.m)
        for out, which in zip(torch.split(S, d, 1), (tile.X, tile.X_q)[-sides:], strict=True):
            tile.write(which, slice(0, d), out)
        total.baddbmm_(S, S[:, -d:].mT)
    return total


def _products_of_shifts(patches: Patches, *, cross: bool) -> Tensor:
    """The same of moved images (``shifts.correlate``)."""
    tiles = _tiles(patches, 13 * patches.X[:, :, 1, 1].numel() / patches.images)
    return reduce(add, (correlate(t.X[:, :, 1, 1], t.X_q[:, :, 1, 1], cross=cross) for t in tiles))


def _tiles(patches: Patches, per_image: float) -> Iterator[Patches]:
    """As many images at a time, of ``per_image`` numbers each, as stay in the cache."""
    step = max(1, int(_TILE / (per_image * patches.X.element_size())))
    for start in range(0, patches.images, step):
        yield patches.of_images(start, start + step)


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

    The residual form multiplies d (6 N + 4 B) numbers per patch and keeps N + 2 B of them. The
    covariance form multiplies 4 d², or (80 / 81) d² where columns are shifts of each other, and 2 N d²
    once in float64, and keeps 3 d² in float64.
    """
    groups, d, blocks = inputs.groups, inputs.columns, -(-inputs.columns // BLOCK)
    width = inputs.width(neurons)
    need_residual = 4.0 * groups * (neurons + 2 * width) * inputs.m
    need_covariance = 24.0 * groups * d * d
    if (need_residual > memory) != (need_covariance > memory):
        return "covariance" if need_residual > memory else "residual"
    residual = inputs.cost(width, neurons) * d / width
    covariance = covariance_flops(inputs, neurons) + groups * d * d * (2 * neurons + 2 * _PER_ENTRY)
    covariance += _PER_BLOCK * (len(inputs.chunks) + groups * neurons / ROWS * blocks)
    return "residual" if residual <= covariance else "covariance"


def residual_flops(inputs: Inputs, neurons: int) -> float:
    """Operations inside matrix products of the residual form."""
    B = inputs.width(neurons)
    return float(inputs.groups * inputs.m * inputs.columns * (6 * neurons + 4 * B))


def covariance_flops(inputs: Inputs, neurons: int, *, cross: bool = True) -> float:
    """Operations inside matrix products of the covariance form, and of what else needs covariances."""
    groups, d, m = inputs.groups, inputs.columns, inputs.m
    per_patch = (4 if cross else 2) * d * d
    if inputs.shifts:
        per_patch = (OPERATIONS_FOR_H + OPERATIONS_FOR_G * cross) * (d // inputs.kernel) ** 2
    return float(groups * (m * per_patch + 2 * neurons * d * d))
