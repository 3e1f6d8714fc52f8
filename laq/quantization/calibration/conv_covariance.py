"""The covariances of a 3x3 convolution of stride 1, from its images rather than its patches.

Column (c, i) holds the pixels of channel c moved by the kernel's offset i. So an entry of G = X X̃ᵀ::

    G[(c, i), (c', k)] = Σ_p X_c[p + i] X̃_c'[p + k]

depends on the offsets by their difference k - i alone, but for pixels that an offset moves over the
edge. There are 25 differences where there are 81 pairs of offsets: the products of images moved by
each, less those of the edges, are the same sums in a third of the operations. H = X̃ X̃ᵀ is symmetric
besides, which leaves 15 of its 25.

For images bordered by zeros a pair of offsets lacks pixels of the full product only where both point
over the same edge; that is where a row or a column of pixels comes off, and a corner comes back that
was in both.
"""

from itertools import product
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.calibration.narrow_conv import Flat
from laq.quantization.threads import Pool

_FAR: Final = 5  # differences of two offsets of a kernel of 3, in rows or columns: 2 to -2
_NEAR: Final = 3  # of which 2 to 0 are enough where the others are the mirror image
OPERATIONS_FOR_G: Final = 2 * _FAR * _FAR  # per patch and pair of channels
OPERATIONS_FOR_H: Final = 2 * _FAR * _NEAR
# Differences -2, -1, 0, 0, 0, 1, 2 of the offsets i and k of a kernel of 3, as 0 ... 6: where they are the
# same, it matters which. Up or left (0) leaves out the last row or column, down or right (2) the first.
_WHICH: Final = {(i, k): 2 + i if i == k else k - i + (4 if k > i else 2) for i in range(3) for k in range(3)}
_ACROSS: Final = [0, 1, 2, 2, 2, 3, 4]  # where these are among differences of columns, -2 to 2
_DOWN: Final = [4, 3, 2, 2, 2, 1, 0]  # and of rows, 2 to -2
_OVER: Final = (4, 2)  # which of the seven leave out the first, and the last
_FEW: Final = 16  # channels
_ROWS: Final = 32  # of sums that a thread assembles at a time


class _Products(NamedTuple):
    """Sums over pixels: of images moved up by n numbers of rows and of others moved left by 5 of columns.

    ``planes`` (G, n, C, 5, C) of all pixels, ``rows`` (G, 2, C, 5, C) of the first and the last row,
    ``columns`` (G, 2, n, C, C) of the first and the last column, ``corners`` (G, 2, 2, C, C).
    """

    planes: Tensor
    rows: Tensor
    columns: Tensor
    corners: Tensor

    def pack(self) -> Tensor:
        """All of them as (G, as many numbers as it takes)."""
        return torch.cat([part.flatten(1) for part in self], 1)

    @classmethod
    def unpack(cls, flat: Tensor, n: int, C: int) -> "_Products":
        """The opposite."""
        shapes = ((n, C, _FAR, C), (2, C, _FAR, C), (2, n, C, C), (2, 2, C, C))
        parts = torch.split(flat, [torch.Size(shape).numel() for shape in shapes], 1)
        return cls(*(part.view(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)))

    def mirrored(self) -> "_Products":
        """All 5 differences of rows from the first 3, of images multiplied with themselves."""
        planes = torch.cat([self.planes, self.planes[:, :2].flip(1, 3).transpose(2, 4)], 1)
        columns = torch.cat([self.columns, self.columns[:, :, :2].flip(2).mT], 2)
        return self._replace(planes=planes, columns=columns)


def correlate(X: Tensor, X_q: Tensor, *, cross: bool) -> Tensor:
    """All the sums that ``assemble`` takes, of images (G, C, b, h, w), or without ``cross`` of X̃ alone.

    Returns (G, 84 C²), or (G, 35 C²).
    """
    multiply = _multiply_few if is_narrow(X) else _multiply
    return torch.cat([part.pack() for part in multiply(X, X_q, cross=cross)], 1)


def is_narrow(images: Tensor) -> bool:
    """Whether images (G, C, ...) have so few channels that moved copies take longer than their products."""
    return images.device.type == "cpu" and images.shape[1] <= _FEW


def _multiply_few(X: Tensor, X_q: Tensor, *, cross: bool) -> list[_Products]:
    """Every kind of sum on its own, without moved copies."""
    G, C = X.shape[:2]
    ends = [tuple(_at_ends(images, *dims) for images in (X, X_q)) for dims in ((3,), (4,), (3, 4))]
    whole, rows, columns, corners = (Flat(*both) for both in ((X, X_q), *ends))
    return [
        _Products(
            whole.sums(side, n, _FAR),
            rows.sums(side, 1, _FAR).reshape(G, 2, C, _FAR, C),
            columns.sums(side, n, 1).reshape(G, 2, n, C, C),
            corners.sums(side, 1, 1).reshape(G, 2, 2, C, C),
        )
        for side, n in ((0, _FAR), (1, _NEAR))[0 if cross else 1 :]
    ]


