"""GPFQ, greedy path-following quantization, in two exact forms.

Neuron by neuron, with ``u = 0`` at first and for t = 1 ... d (Lybrand and Saab 2021; Zhang, Zhou and
Saab 2023, equation 5)::

    u ← u + w_t X_t;   q_t = nearest(⟨X̃_t, u⟩ / ‖X̃_t‖²);   u ← u - q_t X̃_t

where X_t and X̃_t are the t-th columns of the analog and the quantized network's inputs.

**Residual form.** The recursion as it stands, for some columns at a time (``columns.follow``).

**Covariance form.** With G = X X̃ᵀ and H = X̃ X̃ᵀ over all columns, ⟨X̃_t, u⟩ is
Σ_{s≤t} w_s G_st - Σ_{s<t} q_s H_st, and inputs are not needed any more. Sums over patches are in float32
inside a chunk of images and in float64 across chunks; the walk is in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from laq.quantization.calibration.covariance import Inputs, covariance_flops, residual_flops
from laq.quantization.methods.residual import follow, gpfq_columns
from laq.quantization.methods.sequential import Problem, targets, walk


@dataclass(frozen=True)
class Solution:
    """Codes (G, N, d), int32, and what they took.

    Attributes:
        errors: computes, per neuron (G, N), the squared error up to a constant of the neuron: only a
            choice among alphabets needs it.
        flops: operations in products and sums over patches, and of matrices.
    """

    codes: Tensor
    errors: Callable[[], Tensor]
    flops: float


def gpfq_covariance(problem: Problem, inputs: Inputs) -> Solution:
    """GPFQ in its covariance form."""
    G, H = inputs.covariances()
    codes = walk(problem, H, inputs.pool, targets(problem.W, G, inputs.pool))
    errors = partial(covariance_errors, problem, codes, G, H)
    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


def covariance_errors(problem: Problem, codes: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """‖w X - q X̃‖² - ‖w X‖² = q H qᵀ - 2 w G qᵀ for every neuron, (G, N)."""
    W, Q = problem.W.double(), problem.alphabet.decode(codes).double()
    return ((Q @ H - 2 * (W @ G)) * Q).sum(-1)


def gpfq_residual(problem: Problem, inputs: Inputs) -> Solution:
    """GPFQ in its residual form; the errors are ‖u‖², exactly."""
    patches = list(inputs.pool.map(lambda make: make(), inputs.chunks))
    U = problem.W.new_zeros(*problem.W.shape[:2], inputs.m)
    codes = torch.empty_like(problem.W, dtype=torch.int32)
    for g, b in inputs.blocks():
        X, X_q = inputs.gather(patches, g, b)
        columns = gpfq_columns(X, X_q, inputs.pool)
        codes[g, :, b] = follow(problem.part(g, slice(None), b), U[g], columns, inputs.pool)
    return Solution(codes, partial(_squares, U), residual_flops(inputs, problem.W.shape[1]))


def _squares(U: Tensor) -> Tensor:
    """Of the neurons' residuals' norms, (G, N)."""
    norms: Tensor = torch.linalg.vector_norm(U, dim=2, dtype=torch.float64)
    return norms.square()
