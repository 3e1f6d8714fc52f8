"""What a layer multiplies its weights with: columns of patches for a convolution, of inputs for a Linear."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numba
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear
Places = tuple[Tensor, Tensor, Tensor]
_FEWEST_TO_SHIFT: Final = 8  # channels
_PADDING_MODES: Final = {"zeros": "constant"}  # the one mode that F.pad calls otherwise


def grouped_weights(layer: Layer) -> Tensor:
    """The layer's weights as (G, N, d): G groups of N neurons with d weights."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return layer.weight.detach().reshape(groups, layer.weight.shape[0] // groups, -1)


def has_shifts(layer: Layer) -> bool:
    """Whether it is a 3x3 convolution that moves over a border of zeros pixel by pixel.

    Of layers with few channels none is said to: their products are too small to be worth it.
    """
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros":
        return False
    same = layer.padding in ((1, 1), "same")
    shape = (layer.kernel_size, layer.stride, layer.dilation)
    return same and shape == ((3, 3), (1, 1), (1, 1)) and layer.weight.shape[1] >= _FEWEST_TO_SHIFT


@dataclass(frozen=True)
class Patches:
    """The inputs X (analog) and X̃ (quantized) of a layer, for some images: a column per weight.

    ``X`` and ``X_q`` are views (G, channels, kernel height, kernel width, images, rows, columns), which
    stand for d = channels x height x width columns of m = images x rows x columns entries; ``places``
    picks some of the latter. Nothing is copied before ``write`` is called.
    """

    X: Tensor
    X_q: Tensor
    places: Places | None = None

    @property
    def kernel(self) -> int:
        """How many of the d columns belong to a channel."""
        return self.X.shape[2] * self.X.shape[3]

    @property
    def m(self) -> int:
        """Entries of a column."""
        return self.X.shape[4:].numel() if self.places is None else len(self.places[0])

    @property
    def images(self) -> int:
        """How many images there are."""
        return self.X.shape[4]

    def of_images(self, start: int, stop: int) -> "Patches":
        """The patches of some of the images."""
        if self.places is None:
            return Patches(self.X[:, :, :, :, start:stop], self.X_q[:, :, :, :, start:stop])
        chosen = (self.places[0] >= start) & (self.places[0] < stop)
        return Patches(self.X, self.X_q, tuple(p[chosen] for p in self.places))  # type: ignore[arg-type]

    def write(self, which: Tensor, groups: slice, columns: slice, out: Tensor) -> None:
        """Copy ``columns`` of ``which`` (X or X_q), whole channels, to ``out`` (groups, columns, m)."""
        view = which[groups, columns.start // self.kernel : -(-columns.stop // self.kernel)]
        if self.places is None:
            out.view(view.shape).copy_(view)
        elif view.device.type == "cpu":
            image, row, column = (place.numpy() for place in self.places)
            _pick(view.numpy(), image, row, column, out.view(*view.shape[:4], -1).numpy())
        else:
            out.view(*view.shape[:4], -1).copy_(view[(..., *self.places)])


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


def cut_patches(
    layer: Layer, analog: Tensor, quantized: Tensor, choose: Callable[[torch.Size], Places | None]
) -> Patches:
    """The patches of a layer with these inputs; ``choose`` picks places of (images, rows, columns)."""
    if isinstance(layer, nn.Linear):
        # A row is a patch of one pixel.
        X, X_q = (_as_grid(t.reshape(-1, t.shape[-1]).T[None]) for t in (analog, quantized))
        return Patches(X, X_q)
    X, X_q = (_windows(t, layer) for t in (analog, quantized))
    return Patches(X, X_q, choose(X.shape[4:]))


def rows_as_patches(X: Tensor, X_q: Tensor) -> Patches:
    """Matrices (G, m, d) of inputs as patches."""
    return Patches(_as_grid(X.mT), _as_grid(X_q.mT))


def _as_grid(columns: Tensor) -> Tensor:
    """Columns (G, d, m) as if of m images of one pixel."""
    return columns[:, :, None, None, :, None, None]


def _windows(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution's patches, on its own grid of strides, as a view."""
    mode = _PADDING_MODES.get(conv.padding_mode, conv.padding_mode)
    padding = conv._reversed_padding_repeated_twice  # noqa: SLF001 (also resolves "same")
    padded = (F.pad(inputs, padding, mode) if any(padding) else inputs).contiguous()
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    b, c, h, w = padded.shape
    rows, columns = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    shape = (conv.groups, c // conv.groups, kh, kw, b, rows, columns)
    at_b, at_c, at_h, at_w = padded.stride()
    at = (at_c * shape[1], at_c, at_h * dh, at_w * dw, at_b, at_h * sh, at_w * sw)
    return padded.as_strided(shape, at)


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

    def places(self, grid: torch.Size, first_image: int) -> Places | None:
        """Images, rows and columns of the patches kept of a grid; None for all of them."""
        images, area = grid[0], grid[1:].numel()
        kept = max(1, round(self.rate * area))
        if kept == area:
            return None
        source = np.random.PCG64([self.seed, zlib.crc32(self.layer.encode())]).advance(first_image * area)
        lots = np.random.Generator(source).random((images, area))
        drawn = np.sort(np.argpartition(lots, kept - 1, axis=1)[:, :kept], axis=1)
        of_image = np.repeat(np.arange(images), kept)
        row, column = np.divmod(drawn.ravel(), grid[2])
        return torch.from_numpy(of_image), torch.from_numpy(row), torch.from_numpy(column)
