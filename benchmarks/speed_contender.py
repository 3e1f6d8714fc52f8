"""The interface of the speed benchmark's contenders: (network, images, bits) → outcome."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Outcome:
    """The result of a contender.

    ``weights`` returns the quantized weights by layer and is called after the clock has stopped.
    ``solver_seconds`` is the time spent on choosing codes, ``solver_flops`` the number of operations for it.
    """

    weights: Callable[[], dict[str, Tensor]]
    solver_seconds: float | None = None
    solver_flops: float | None = None


Contender = Callable[[nn.Module, Tensor, int], Outcome]
