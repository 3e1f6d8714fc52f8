"""GPTQ and Qronos, which spread each weight's error over the weights that come after it.

With H = R Rᵀ and R upper triangular, ‖(w - q) X̃‖ = ‖(w - q) R‖, whose t-th entry holds q_1 ... q_t
only. Making it zero, for given q_1 ... q_{t-1}, is what the optimal update of all later weights comes
down to (Frantar et al. 2023; the equivalence is that of back-substitution), so that GPTQ is the walk
along the columns with R in place of GPFQ's matrices.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from laq.quantization.calibration.covariance import Inputs, covariance_flops
from laq.quantization.methods.cholesky import Directions, damp, directions, largest_eigenvalue, root
from laq.quantization.methods.gpfq import Solution
from laq.quantization.methods.residual import Columns, follow
from laq.quantization.methods.sequential import Problem, slices, targets, walk
from laq.quantization.threads import Pool

GPTQ_DAMPING: Final = 0.01  # of the mean energy of a column, as in its authors' code
QRONOS_DAMPING: Final = 1e-6  # of the largest eigenvalue (Zhang et al. 2025, section 4)
_ROWS: Final = 64  # neurons that a thread takes at most
_FEW: Final = 0.3  # patches per column up to which directions cost less than a root


def gptq(problem: Problem, inputs: Inputs) -> Solution:
    """GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2023): least ‖(w - q) X̃‖.

    It learns from the quantized network's inputs alone and takes the analog ones to be the same.
    """
    if inputs.m <= _FEW * inputs.columns:
        return _gptq_of_few(problem, inputs)
    _, H = inputs.covariances(cross=False)
    damping = GPTQ_DAMPING * H.diagonal(dim1=1, dim2=2).mean(1)
    R = root(damp(H, damping), inputs.pool)
    codes = walk(problem, R, inputs.pool)

    def errors() -> Tensor:
        left = problem.W.double() - problem.alphabet.decode(codes)
        damped = targets(left, R, inputs.pool).square().sum(-1)
        return damped - damping[:, None] * left.square().sum(-1)

    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1], cross=False))


def _gptq_of_few(problem: Problem, inputs: Inputs) -> Solution:
    """The same with directions in the place of R."""
    _, X_q = inputs.gather_all()
    damping = GPTQ_DAMPING * X_q.double().square().sum(2).mean(1)
    found = directions(X_q, damping, inputs.pool)
    U = problem.W.new_zeros(*problem.W.shape[:2], inputs.m)
    codes = _follow(problem, U, X_q, found, inputs)
    return Solution(codes, partial(_errors, problem, codes, X_q, X_q), _flops(inputs, problem, 1))


def qronos(problem: Problem, inputs: Inputs) -> Solution:
    """Qronos (Zhang, Zhang, Colbert and Saab 2025): least ‖w X - q X̃‖.

    The first weight is rounded while all others stay; then they become the least-squares solution
    given it, and GPTQ goes on from there (algorithm 1 and its equivalence, theorem 3.1). That solution,
    w* H = w G, is needed as w* R alone.
    """
    if inputs.m <= _FEW * inputs.columns:
        return _qronos_of_few(problem, inputs)
    G, H = inputs.covariances()
    W, pool = problem.W.double(), inputs.pool
    # On both sides: where the inputs say nothing, weights stay what they are.
    damping = QRONOS_DAMPING * largest_eigenvalue(partial(torch.matmul, H), torch.ones_like(H[..., :1]))
    G, H = damp(G, damping), damp(H, damping)
    target = _by_rows(lambda g, rows: rows @ G[g], W, pool)
    first = (target[..., 0] - (W[..., 1:] @ H[:, 1:, :1])[..., 0]) / H[:, None, 0, 0]
    R = root(H, pool)
    A = _by_rows(lambda g, rows: solve_triangular(R[g].mT, rows, upper=False, left=False), target, pool)
    A[..., 0] = (first * R[:, None, 0, 0]).nan_to_num()  # 0 / 0 without any input
    codes = walk(problem, R, pool, A)

    def errors() -> Tensor:
        Q = problem.alphabet.decode(codes).double()
        return targets(Q, R, pool).square().sum(-1) - 2 * (target * Q).sum(-1)

    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


def _qronos_of_few(problem: Problem, inputs: Inputs) -> Solution:
    """The same with directions in the place of R: w* is w + w (X - X̃) (X̃ᵀ X̃ + λ)⁻¹ X̃ᵀ."""
    X, X_q = inputs.gather_all()
    start = torch.ones_like(X_q[..., :1])
    damping = QRONOS_DAMPING * largest_eigenvalue(lambda v: X_q @ (X_q.mT @ v), start)
    found = directions(X_q, damping, inputs.pool)
    W, X_0 = problem.W.double(), X_q[:, 0, :, None].double()
    gap, pull = (X - X_q).double(), X_q.double().mT / damping.clamp(min=1e-300)[:, None, None]
    W_best = _by_rows(lambda g, w: w + w @ gap[g] @ found.M[g] @ pull[g], W, inputs.pool)
    first = W[..., 0] + (W @ (gap @ X_0))[..., 0] / (X_0.square().sum((1, 2)) + damping)[:, None]
    codes = problem.alphabet.encode(first.nan_to_num()[..., None])
    U = ((W_best[..., :1] - problem.alphabet.decode(codes)) @ X_0.mT).to(X_q)
    rest = Problem(W_best, problem.alphabet).part(slice(None), slice(None), slice(1, None))
    later = Directions(found.P[:, 1:], found.diagonal[:, 1:], found.M)
    codes = torch.cat([codes, _follow(rest, U, X_q[:, 1:], later, inputs)], 2)
    return Solution(codes, partial(_errors, problem, codes, X, X_q), _flops(inputs, problem, 2))


def _by_rows(function: Callable[[slice, Tensor], Tensor], rows: Tensor, pool: Pool) -> Tensor:
    """What ``function`` makes of ``rows`` (G, N, d), given the groups and the rows of some neurons."""
    result = torch.empty_like(rows)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        result[g, n] = function(g, rows[g, n])

    pool.run(fill, slices(rows, _ROWS))
    return result


def _follow(problem: Problem, U: Tensor, X_q: Tensor, found: Directions, inputs: Inputs) -> Tensor:
    """The path whose target is z_t = w_t + ⟨u, P_t⟩ / R_tt."""
    scales = found.diagonal.expand(2, -1, -1)
    return follow(problem, U, Columns(X_q, X_q, found.P, scales), inputs.pool)


def _errors(problem: Problem, codes: Tensor, X: Tensor, X_q: Tensor) -> Tensor:
    """‖w X - q X̃‖² for every neuron, (G, N)."""
    return (problem.W @ X - problem.alphabet.decode(codes) @ X_q).double().square().sum(-1)


def _flops(inputs: Inputs, problem: Problem, passes: int) -> float:
    """Operations with ``directions`` and as many ``passes`` of all neurons over the patches."""
    groups, neurons, d = problem.W.shape
    return 4.0 * groups * inputs.m * d * (inputs.m + passes * neurons)
