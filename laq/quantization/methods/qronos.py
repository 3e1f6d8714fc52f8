"""Qronos, which corrects the error of the layers before as well as that of each weight.

It is GPTQ (``gptq.py``) on the weights w* that fit the float network's outputs best, given the first level.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from laq.quantization.calibration.covariance import Inputs, covariance_flops
from laq.quantization.methods.cholesky import add_to_diagonal, cholesky, largest_eigenvalue
from laq.quantization.methods.low_rank import (
    LowRankFactor,
    has_low_rank,
    low_rank_factor,
    low_rank_flops,
    measured_errors,
    round_with_low_rank,
)
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.sequential import round_sequentially, slices, upper_product
from laq.quantization.threads import Pool

DAMPING: Final = 1e-6  # of the largest eigenvalue (Zhang et al. 2025, section 4)
_ROWS: Final = 64  # neurons that a thread takes at most


def solve(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """Qronos (Zhang, Zhang, Colbert and Saab 2025): least ‖w X - q X̃‖.

    The first weight is rounded while all others stay; then they become the least-squares solution
    given it, and GPTQ goes on from there (algorithm 1 and its equivalence, theorem 3.1). That solution,
    w* H = w G, is needed as w* R alone.
    """
    if has_low_rank(inputs, problem.W.device, settings.memory):
        return _solve_with_low_rank(problem, inputs)
    G, H = inputs.covariances()
    W, pool = problem.W.double(), inputs.pool
    damping = _damping(partial(torch.matmul, H), H[..., :1])
    # On both sides: where the inputs say nothing, weights stay what they are.
    G, H = add_to_diagonal(G, damping), add_to_diagonal(H, damping)
    target = _by_rows(lambda g, rows: rows @ G[g], W, pool)
    first = (target[..., 0] - (W[..., 1:] @ H[:, 1:, :1])[..., 0]) / H[:, None, 0, 0]
    R = cholesky(H, pool)
    A = _by_rows(lambda g, rows: solve_triangular(R[g].mT, rows, upper=False, left=False), target, pool)
    A[..., 0] = first * R[:, None, 0, 0]
    codes = round_sequentially(problem, R, pool, A)

    def errors() -> Tensor:
        Q = problem.alphabet.decode(codes).double()
        return upper_product(Q, R, pool).square().sum(-1) - 2 * (target * Q).sum(-1)

    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


def _solve_with_low_rank(problem: LayerProblem, inputs: Inputs) -> Solution:
    """The same with a low-rank factor in the place of R: w* is w + w (X - X̃) (X̃ᵀ X̃ + λ)⁻¹ X̃ᵀ."""
    X, X_q = inputs.gather_all()
    damping = _damping(lambda v: X_q @ (X_q.mT @ v), X_q[..., :1])
    factor = low_rank_factor(X_q, damping, inputs.pool)
    W, X_0 = problem.W.double(), X_q[:, 0, :, None].double()
    gap, back = (X - X_q).double(), X_q.double().mT / damping[:, None, None]
    W_best = _by_rows(lambda g, w: w + w @ gap[g] @ factor.M[g] @ back[g], W, inputs.pool)
    first = W[..., 0] + (W @ (gap @ X_0))[..., 0] / (X_0.square().sum((1, 2)) + damping)[:, None]
    codes = problem.alphabet.encode(first[..., None])
    U = ((W_best[..., :1] - problem.alphabet.decode(codes)) @ X_0.mT).to(X_q)
    rest = LayerProblem(W_best, problem.alphabet).part(slice(None), slice(None), slice(1, None))
    later = LowRankFactor(factor.P[:, 1:], factor.diagonal[:, 1:], factor.M)
    codes = torch.cat([codes, round_with_low_rank(rest, U, X_q[:, 1:], later, inputs.pool)], 2)
    errors = partial(measured_errors, problem, codes, X, X_q)
    return Solution(codes, errors, low_rank_flops(inputs, problem.W.shape[1], passes=2))


def _damping(times: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """λ (G,) of H, which ``times`` multiplies vectors with; 1 in groups whose inputs are all zero."""
    damping = DAMPING * largest_eigenvalue(times, torch.ones_like(like))
    return torch.where(damping > 0, damping, 1.0)


def _by_rows(function: Callable[[slice, Tensor], Tensor], rows: Tensor, pool: Pool) -> Tensor:
    """What ``function`` makes of ``rows`` (G, N, d), given the groups and the rows of some neurons."""
    result = torch.empty_like(rows)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        result[g, n] = function(g, rows[g, n])

    pool.run(fill, slices(rows, _ROWS))
    return result
