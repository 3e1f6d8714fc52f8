"""Products of moved images with few channels, without a copy for each move.

A product of two matrices pays for the copies that its operands have to be when these are large. For
few channels the copies take longer than the arithmetic; here the moves are places to read from.
"""

from typing import Any, Final

import numba
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

_FAR: Final = 2  # pixels that images are moved by at most
_TOP: Final = _FAR + 1  # rows of zeros above: what is moved up and left begins before the second one
_CACHED: Final = 2**14  # pixels of all channels that stay in the innermost caches
_REORDER: Final = {"reassoc", "contract"}  # sums in the order that suits the processor, always the same
_Array = NDArray[Any]  # of float32 or float64, as the network is


class Flat:
    """Images X and X̃, (G, C, b, h, w), with zeros about them, a channel after another in memory.

    The first rows of all images come before their second ones, with two zeros after each: so a move by
    rows and columns of pixels is a number of places in memory, and nothing moves into another image.
    """

    def __init__(self, X: Tensor, X_q: Tensor) -> None:
        self.shape = X.shape
        more = -X.shape[1] % 4  # channels of zeros, since the compiled loop takes four at a time
        around = (0, _FAR, 0, 0, _TOP, _FAR, 0, more)
        sides = [F.pad(t.transpose(2, 3), around).flatten(2) for t in (X, X_q)]
        self._pixels = [side.numpy() for side in sides]

    def sums(self, side: int, rows: int, columns: int) -> Tensor:
        """Of X (``side`` 0) or X̃ (1), moved up by -2, -1, ... rows and left by 2, 1, ... columns, by X̃.

        So many ``rows`` and ``columns``, of which an only one is no move. Returns (G, rows, C, columns, C).
        """
        groups, C, images, height, width = self.shape
        row = images * (width + _FAR)
        up, left = (range(-_FAR, n - _FAR) if n > 1 else range(1) for n in (rows, columns))
        moves = np.array([r * row - c for r in up for c in left])
        moved, still = self._pixels[side], self._pixels[1]
        found = np.zeros((groups, still.shape[1], len(moves), still.shape[1]), still.dtype)
        _correlate(moved, still, moves, (_TOP * row, (_TOP + height) * row - _FAR), found)
        shape = (groups, -1, rows, columns, found.shape[3])
        return torch.from_numpy(found).view(shape)[:, :C, ..., :C].transpose(1, 2)


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def _correlate(
    moved: _Array, still: _Array, moves: NDArray[np.int64], span: tuple[int, int], out: _Array
) -> None:
    """Add Σ_p moved[g, i, p + moves[k]] still[g, j, p] over a ``span`` of p to out[g, i, k, j]."""
    groups, channels = still.shape[:2]
    segment = max(64, _CACHED // channels)
    for g in range(groups):
        for start in range(span[0], span[1], segment):
            s = slice(start, min(start + segment, span[1]))
            for k in range(len(moves)):
                at = slice(s.start + moves[k], s.stop + moves[k])
                for i in range(0, channels, 4):
                    x = (moved[g, i][at], moved[g, i + 1][at], moved[g, i + 2][at], moved[g, i + 3][at])
                    for j in range(0, channels, 2):
                        _add_products(x, (still[g, j][s], still[g, j + 1][s]), out[g, i : i + 4, k], j)


# Eight sums fill the processor's pipelines, and six rows to read them from its registers.
@numba.njit(inline="always")
def _add_products(
    moved: tuple[_Array, _Array, _Array, _Array], still: tuple[_Array, _Array], out: _Array, j: int
) -> None:
    """Add the products of four rows with two to out[:, j : j + 2]."""
    x0, x1, x2, x3 = moved
    y0, y1 = still
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = y0.dtype.type(0)
    for p in range(len(y0)):
        a0, a1, a2, a3 = a0 + x0[p] * y0[p], a1 + x1[p] * y0[p], a2 + x2[p] * y0[p], a3 + x3[p] * y0[p]
        b0, b1, b2, b3 = b0 + x0[p] * y1[p], b1 + x1[p] * y1[p], b2 + x2[p] * y1[p], b3 + x3[p] * y1[p]
    for n, (a, b) in enumerate(((a0, b0), (a1, b1), (a2, b2), (a3, b3))):
        out[n, j] += a
        out[n, j + 1] += b
