"""AdaRound, which learns for each weight whether it is rounded down or up.

Adam moves all weights of a layer between the levels below and above them (``soft_rounding``), so that the
layer's error is small, until each has chosen one (Nagel et al. 2020, equations 21 to 25).
"""

from functools import partial
from typing import Final

import torch
from torch import Tensor

from laq.quantization.calibration.covariance import Inputs, covariance_flops
from laq.quantization.methods.gpfq import covariance_errors
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.sequential import slices
from laq.quantization.methods.soft_rounding import TINY, SoftCodes, schedule

RATE: Final = 0.05  # of Adam
_ROWS: Final = 64  # neurons that a thread takes at most


def solve(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """AdaRound, for ‖w X - q X̃‖² over all images at once, which two covariances sum up.

    The paper draws 32 images for each of its 10,000 iterations, so that fewer do here, and has the activation
    function after the layer within the error, which is left out here. Its λ is 0.01 beside an error in the
    layer's own unit; here the error is divided by a column's mean energy and the squared step, so that λ says
    the same for every layer.
    """
    iterations: int = settings.options["iterations"]
    G, H = inputs.covariances()
    H = (H / inputs.m).to(problem.W)
    target = (problem.W.double() @ G / inputs.m).to(problem.W)
    codes = torch.empty_like(problem.W, dtype=torch.int32)

    def fill(part: tuple[slice, slice]) -> None:
        g, n = part
        some = problem.part(g, n, slice(None))
        codes[g, n] = _rounded(some, target[g, n], H[g], iterations)

    inputs.pool.run(fill, slices(problem.W, _ROWS))
    groups, neurons, d = problem.W.shape
    flops = covariance_flops(inputs, neurons) + 2.0 * iterations * groups * neurons * d * d
    return Solution(codes, partial(covariance_errors, problem, codes, G, H.double() * inputs.m), flops)


def _rounded(problem: LayerProblem, target: Tensor, H: Tensor, iterations: int) -> Tensor:
    """Codes (G, N, d), given ``target`` = w X X̃ᵀ / m and H = X̃ X̃ᵀ / m."""
    soft, step = SoftCodes(problem.W, problem.alphabet), problem.alphabet.step
    energy = (H.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * step.square()).clamp(min=TINY)
    for sharpness in schedule(iterations):
        now = soft.now()
        error = soft.weights(now) @ H - target
        soft.learn(now, 2 * error * step / energy, sharpness, RATE)
    return soft.codes()
