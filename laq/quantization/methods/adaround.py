"""AdaRound, which learns for each weight whether it is rounded down or up.

Between the level below a weight and the one above stands a number h in [0, 1], made of a real number V by a
sigmoid that is stretched and clipped. Adam makes the layer's error small, and a regularizer, which gains in
sharpness, drives every h to 0 or 1 (Nagel et al. 2020, equations 21 to 25).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from laq.quantization.calibration.covariance import Inputs, covariance_flops
from laq.quantization.methods.gpfq import covariance_errors
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.sequential import slices

STRETCH: Final = (-0.1, 1.1)  # γ and ζ of equation 23
SHARPNESS: Final = (20.0, 2.0)  # β of equation 24, at first and in the end
WARM_UP: Final = 0.2  # of the iterations, without the regularizer
WEIGHT: Final = 1.0  # λ of equation 25, beside errors without a unit
RATE: Final = 0.05  # of Adam
_DECAYS: Final = (0.9, 0.999)  # of Adam's two means
_TINY: Final = 1e-8
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


@dataclass(frozen=True)
class _SoftRounding:
    """Where a weight is between two levels, for real numbers V."""

    h: Tensor
    slope: Tensor  # of h by V

    @classmethod
    def of(cls, V: Tensor) -> "_SoftRounding":
        low, high = STRETCH
        share = V.sigmoid()
        stretched = share * (high - low) + low
        slope = (high - low) * share * (1 - share)
        return cls(stretched.clamp(0, 1), torch.where((stretched > 0) & (stretched < 1), slope, 0))

    @classmethod
    def inverse(cls, h: Tensor) -> Tensor:
        """The V of an h."""
        low, high = STRETCH
        return ((h - low) / (high - low)).logit()


def _rounded(problem: LayerProblem, target: Tensor, H: Tensor, iterations: int) -> Tensor:
    """Codes (G, N, d), given ``target`` = w X X̃ᵀ / m and H = X̃ X̃ᵀ / m."""
    alphabet = problem.alphabet
    place = (alphabet.in_steps(problem.W) - alphabet.offset).clamp(alphabet.low, alphabet.high)
    below = place.floor().clamp(max=alphabet.high - 1)
    V = _SoftRounding.inverse(place - below)
    means = torch.zeros_like(V), torch.zeros_like(V)
    energy = (H.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * alphabet.step.square()).clamp(min=_TINY)
    for number, sharpness in enumerate(_schedule(iterations), start=1):
        now = _SoftRounding.of(V)
        error = alphabet.decode(below + now.h) @ H - target
        gradient = 2 * error * alphabet.step / energy
        if sharpness is not None:
            side = 2 * now.h - 1
            gradient -= 2 * WEIGHT * sharpness * side.abs().pow(sharpness - 1) * side.sign()
        _step(V, gradient * now.slope, means, number)
    return (below + (_SoftRounding.of(V).h >= 0.5)).to(torch.int32)


def _schedule(iterations: int) -> Iterator[float | None]:
    """The regularizer's sharpness β in each iteration; None while there is no regularizer."""
    first, last = SHARPNESS
    warm = math.ceil(WARM_UP * iterations)
    for number in range(iterations):
        yield None if number < warm else first + (last - first) * (number - warm) / (iterations - warm)


def _step(V: Tensor, gradient: Tensor, means: tuple[Tensor, Tensor], number: int) -> None:
    """One of Adam's steps, in place."""
    for mean, value, decay in zip(means, (gradient, gradient.square()), _DECAYS, strict=True):
        mean.lerp_(value, 1 - decay)
    first, second = (mean / (1 - decay**number) for mean, decay in zip(means, _DECAYS, strict=True))
    V.sub_(RATE * first / (second.sqrt() + _TINY))
