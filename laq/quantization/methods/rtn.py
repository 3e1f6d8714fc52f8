"""Round-to-nearest: every weight becomes the level nearest to it, whatever the inputs."""

from typing import Final

import torch
from torch import Tensor

from laq.quantization.calibration.covariance import Inputs, covariance_bytes, covariance_flops
from laq.quantization.calibration.patches import Patches
from laq.quantization.methods.gpfq import covariance_errors
from laq.quantization.methods.problem import LayerProblem, Settings, Solution

_BYTES: Final = 8  # of a number in float64, the larger of both types


def solve(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """Round to the nearest level.

    Where a radius is to be chosen by the error, that error is computed from covariances, or, if they do not
    fit into the memory, from a few images at a time.
    """
    codes = problem.alphabet.encode(problem.W)
    groups, neurons, d = problem.W.shape
    if covariance_bytes(inputs) <= settings.memory:
        return Solution(
            codes,
            errors=lambda: covariance_errors(problem, codes, *inputs.covariances()),
            flops_of_errors=lambda: covariance_flops(inputs, neurons),
        )
    return Solution(
        codes,
        errors=lambda: streamed_errors(problem, codes, inputs, settings.memory),
        flops_of_errors=lambda: 4.0 * groups * neurons * d * inputs.m,
    )


def streamed_errors(problem: LayerProblem, codes: Tensor, inputs: Inputs, memory: float) -> Tensor:
    """‖w X - q X̃‖² for every neuron, (G, N), from as many images at a time as fit into the memory."""
    W, Q = problem.W, problem.alphabet.decode(codes)
    workers = inputs.pool.workers

    def of_chunk(patches: Patches) -> Tensor:
        groups, neurons, d = W.shape
        per_image = _BYTES * 2 * groups * (d + neurons) * patches.m / patches.images
        step = max(1, int(memory / workers / per_image))
        total = torch.zeros(groups, neurons, dtype=torch.float64, device=W.device)
        for start in range(0, patches.images, step):
            part = patches.of_images(start, start + step)
            X, X_q = W.new_empty(2, groups, d, part.m)
            part.write(part.X, slice(None), slice(0, d), X)
            part.write(part.X_q, slice(None), slice(0, d), X_q)
            total += (W @ X - Q @ X_q).square().sum(-1, dtype=torch.float64)
        return total

    parts = inputs.pool.map(lambda make: of_chunk(make()), inputs.chunks)
    return torch.stack(list(parts)).sum(0)
