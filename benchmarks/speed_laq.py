"""The contender ``laq-METHOD``: this project's engine; ``-sampled`` uses as many patches as GPFQ's paper."""

from functools import partial
from typing import Any, Final

from speed_contender import Contender, Outcome
from speed_plan import RETAIN_RATE
from torch import Tensor, nn

from laq.quantization import Recipe, quantize

_SAMPLED: Final = "-sampled"


def contender(name: str) -> Contender:
    """The contender for ``name``: a method, which ends in ``-sampled`` unless it uses every patch."""
    return partial(
        _quantize,
        method=name.removesuffix(_SAMPLED),
        retain_rate=RETAIN_RATE if name.endswith(_SAMPLED) else 1.0,
    )


def _quantize(network: nn.Module, images: Tensor, bits: int, method: Any, retain_rate: float) -> Outcome:
    recipe = Recipe(
        bits=bits, method=method, alphabet="symmetric", radius=1.0, retain_rate=retain_rate, seed=0
    )
    result = quantize(network, images, recipe)

    def weights() -> dict[str, Tensor]:
        return {n.name: result.network.get_submodule(n.name).weight.detach() for n in result.layers}

    seconds, flops = (
        sum(values) for values in zip(*((n.seconds, n.flops) for n in result.layers), strict=True)
    )
    return Outcome(weights, seconds, flops)
