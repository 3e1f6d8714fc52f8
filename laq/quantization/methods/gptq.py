"""GPTQ, which spreads each weight's error over the weights that come after it.

With H = X̃ X̃ᵀ + λ = R Rᵀ and R upper triangular, ‖(w - q) X̃‖ = ‖(w - q) R‖, whose t-th entry holds
q_1 ... q_t only. Making it zero, for given q_1 ... q_{t-1}, is what the optimal update of all later weights
comes down to (Frantar et al. 2023; the equivalence is that of back-substitution), so that GPTQ is the
sequential rounding of ``sequential.py`` with R in place of GPFQ's matrices.
"""

from functools import partial
from typing import Final

from torch import Tensor

from laq.quantization.calibration.covariance import Inputs, covariance_flops
from laq.quantization.methods.cholesky import add_to_diagonal, cholesky
from laq.quantization.methods.low_rank import (
    has_low_rank,
    low_rank_factor,
    low_rank_flops,
    measured_errors,
    round_with_low_rank,
)
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.sequential import round_sequentially, upper_product

DAMPING: Final = 0.01  # of the mean energy of a column, as in its authors' code


def solve(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2023): least ‖(w - q) X̃‖.

    It learns from the quantized network's inputs alone and takes the float network's to be the same.
    """
    if has_low_rank(inputs, problem.W.device, settings.memory):
        return _solve_with_low_rank(problem, inputs)
    _, H = inputs.covariances(cross=False)
    damping = DAMPING * H.diagonal(dim1=1, dim2=2).mean(1)
    R = cholesky(add_to_diagonal(H, damping), inputs.pool)
    codes = round_sequentially(problem, R, inputs.pool)

    def errors() -> Tensor:
        difference = problem.W.double() - problem.alphabet.decode(codes)
        damped = upper_product(difference, R, inputs.pool).square().sum(-1)
        return damped - damping[:, None] * difference.square().sum(-1)

    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1], cross=False))


def _solve_with_low_rank(problem: LayerProblem, inputs: Inputs) -> Solution:
    """The same with a low-rank factor in the place of R."""
    _, X_q = inputs.gather_all()
    damping = DAMPING * X_q.double().square().sum(2).mean(1)
    factor = low_rank_factor(X_q, damping, inputs.pool)
    U = problem.W.new_zeros(*problem.W.shape[:2], inputs.m)
    codes = round_with_low_rank(problem, U, X_q, factor, inputs.pool)
    errors = partial(measured_errors, problem, codes, X_q, X_q)
    return Solution(codes, errors, low_rank_flops(inputs, problem.W.shape[1], passes=1))
