"""The two inputs of a layer, chunk by chunk, and the two covariances that sum them up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import add
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from laq.quantization.calibration.conv_covariance import (
    OPERATIONS_FOR_G,
    OPERATIONS_FOR_H,
    assemble,
    correlate,
    is_narrow,
)
from laq.quantization.calibration.patches import Patches, picked, rows_as_patches
from laq.quantization.threads import Pool

_PER_ENTRY: Final = 500  # an entry of a covariance, which is summed up and moved about, in operations
# The residual form's operations beside those in matrix products, for as many patches as stay in the cache
# and for more.
_FEW: Final = 2**14
_SLOWER: Final = (1.25, 2.8)
_PER_PATCH_ENTRY: Final = 100  # which that form writes to memory and reads again
_TILE: Final = 4 * 2**20  # bytes of patches that are multiplied at a time
_TILE_ON_GPU: Final = 2**28  # where each product is a launch: not yet measured on a GPU
_LITTLE: Final = 2**16  # numbers
_GATHERED: Final = 2**22  # entries of X, and of X̃, that GPFQ's residual form takes at a time


class Covariances(NamedTuple):
    """``G`` = X X̃ᵀ and ``H`` = X̃ X̃ᵀ, (groups, d, d) in float64, X and X̃ being (groups, d, m)."""

    G: Tensor
    H: Tensor


@dataclass(frozen=True)
class Inputs:
    """What a layer was given: ``chunks`` make the patches of some of the images, when called.

    There are G ``groups`` of ``columns`` d, ``kernel`` of them for each channel; ``sizes`` are the entries
    of a column in each chunk. ``shifts`` tells that a channel's columns are its images moved about within
    a border of zeros (``Operation.has_shifts``).
    """

    chunks: Sequence[Callable[[], Patches]]
    sizes: Sequence[int]
    groups: int
    columns: int
    kernel: int
    pool: Pool
    shifts: bool = False

    @classmethod
    def of_rows(cls, X: Tensor, X_q: Tensor, pool: Pool) -> "Inputs":
        """Matrices (G, m, d) of m inputs."""
        return cls([lambda: rows_as_patches(X, X_q)], [X.shape[1]], X.shape[0], X.shape[2], 1, pool)

    @property
    def m(self) -> int:
        """The number of patches in all."""
        return sum(self.sizes)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Groups and columns whose patches are in memory at a time: whole channels."""
        channels = max(1, _GATHERED // (self.m * self.kernel))
        width = min(channels * self.kernel, self.columns)
        step = max(1, _GATHERED // (self.m * self.columns))
        for g in range(0, self.groups, step):
            for start in range(0, self.columns, width):
                yield slice(g, min(g + step, self.groups)), slice(start, min(start + width, self.columns))

    def gather(self, patches: Sequence[Patches], groups: slice, columns: slice) -> Tensor:
        """Some columns of X and of X̃, (2, G, B, m), of all chunks."""
        gathered = patches[0].X.new_empty(2, groups.stop - groups.start, columns.stop - columns.start, self.m)
        places = zip(patches, torch.split(gathered, list(self.sizes), 3), strict=True)

        def fill(place: tuple[Patches, Tensor]) -> None:
            some, out = place
            some.write(some.X, groups, columns, out[0])
            some.write(some.X_q, groups, columns, out[1])

        self.pool.run(fill, places)
        return gathered

    def gather_all(self) -> Tensor:
        """All of X and of X̃, (2, G, d, m)."""
        patches = list(self.pool.map(lambda make: make(), self.chunks))
        return self.gather(patches, slice(0, self.groups), slice(0, self.columns))

    def covariances(self, *, cross: bool = True) -> Covariances:
        """The sums over all chunks; without ``cross``, G stays empty."""
        products = _products_of_shifts if self.shifts else _products
        parts = self.pool.map(lambda chunk: products(chunk(), cross=cross), self.chunks)
        first = next(parts)
        total = torch.zeros_like(first, dtype=torch.float64)
        for part in chain([first], parts):
            _add(part, total)
        if self.shifts:
            return Covariances(*assemble(total, self.columns // self.kernel, self.pool))
        return Covariances(total[:, : -self.columns], total[:, -self.columns :])

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean of every column of X and of X̃: (G, d) in float64."""
        sums = list(self.pool.map(lambda chunk: _column_sums(chunk()), self.chunks))
        X, X_q = torch.stack(sums).sum(0) / self.m
        return X, X_q


def _add(part: Tensor, total: Tensor) -> None:
    """Add float32 to float64, a little at a time: the copy that torch makes for it stays in the cache."""
    if total.device.type != "cpu":
        total.add_(part)  # without a copy
        return
    for numbers, sums in zip(*(torch.split(t.view(-1), _LITTLE) for t in (part, total)), strict=True):
        sums.add_(numbers)


def _products(patches: Patches, *, cross: bool) -> Tensor:
    """[X; X̃] X̃ᵀ, or X̃ X̃ᵀ, of a chunk."""
    sides = 2 if cross else 1
    groups, d = patches.X.shape[0], patches.columns
    total = patches.X.new_zeros(groups, sides * d, d)
    for tile in _tiles(patches, sides * groups * d * patches.m / patches.images):
        S = total.new_empty(groups, sides * d, tile.m)
        for out, which in zip(torch.split(S, d, 1), (tile.X, tile.X_q)[-sides:], strict=True):
            tile.write(which, slice(None), slice(0, d), out)
        total.baddbmm_(S, S[:, -d:].mT)
    return total


def _products_of_shifts(patches: Patches, *, cross: bool) -> Tensor:
    """The same of moved images (``shifts.correlate``)."""
    C = patches.X.shape[1]
    if is_narrow(patches.X):
        return correlate(patches.X[:, :, 1, 1], patches.X_q[:, :, 1, 1], cross=cross)
    tiles = _tiles(patches, 13 * patches.X[:, :, 1, 1].numel() / patches.images, 2 * 84 * C * C)
    return reduce(add, (correlate(t.X[:, :, 1, 1], t.X_q[:, :, 1, 1], cross=cross) for t in tiles))


def _tiles(patches: Patches, per_image: float, least: int = 0) -> Iterator[Patches]:
    """As many images at a time, of ``per_image`` numbers each, as stay in the cache, or fill ``least``."""
    tile = _TILE if patches.X.device.type == "cpu" else _TILE_ON_GPU
    size = max(1, int(max(tile / patches.X.element_size(), least) / per_image))
    step = -(-patches.images // -(-patches.images // size))  # tiles of about the same size
    for start in range(0, patches.images, step):
        yield patches.of_images(start, start + step)


def _column_sums(patches: Patches) -> Tensor:
    """Of X and of X̃: (2, G, d) in float64."""
    views = [t if patches.places is None else picked(t, patches.places) for t in (patches.X, patches.X_q)]
    entries = tuple(range(2 + patches.dimensions, views[0].dim()))
    return torch.stack([view.sum(entries, dtype=torch.float64).flatten(1) for view in views])


def choose_form(inputs: Inputs, neurons: int, memory: float) -> Literal["residual", "covariance"]:
    """The cheaper exact form of GPFQ, unless it would take more than ``memory`` bytes and the other less.

    The residual form takes 6 N d operations per patch, and keeps of each N numbers, its 2 d / kernel inputs
    and a channel's columns. The covariance form multiplies 4 d², or (80 / 81) d² where columns are shifts of
    each other, and 2 N d² once in float64, and keeps 3 d² in float64.
    """
    groups, d = inputs.groups, inputs.columns
    need_residual = 4.0 * (groups * (neurons + 2 * d // inputs.kernel) + 2 * inputs.kernel) * inputs.m
    need_covariance = covariance_bytes(inputs)
    if (need_residual > memory) != (need_covariance > memory):
        return "covariance" if need_residual > memory else "residual"
    residual = residual_flops(inputs, neurons) * _SLOWER[inputs.m > _FEW]
    residual += _PER_PATCH_ENTRY * groups * inputs.m * d
    covariance = covariance_flops(inputs, neurons) + groups * d * d * (2 * neurons + 2 * _PER_ENTRY)
    return "residual" if residual <= covariance else "covariance"


def covariance_bytes(inputs: Inputs) -> float:
    """What both covariances take while they are summed up: two in float64, and as much in float32."""
    return 24.0 * inputs.groups * inputs.columns**2


def residual_flops(inputs: Inputs, neurons: int) -> float:
    """Operations of the residual form."""
    return 6.0 * inputs.groups * inputs.m * inputs.columns * neurons


def covariance_flops(inputs: Inputs, neurons: int, *, cross: bool = True) -> float:
    """Operations inside matrix products of the covariance form, and of what else needs covariances."""
    groups, d, m = inputs.groups, inputs.columns, inputs.m
    per_patch = (4 if cross else 2) * d * d
    if inputs.shifts:
        per_patch = (OPERATIONS_FOR_H + OPERATIONS_FOR_G * cross) * (d // inputs.kernel) ** 2
    return float(groups * (m * per_patch + 2 * neurons * d * d))
