"""GPFQ, greedy path-following quantization, in two exact forms.

Neuron by neuron, with ``u = 0`` at first and for t = 1 ... d (Lybrand and Saab 2021; Zhang, Zhou and
Saab 2023, equation 5)::

    u ← u + w_t X_t;   q_t = nearest(⟨X̃_t, u⟩ / ‖X̃_t‖²);   u ← u - q_t X̃_t

where X_t and X̃_t are the t-th columns of the float and the quantized network's inputs. Where X̃_t is zero,
q_t is the level nearest to w_t.

**Residual form.** The recursion as it stands, for some columns at a time (``residual.py``).

**Covariance form.** With G = X X̃ᵀ and H = X̃ X̃ᵀ over all columns, ⟨X̃_t, u⟩ is
Σ_{s≤t} w_s G_st - Σ_{s<t} q_s H_st, and inputs are not needed any more. Sums over patches are in float32
inside a chunk of images and in float64 across chunks; the recursion is in float64.
"""

from functools import partial

import torch
from torch import Tensor

from laq.quantization.calibration.covariance import (
    Inputs,
    choose_form,
    covariance_bytes,
    covariance_flops,
    residual_flops,
)
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.residual import gpfq_columns, round_by_residual
from laq.quantization.methods.sequential import round_sequentially, upper_product


def solve(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """GPFQ in the form that the option ``form`` names; ``auto`` is the cheaper one that fits the memory.

    On a GPU that is the covariance form, whose columns do not follow each other one by one.
    """
    form = settings.options["form"]
    if form == "auto" and problem.W.device.type != "cpu" and covariance_bytes(inputs) <= settings.memory:
        form = "covariance"
    if form == "auto":
        form = choose_form(inputs, problem.W.shape[1], settings.memory)
    return gpfq_residual(problem, inputs) if form == "residual" else gpfq_covariance(problem, inputs)


def gpfq_covariance(problem: LayerProblem, inputs: Inputs) -> Solution:
    """GPFQ in its covariance form."""
    G, H = inputs.covariances()
    codes = round_sequentially(problem, H, inputs.pool, upper_product(problem.W, G, inputs.pool))
    errors = partial(covariance_errors, problem, codes, G, H)
    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


def covariance_errors(problem: LayerProblem, codes: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """‖w X - q X̃‖² - ‖w X‖² = q H qᵀ - 2 w G qᵀ for every neuron, (G, N)."""
    W, Q = problem.W.double(), problem.alphabet.decode(codes).double()
    return ((Q @ H - 2 * (W @ G)) * Q).sum(-1)


def gpfq_residual(problem: LayerProblem, inputs: Inputs) -> Solution:
    """GPFQ in its residual form; the errors are ‖u‖², exactly."""
    patches = list(inputs.pool.map(lambda make: make(), inputs.chunks))
    U = problem.W.new_zeros(*problem.W.shape[:2], inputs.m)
    codes = torch.empty_like(problem.W, dtype=torch.int32)
    for g, b in inputs.blocks():
        X, X_q = inputs.gather(patches, g, b)
        columns = gpfq_columns(X, X_q, inputs.pool)
        codes[g, :, b] = round_by_residual(problem.part(g, slice(None), b), U[g], columns, inputs.pool)
    return Solution(codes, partial(_squared_norms, U), residual_flops(inputs, problem.W.shape[1]))


def _squared_norms(U: Tensor) -> Tensor:
    """‖u‖² of the neurons' residuals (G, N, m): (G, N) in float64."""
    norms: Tensor = torch.linalg.vector_norm(U, dim=2, dtype=torch.float64)
    return norms.square()
