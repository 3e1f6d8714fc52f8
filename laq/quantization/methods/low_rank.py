"""GPTQ and Qronos where there are fewer patches m than columns d, so that X̃ X̃ᵀ (d, d) has a low rank.

Matrices of m x m take the place of those of d x d, by Woodbury's identity.
"""

from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from laq.quantization.calibration.covariance import Inputs, covariance_bytes
from laq.quantization.methods.cholesky import add_to_diagonal, cholesky, panels_from_the_last, tiles
from laq.quantization.methods.problem import LayerProblem
from laq.quantization.methods.residual import Columns, round_by_residual
from laq.quantization.threads import Pool

_LOW: Final = 0.3  # patches per column up to which this costs less than a Cholesky factor


class LowRankFactor(NamedTuple):
    """What stands for the Cholesky factor R of H = X̃ X̃ᵀ + λ.

    Attributes:
        P: (G, d, m) with ⟨X̃_s, P_t⟩ = R_st for s < t.
        diagonal: R_tt, (G, d), in float64.
        M: (1 + X̃ᵀ X̃ / λ)⁻¹, (G, m, m), in float64.
    """

    P: Tensor
    diagonal: Tensor
    M: Tensor


def has_low_rank(inputs: Inputs, device: torch.device, memory: float) -> bool:
    """Whether patches are so few that a low-rank factor is the cheaper one.

    Its columns follow each other one by one, so that on a GPU it is used only where covariances would take
    more than ``memory`` bytes.
    """
    fits = device.type != "cpu" and covariance_bytes(inputs) <= memory
    return inputs.m <= _LOW * inputs.columns and not fits


def low_rank_factor(X_q: Tensor, damping: Tensor, pool: Pool) -> LowRankFactor:
    """The factor of columns X̃ (G, d, m), ``damping`` (G,) being λ.

    With M_t = (1 + Σ_{r>t} X̃_r X̃_rᵀ / λ)⁻¹, R_tt² is λ + ⟨X̃_t, M_t X̃_t⟩ and P_t is M_t X̃_t / R_tt.
    """
    groups, d, m = X_q.shape
    M = torch.eye(m, dtype=torch.float64, device=X_q.device).repeat(groups, 1, 1)
    P, diagonal = torch.empty_like(X_q), M.new_empty(groups, d)
    parts = tiles(m)
    for b in panels_from_the_last(d):
        x = X_q[:, b].double()
        projected = torch.empty_like(x)
        pool.run(partial(_project, x, M, projected), parts)
        R = cholesky(add_to_diagonal(projected @ x.mT, damping), pool)
        pool.run(partial(_solve, R, projected), parts)
        pool.run(partial(_downdate, M, projected), parts)
        P[:, b], diagonal[:, b] = projected, R.diagonal(dim1=1, dim2=2)
    return LowRankFactor(P, diagonal, M)


def _project(x: Tensor, M: Tensor, out: Tensor, some: slice) -> None:
    out[..., some] = x @ M[..., some]


def _solve(R: Tensor, projected: Tensor, some: slice) -> None:
    projected[..., some] = torch.linalg.solve_triangular(R, projected[..., some], upper=True)


def _downdate(M: Tensor, projected: Tensor, some: slice) -> None:
    M[:, some].baddbmm_(projected[..., some].mT, projected, alpha=-1)


def round_with_low_rank(
    problem: LayerProblem, U: Tensor, X_q: Tensor, factor: LowRankFactor, pool: Pool
) -> Tensor:
    """The codes (G, N, d) of targets z_t = w_t + ⟨u, P_t⟩ / R_tt, u being the residual (w - q) X̃ so far."""
    columns = Columns(X_q, X_q, factor.P, factor.diagonal, factor.diagonal)
    return round_by_residual(problem, U, columns, pool)


def measured_errors(problem: LayerProblem, codes: Tensor, X: Tensor, X_q: Tensor) -> Tensor:
    """‖w X - q X̃‖² for every neuron, (G, N)."""
    return (problem.W @ X - problem.alphabet.decode(codes) @ X_q).double().square().sum(-1)


def low_rank_flops(inputs: Inputs, neurons: int, *, passes: int) -> float:
    """Operations of the factor and of as many ``passes`` of all neurons over the patches."""
    return 4.0 * inputs.groups * inputs.m * inputs.columns * (inputs.m + passes * neurons)
