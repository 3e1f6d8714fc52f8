"""GPTQ and Qronos, which spread each weight's error over the weights that come after it.

With H = R Rᵀ and R upper triangular, ‖(w - q) X̃‖ = ‖(w - q) R‖, whose t-th entry holds q_1 ... q_t
only. Making it zero, for given q_1 ... q_{t-1}, is what the optimal update of all later weights comes
down to (Frantar et al. 2023; the equivalence is that of back-substitution), so that GPTQ is the walk
along the columns with R in place of both of GPFQ's matrices.
"""

from functools import partial
from typing import Final

import torch
from torch import Tensor

from laq.quantization.gpfq import Solution, covariance_errors
from laq.quantization.inputs import Inputs, covariance_flops
from laq.quantization.walk import Problem, walk

GPTQ_DAMPING: Final = 0.01  # of the mean energy of a column, as in its authors' code
QRONOS_DAMPING: Final = 1e-6  # of the largest eigenvalue (Zhang et al. 2025, section 4)


def gptq(problem: Problem, inputs: Inputs) -> Solution:
    """GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2023): least ‖(w - q) X̃‖.

    It learns from the quantized network's inputs alone and takes the analog ones to be the same.
    """
    _, H = inputs.covariances(cross=False)
    mean_energy = H.diagonal(dim1=1, dim2=2).mean(1)
    R = _root(_damped(H, GPTQ_DAMPING * mean_energy))
    codes = walk(problem, R, R, inputs.pool)
    errors = partial(covariance_errors, problem, codes, H, H)
    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1], cross=False))


def qronos(problem: Problem, inputs: Inputs) -> Solution:
    """Qronos (Zhang, Zhang, Colbert and Saab 2025): least ‖w X - q X̃‖.

    The first weight is rounded while all others stay; then they become the least-squares solution
    given it, and GPTQ goes on from there (algorithm 1 and its equivalence, theorem 3.1).
    """
    G, H = inputs.covariances()
    W = problem.W.double()
    # On both sides: where the inputs say nothing, weights stay what they are.
    damping = QRONOS_DAMPING * _largest_eigenvalue(H)
    G, H = _damped(G, damping), _damped(H, damping)
    R = _root(H)
    # w* H = w G, through H = R Rᵀ.
    target = W @ G
    W_best = torch.linalg.solve_triangular(R.mT, target, upper=False, left=False)
    W_best = torch.linalg.solve_triangular(R, W_best, upper=True, left=False)
    first = (target[..., 0] - (W[..., 1:] @ H[:, 1:, :1])[..., 0]) / H[:, None, 0, 0]
    A = torch.zeros_like(W)
    A[..., 0] = ((first - W_best[..., 0]) * R[:, None, 0, 0]).nan_to_num()  # 0 / 0 without any input
    codes = walk(Problem(W_best, problem.alphabet, problem.rounding), R, R, inputs.pool, A)
    errors = partial(covariance_errors, problem, codes, G, H)
    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


def _damped(matrices: Tensor, damping: Tensor) -> Tensor:
    """(G, d, d) with ``damping`` (G,) added along the diagonals."""
    return matrices + torch.diag_embed(damping[:, None].expand(-1, matrices.shape[1]))


def _root(H: Tensor) -> Tensor:
    """Upper triangular R with R Rᵀ = H, both (G, d, d); where all inputs are zero, H is the identity."""
    dead = H.diagonal(dim1=1, dim2=2) == 0
    H = H + torch.diag_embed(dead.to(H))
    lower: Tensor = torch.linalg.cholesky(H.flip(1, 2))
    return lower.flip(1, 2).contiguous()


def _largest_eigenvalue(H: Tensor) -> Tensor:
    """Of each (d, d), by power iteration: only its size matters."""
    v = torch.ones_like(H[..., :1])
    for _ in range(20):
        v = H @ (v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-300))
    largest: Tensor = torch.linalg.vector_norm(v, dim=(1, 2))
    return largest