def _at_ends(images: Tensor, *dims: int) -> Tensor:
    """The first and the last along each of the dimensions, as groups of their own."""
    for dim in dims:
        ends = [images.narrow(dim, at, 1) for at in (0, images.shape[dim] - 1)]
        images = torch.stack(ends, 1).flatten(0, 1)
    return images


def _moved_up(images: Tensor, n: int) -> Tensor:
    """Images (G, C, b, h, w) moved up by -2, -1, ... rows, n of them, as (G, n, C, h, b, w)."""
    # Rows come before images, so that what moves is one piece of memory for each channel.
    padded = F.pad(images.transpose(2, 3), (0, 0, 0, 0, 2, n - _NEAR))
    return padded.unfold(2, images.shape[3], 1).permute(0, 2, 1, 5, 3, 4)


def _multiply(X: Tensor, X_q: Tensor, *, cross: bool) -> list[_Products]:
    """All kinds of sums in the same few products of matrices."""
    across = F.pad(X_q, (2, 2)).unfold(4, X_q.shape[4], 1).permute(0, 4, 1, 3, 2, 5).contiguous()
    moved = [_moved_up(X_q, _NEAR)]
    if cross:
        moved.insert(0, _moved_up(X, _FAR))
    sizes, rows = [part.shape[1] for part in moved], torch.cat(moved, 1)
    still, middle = torch.stack([part[:, 2] for part in moved], 1), across[:, 2:3]
    planes = torch.split(_sums(rows[:, None], across[:, None])[:, 0], sizes, 1)
    in_rows = _sums(_ends(still, 3), _ends(across, 3))
    columns = torch.split(_sums(_ends(rows, 5), _ends(middle, 5))[..., 0, :], sizes, 2)
    corners = _sums(*(_ends(_ends(t, 5), 4).flatten(1, 2) for t in (still, middle)))[..., 0, :]
    return [
        _Products(
            planes[i], in_rows[:, :, i], columns[i], corners[:, :, i].reshape(-1, 2, 2, *corners.shape[3:])
        )
        for i in range(len(moved))
    ]


def _ends(images: Tensor, dim: int) -> Tensor:
    """The first and the last along a dimension, as one after the groups': (G, 2, ...)."""
    return torch.stack([images.select(dim, 0), images.select(dim, -1)], 1)


def _sums(rows: Tensor, others: Tensor) -> Tensor:
    """Over pixels: (G, k, n, C, ...) by (G, k, m, C, ...) gives (G, k, n, C, m, C)."""
    sums = rows.flatten(4).flatten(2, 3) @ others.flatten(4).flatten(2, 3).mT
    result: Tensor = sums.view(*rows.shape[:4], *others.shape[2:4])
    return result


def assemble(total: Tensor, C: int, pool: Pool) -> tuple[Tensor, Tensor]:
    """G and H, (G, 9 C, 9 C), from the sum of what ``correlate`` gives; G is empty without ``cross``."""
    with_X = total.shape[1] - 35 * C * C
    H = _Products.unpack(total[:, with_X:], _NEAR, C).mirrored()
    if not with_X:
        return total.new_empty(len(total), 0, 9 * C), _spread(H, pool)
    G = _Products.unpack(total[:, :with_X], _FAR, C)
    return _spread(G, pool), _spread(H, pool)


def _spread(sums: _Products, pool: Pool) -> Tensor:
    """Every pair of columns' own sum, (G, 9 C, 9 C)."""
    groups, _, C, _, _ = sums.planes.shape
    pairs = product(range(3), repeat=4)
    where = torch.tensor([7 * _WHICH[i, k] + _WHICH[j, m] for i, j, k, m in pairs]).to(sums.planes.device)
    result = sums.planes.new_empty(groups, C, 9, C, 9)

    def fill(some: slice) -> None:
        distinct = _distinct(sums, some).flatten(2, 3)
        result[:, some] = distinct[:, :, where].view(groups, -1, 9, 9, C).mT

    pool.run(fill, (slice(c, c + _ROWS) for c in range(0, C, _ROWS)))
    return result.view(groups, 9 * C, 9 * C)


def _distinct(sums: _Products, some: slice) -> Tensor:
    """The 7 x 7 sums that differ, of some channels, (G, C', 7, 7, C): by difference, and for none by edge."""
    planes, columns = sums.planes[:, :, some].transpose(1, 2), sums.columns[:, :, :, some].transpose(2, 3)
    result = planes[:, :, _DOWN][:, :, :, _ACROSS].contiguous()
    for edge, at in enumerate(_OVER):
        result[:, :, at] -= sums.rows[:, edge, some][:, :, _ACROSS]
        result[:, :, :, at] -= columns[:, edge][:, :, _DOWN]
        for other, over in enumerate(_OVER):
            result[:, :, at, over] += sums.corners[:, edge, other, some]
    return result
