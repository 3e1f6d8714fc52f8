"""What GPTQ and Qronos need of H = X̃ X̃ᵀ + λ: R, upper triangular with R Rᵀ = H.

Work is cut the same way for any number of threads, so the last bits do not depend on it.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Final

import torch
from torch import Tensor

from laq.quantization.threads import Pool

_PANEL: Final = 128  # columns of a factor that are computed at a time
_TILE: Final = 512  # rows and columns that a thread brings up to date at a time


def cholesky(H: Tensor, pool: Pool) -> Tensor:
    """Upper triangular R with R Rᵀ = H, both (G, d, d); where all inputs are zero, H is the identity.

    R takes the place of H, below whose diagonal numbers are left that mean nothing.
    """
    diagonal = H.diagonal(dim1=1, dim2=2)
    diagonal.add_(diagonal == 0)
    if H.device.type != "cpu":
        return cholesky_at_once(H)
    for b in panels_from_the_last(H.shape[1]):
        H[:, b, b] = torch.linalg.cholesky(H[:, b, b].flip(1, 2)).flip(1, 2)
        # Its inverse, since a product of matrices is so much faster than a solver.
        unit = torch.eye(b.stop - b.start).to(H).expand_as(H[:, b, b])
        inverse = torch.linalg.solve_triangular(H[:, b, b], unit, upper=True)
        parts = tiles(b.start)
        pool.run(partial(_divide, H, inverse, b), parts)
        pool.run(partial(_subtract, H, b), combinations_with_replacement(parts, 2))
    return H


def cholesky_at_once(H: Tensor) -> Tensor:
    """The same in one call, for devices that share out its work themselves."""
    return H.copy_(torch.linalg.cholesky(H.flip(1, 2)).flip(1, 2))


def panels_from_the_last(d: int) -> list[slice]:
    """Slices of d columns, the last ones first."""
    return [slice(max(0, stop - _PANEL), stop) for stop in range(d, 0, -_PANEL)]


def tiles(size: int) -> list[slice]:
    """Slices of so many rows or columns, one for a thread at a time."""
    return [slice(start, min(start + _TILE, size)) for start in range(0, size, _TILE)]


def _divide(H: Tensor, inverse: Tensor, b: slice, rows: slice) -> None:
    """Some rows of R above its block b on the diagonal, which has this inverse."""
    H[:, rows, b] = H[:, rows, b] @ inverse.mT


def _subtract(H: Tensor, b: slice, tile: tuple[slice, slice]) -> None:
    """Take the products of these rows of R from a tile further up (the Schur complement)."""
    rows, columns = tile
    H[:, rows, columns].baddbmm_(H[:, rows, b], H[:, columns, b].mT, alpha=-1)


def add_to_diagonal(matrices: Tensor, damping: Tensor) -> Tensor:
    """Add ``damping`` (G,) along the diagonals of (G, d, d), in place."""
    matrices.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    return matrices


def largest_eigenvalue(times: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Of matrices that ``times`` multiplies vectors (G, d, 1) with, by power iteration: its size alone."""
    v = start
    for _ in range(20):
        v = times(v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-30))
    largest: Tensor = torch.linalg.vector_norm(v, dim=(1, 2), dtype=torch.float64)
    return largest
