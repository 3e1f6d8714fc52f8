"""What every contender of the speed benchmark is: (network, images, bits) → outcome."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Outcome:
    """What a contender hands back.

    ``weights`` gives the quantized weights by layer, once the clock has stopped; ``solver_seconds`` is
    the part of the time that chose the codes, ``solver_flops`` its operations over patches and in products
    of matrices.
    """

    weights: Callable[[], dict[str, Tensor]]
    solver_seconds: float | None = None
    solver_flops: float | None = None


Contender = Callable[[nn.Module, Tensor, int], Outcome]
