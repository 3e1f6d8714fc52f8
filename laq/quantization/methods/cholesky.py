"""What GPTQ and Qronos need of H = X̃ X̃ᵀ + λ: R, upper triangular with R Rᵀ = H, or what stands for it.

Work is cut the same way for any number of threads, so the last bits do not depend on it.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Final, NamedTuple

import torch
from torch import Tensor

from laq.quantization.threads import Pool

_PANEL: Final = 128  # columns of a root that are computed at a time
_TILE: Final = 512  # rows and columns that a thread brings up to date at a time


def root(H: Tensor, pool: Pool) -> Tensor:
    """Upper triangular R with R Rᵀ = H, both (G, d, d); where all inputs are zero, H is the identity.

    R takes the place of H, below whose diagonal numbers are left that mean nothing.
    """
    diagonal = H.diagonal(dim1=1, dim2=2)
    diagonal.add_(diagonal == 0)
    for b in _from_the_last(H.shape[1]):
        H[:, b, b] = torch.linalg.cholesky(H[:, b, b].flip(1, 2)).flip(1, 2)
        # Its inverse, since a product of matrices is so much faster than a solver.
        unit = torch.eye(b.stop - b.start).to(H).expand_as(H[:, b, b])
        inverse = torch.linalg.solve_triangular(H[:, b, b], unit, upper=True)
        tiles = _tiles(b.start)
        pool.run(partial(_divide, H, inverse, b), tiles)
        pool.run(partial(_subtract, H, b), combinations_with_replacement(tiles, 2))
    return H


def _from_the_last(d: int) -> list[slice]:
    return [slice(max(0, stop - _PANEL), stop) for stop in range(d, 0, -_PANEL)]


def _tiles(size: int) -> list[slice]:
    return [slice(start, min(start + _TILE, size)) for start in range(0, size, _TILE)]


def _divide(H: Tensor, inverse: Tensor, b: slice, rows: slice) -> None:
    """Some rows of R above its block b on the diagonal, which has this inverse."""
    H[:, rows, b] = H[:, rows, b] @ inverse.mT


def _subtract(H: Tensor, b: slice, tile: tuple[slice, slice]) -> None:
    """What these rows say of a tile further up."""
    rows, columns = tile
    H[:, rows, columns].baddbmm_(H[:, rows, b], H[:, columns, b].mT, alpha=-1)


class Directions(NamedTuple):
    """What stands for R where there are fewer patches m than columns d.

    Attributes:
        P: (G, d, m) with ⟨X̃_s, P_t⟩ = R_st for s < t.
        diagonal: R_tt, (G, d), in float64.
        M: (1 + X̃ᵀ X̃ / λ)⁻¹, (G, m, m), in float64.
    """

    P: Tensor
    diagonal: Tensor
    M: Tensor


def directions(X_q: Tensor, damping: Tensor, pool: Pool) -> Directions:
    """The directions of columns X̃ (G, d, m), ``damping`` (G,) being λ.

    With M_t = (1 + Σ_{r>t} X̃_r X̃_rᵀ / λ)⁻¹, which is what later columns leave of a patch, R_tt² is
    λ + ⟨X̃_t, M_t X̃_t⟩ and P_t is M_t X̃_t / R_tt (by Woodbury's identity): matrices of m x m take the place
    of those of d x d.
    """
    groups, d, m = X_q.shape
    M = torch.eye(m, dtype=torch.float64, device=X_q.device).repeat(groups, 1, 1)
    P, diagonal = torch.empty_like(X_q), M.new_empty(groups, d)
    tiles = _tiles(m)
    for b in _from_the_last(d):
        x = X_q[:, b].double()
        left = torch.empty_like(x)
        pool.run(partial(_leave, x, M, left), tiles)
        R = root(damp(left @ x.mT, damping), pool)
        pool.run(partial(_solve, R, left), tiles)
        pool.run(partial(_take, M, left), tiles)
        P[:, b], diagonal[:, b] = left, R.diagonal(dim1=1, dim2=2)
    return Directions(P, diagonal, M)


def _leave(x: Tensor, M: Tensor, left: Tensor, some: slice) -> None:
    left[..., some] = x @ M[..., some]


def _solve(R: Tensor, left: Tensor, some: slice) -> None:
    left[..., some] = torch.linalg.solve_triangular(R, left[..., some], upper=True)


def _take(M: Tensor, left: Tensor, some: slice) -> None:
    M[:, some].baddbmm_(left[..., some].mT, left, alpha=-1)


def damp(matrices: Tensor, damping: Tensor) -> Tensor:
    """Add ``damping`` (G,) along the diagonals of (G, d, d), in place."""
    matrices.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    return matrices


def largest_eigenvalue(times: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Of matrices that multiply vectors (G, d, 1), by power iteration: only its size matters."""
    v = start
    for _ in range(20):
        v = times(v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-30))
    largest: Tensor = torch.linalg.vector_norm(v, dim=(1, 2), dtype=torch.float64)
    return largest
