"""What a layer multiplies its weights with: a column per weight, of patches or of rows."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Places = tuple[Tensor, ...]  # of some patches: their image, and where they lie in it along each dimension


@dataclass(frozen=True)
class Patches:
    """The inputs X (analog) and X̃ (quantized) of a layer, for some images: a column per weight.

    ``X`` and ``X_q`` are views (G, channels, *kernel, images, *grid), which stand for d = channels x kernel
    columns of m = images x grid entries; the kernel has ``dimensions``. ``places`` picks some of the
    entries. Nothing is copied before ``write`` is called.
    """

    X: Tensor
    X_q: Tensor
    places: Places | None = None
    dimensions: int = 2

    @property
    def kernel(self) -> int:
        """How many of the d columns belong to a channel."""
        return self.X.shape[2 : 2 + self.dimensions].numel()

    @property
    def columns(self) -> int:
        """The number d of columns."""
        return self.X.shape[1 : 2 + self.dimensions].numel()

    @property
    def m(self) -> int:
        """Entries of a column."""
        return self.X.shape[2 + self.dimensions :].numel() if self.places is None else len(self.places[0])

    @property
    def images(self) -> int:
        """How many images there are."""
        return self.X.shape[2 + self.dimensions]

    def of_images(self, start: int, stop: int) -> "Patches":
        """The patches of some of the images."""
        if self.places is None:
            at, length = 2 + self.dimensions, min(stop, self.images) - start
            X, X_q = (t.narrow(at, start, length) for t in (self.X, self.X_q))
            return Patches(X, X_q, None, self.dimensions)
        chosen = (self.places[0] >= start) & (self.places[0] < stop)
        return Patches(self.X, self.X_q, tuple(p[chosen] for p in self.places), self.dimensions)

    def write(self, which: Tensor, groups: slice, columns: slice, out: Tensor) -> None:
        """Copy ``columns`` of ``which`` (X or X_q), whole channels, to ``out`` (groups, columns, m)."""
        view = which[groups, columns.start // self.kernel : -(-columns.stop // self.kernel)]
        if self.places is None:
            out.view(view.shape).copy_(view)
            return
        target = out.view(*view.shape[: 2 + self.dimensions], -1)
        if view.device.type == "cpu" and self.dimensions == 2:
            image, row, column = (place.numpy() for place in self.places)
            _pick(view.numpy(), image, row, column, target.numpy())
        else:
            target.copy_(picked(view, self.places))


@numba.njit(nogil=True, cache=True)
def _pick(
    view: NDArray[Any],
    image: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """``view[..., image, row, column]``, several times as fast as by torch or numpy."""
    groups, channels, height, width = view.shape[:4]
    for g in range(groups):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    for p in range(len(image)):
                        out[g, c, i, j, p] = view[g, c, i, j, image[p], row[p], column[p]]


def picked(view: Tensor, places: Places) -> Tensor:
    """The entries at ``places`` of a view (..., images, *grid)."""
    entries: Tensor = view[(..., *places)]  # type: ignore[index]
    return entries


def rows_as_patches(X: Tensor, X_q: Tensor) -> Patches:
    """Matrices (G, m, d) of inputs as the patches of m images of one pixel."""
    X, X_q = (t.mT[:, :, None, None, :, None, None] for t in (X, X_q))
    return Patches(X, X_q)


def windows(
    inputs: Tensor,
    groups: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """What a kernel of this ``size`` sees of ``inputs`` (images, channels, *space), wherever it stands.

    Returns a view (G, channels of a group, *kernel, images, *grid).
    """
    inputs = inputs.contiguous()
    images, channels, *sides = inputs.shape
    grid = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(sides, size, stride, dilation, strict=True)]
    at_image, at_channel, *at = inputs.stride()
    shape = (groups, channels // groups, *size, images, *grid)
    by_kernel = (a * d for a, d in zip(at, dilation, strict=True))
    by_grid = (a * s for a, s in zip(at, stride, strict=True))
    return inputs.as_strided(shape, (at_channel * shape[1], at_channel, *by_kernel, at_image, *by_grid))


@dataclass(frozen=True)
class Sampler:
    """Draws which of a convolution's patches to keep: ``rate`` of each image's.

    What is drawn for an image depends on the seed, the layer and the image's number alone, not on
    which images it is worked on with.
    """

    rate: float
    seed: int
    layer: str

    def places_from(self, first_image: int) -> Callable[[torch.Size], Places | None]:
        """``places`` for images numbered from ``first_image``."""
        return partial(self.places, first_image=first_image)

    def kept(self, grid: torch.Size) -> int:
        """How many patches of a grid (images, ...) are kept in all."""
        return grid[0] * self._of_image(grid)

    def places(self, grid: torch.Size, first_image: int) -> Places | None:
        """Where the patches lie that are kept of a grid (images, ...); None for all of them."""
        images, area = grid[0], prod(grid[1:])
        kept = self._of_image(grid)
        if kept == area:
            return None
        source = np.random.PCG64([self.seed, zlib.crc32(self.layer.encode())]).advance(first_image * area)
        lots = np.random.Generator(source).random((images, area))
        drawn = np.sort(np.argpartition(lots, kept - 1, axis=1)[:, :kept], axis=1)
        of_image = np.repeat(np.arange(images), kept)
        within = np.unravel_index(drawn.ravel(), tuple(grid[1:]))
        return tuple(torch.from_numpy(place) for place in (of_image, *within))

    def _of_image(self, grid: torch.Size) -> int:
        area = prod(grid[1:])
        return min(area, max(1, round(self.rate * area)))
