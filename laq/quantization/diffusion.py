"""GPTQ and Qronos, which spread each weight's error over the weights that come after it.

With H = R Rᵀ and R upper triangular, ‖(w - q) X̃‖ = ‖(w - q) R‖, whose t-th entry holds q_1 ... q_t
only. Making it zero, for given q_1 ... q_{t-1}, is what the optimal update of all later weights comes
down to (Frantar et al. 2023; the equivalence is that of back-substitution), so that GPTQ is the walk
along the columns with R in place of GPFQ's matrices.
"""

from functools import partial
from itertools import combinations_with_replacement
from typing import Final

import torch
from torch import Tensor

from laq.quantization.gpfq import Solution
from laq.quantization.inputs import Inputs, covariance_flops
from laq.quantization.pool import Pool
from laq.quantization.walk import Problem, targets, walk

GPTQ_DAMPING: Final = 0.01  # of the mean energy of a column, as in its authors' code
QRONOS_DAMPING: Final = 1e-6  # of the largest eigenvalue (Zhang et al. 2025, section 4)
_PANEL: Final = 256  # columns of a root that are computed at a time
_TILE: Final = 512  # rows and columns that a thread brings up to date at a time


def gptq(problem: Problem, inputs: Inputs) -> Solution:
    """GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2023): least ‖(w - q) X̃‖.

    It learns from the quantized network's inputs alone and takes the analog ones to be the same.
    """
    _, H = inputs.covariances(cross=False)
    damping = GPTQ_DAMPING * H.diagonal(dim1=1, dim2=2).mean(1)
    R = root(_damp(H, damping), inputs.pool)
    codes = walk(problem, R, inputs.pool)

    def errors() -> Tensor:
        left = problem.W.double() - problem.alphabet.decode(codes)
        damped = targets(left, R, inputs.pool).square().sum(-1)
        return damped - damping[:, None] * left.square().sum(-1)

    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1], cross=False))


def qronos(problem: Problem, inputs: Inputs) -> Solution:
    """Qronos (Zhang, Zhang, Colbert and Saab 2025): least ‖w X - q X̃‖.

    The first weight is rounded while all others stay; then they become the least-squares solution
    given it, and GPTQ goes on from there (algorithm 1 and its equivalence, theorem 3.1). That solution,
    w* H = w G, is needed as w* R alone.
    """
    G, H = inputs.covariances()
    W, pool = problem.W.double(), inputs.pool
    # On both sides: where the inputs say nothing, weights stay what they are.
    damping = QRONOS_DAMPING * _largest_eigenvalue(H)
    G, H = _damp(G, damping), _damp(H, damping)
    target = W @ G
    first = (target[..., 0] - (W[..., 1:] @ H[:, 1:, :1])[..., 0]) / H[:, None, 0, 0]
    R = root(H, pool)
    A = torch.linalg.solve_triangular(R.mT, target, upper=False, left=False)
    A[..., 0] = (first * R[:, None, 0, 0]).nan_to_num()  # 0 / 0 without any input
    codes = walk(problem, R, pool, A)

    def errors() -> Tensor:
        Q = problem.alphabet.decode(codes).double()
        return targets(Q, R, pool).square().sum(-1) - 2 * (target * Q).sum(-1)

    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


def _damp(matrices: Tensor, damping: Tensor) -> Tensor:
    """Add ``damping`` (G,) along the diagonals of (G, d, d), in place."""
    matrices.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    return matrices


def root(H: Tensor, pool: Pool) -> Tensor:
    """Upper triangular R with R Rᵀ = H, both (G, d, d); where all inputs are zero, H is the identity.

    R takes the place of H, below whose diagonal numbers are left that mean nothing.
    """
    diagonal = H.diagonal(dim1=1, dim2=2)
    diagonal.add_(diagonal == 0)
    for stop in range(H.shape[1], 0, -_PANEL):
        b = slice(max(0, stop - _PANEL), stop)
        H[:, b, b] = torch.linalg.cholesky(H[:, b, b].flip(1, 2)).flip(1, 2)
        # Its inverse, since a product of matrices is so much faster than a solver.
        unit = torch.eye(stop - b.start).to(H).expand_as(H[:, b, b])
        inverse = torch.linalg.solve_triangular(H[:, b, b], unit, upper=True)
        tiles = [slice(start, min(start + _TILE, b.start)) for start in range(0, b.start, _TILE)]
        for _ in pool.map(partial(_divide, H, inverse, b), tiles):
            pass
        for _ in pool.map(partial(_subtract, H, b), combinations_with_replacement(tiles, 2)):
            pass
    return H


def _divide(H: Tensor, inverse: Tensor, b: slice, rows: slice) -> None:
    """Some rows of R above its block b on the diagonal, which has this inverse."""
    H[:, rows, b] = H[:, rows, b] @ inverse.mT


def _subtract(H: Tensor, b: slice, tile: tuple[slice, slice]) -> None:
    """What these rows say of a tile further up."""
    rows, columns = tile
    H[:, rows, columns].baddbmm_(H[:, rows, b], H[:, columns, b].mT, alpha=-1)


def _largest_eigenvalue(H: Tensor) -> Tensor:
    """Of each (d, d), by power iteration: only its size matters."""
    v = torch.ones_like(H[..., :1])
    for _ in range(20):
        v = H @ (v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-300))
    largest: Tensor = torch.linalg.vector_norm(v, dim=(1, 2))
    return largest
