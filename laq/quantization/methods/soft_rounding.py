"""Soft rounding, by which weights learn whether they go down or up; AdaRound and BRECQ share it.

Between the level below a weight and the one above stands a number h in [0, 1], made of a real number V by a
sigmoid that is stretched and clipped. A regularizer, which gains in sharpness, drives every h to 0 or 1
(Nagel et al. 2020, equations 23 and 24).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from laq.quantization.alphabet import Alphabet

STRETCH: Final = (-0.1, 1.1)  # γ and ζ of equation 23
SHARPNESS: Final = (20.0, 2.0)  # β of equation 24, at first and in the end
WARM_UP: Final = 0.2  # of the iterations, without the regularizer
WEIGHT: Final = 1.0  # λ of equation 25, beside errors without a unit
TINY: Final = 1e-8
_DECAYS: Final = (0.9, 0.999)  # of Adam's two means


@dataclass(frozen=True)
class SoftRounding:
    """Where a weight is between two levels, for real numbers V."""

    h: Tensor
    slope: Tensor  # of h by V

    @classmethod
    def of(cls, V: Tensor) -> Self:
        """The numbers h, and their slopes, of the shape of V."""
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


class SoftCodes:
    """A layer's codes while Adam learns them: those below the weights, and a number in [0, 1] to each."""

    def __init__(self, W: Tensor, alphabet: Alphabet) -> None:
        """Begin where the weights are.

        Args:
            W: float32 or float64, of any shape over which the alphabet's steps broadcast.
            alphabet: the levels.
        """
        self.alphabet = alphabet
        place = (alphabet.in_steps(W) - alphabet.offset).clamp(alphabet.low, alphabet.high)
        self._below = place.floor().clamp(max=alphabet.high - 1)
        self._V = SoftRounding.inverse(place - self._below)
        self._means = torch.zeros_like(W), torch.zeros_like(W)
        self._taken = 0

    def now(self) -> SoftRounding:
        """Where the weights are between their levels."""
        return SoftRounding.of(self._V)

    def weights(self, now: SoftRounding) -> Tensor:
        """The weights there."""
        return self.alphabet.decode(self._below + now.h)

    def learn(self, now: SoftRounding, gradient: Tensor, sharpness: float | None, rate: float) -> None:
        """Take one of Adam's steps.

        Args:
            now: where the weights are.
            gradient: of the error by h.
            sharpness: of the regularizer; None leaves it out.
            rate: of Adam.
        """
        if sharpness is not None:
            side = 2 * now.h - 1
            gradient = gradient - 2 * WEIGHT * sharpness * side.abs().pow(sharpness - 1) * side.sign()
        gradient = gradient * now.slope
        self._taken += 1
        for mean, value, decay in zip(self._means, (gradient, gradient.square()), _DECAYS, strict=True):
            mean.lerp_(value, 1 - decay)
        first, second = (
            mean / (1 - decay**self._taken) for mean, decay in zip(self._means, _DECAYS, strict=True)
        )
        self._V.sub_(rate * first / (second.sqrt() + TINY))

    def codes(self) -> Tensor:
        """The codes (int32) of the nearer levels."""
        return (self._below + (self.now().h >= 0.5)).to(torch.int32)


def schedule(iterations: int) -> Iterator[float | None]:
    """The regularizer's sharpness β in each iteration; None while there is no regularizer."""
    first, last = SHARPNESS
    warm = math.ceil(WARM_UP * iterations)
    for number in range(iterations):
        yield None if number < warm else first + (last - first) * (number - warm) / (iterations - warm)
