"""The contenders ``brevitas-gpfq``, ``-gptq`` and ``-qronos``, set up like Brevitas's own PTQ example.

Only weights are quantized, per output channel, with a symmetric narrow range. Steps are fixed from the
original weights before any is changed, columns are quantized in their natural order, and all images form one
batch.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import brevitas.nn as qnn
import torch
from brevitas.core.scaling import ParameterFromStatsFromParameterScaling
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.qronos import Qronos
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant.scaled_int import Int8WeightPerChannelFloat
from speed_contender import Contender, Outcome
from torch import Tensor, nn

_MODES: Final[dict[str, Callable[..., Any]]] = {
    "gpfq": gpfq_mode,
    "gptq": partial(gptq_mode, use_quant_activations=False, create_weight_orig=False),
    "qronos": partial(gpfq_mode, algorithm_impl=Qronos),
}


def contender(method: str) -> Contender:
    """The contender that quantizes by Brevitas with ``method``."""
    return partial(_quantize, mode=_MODES[method])


@torch.no_grad()
def _quantize(network: nn.Module, images: Tensor, bits: int, mode: Callable[..., Any]) -> Outcome:
    quantized = layerwise_quantize(copy.deepcopy(network), _layer_map(bits, images.device)).eval()
    quantized(images[:1])  # fixes the steps
    with mode(quantized, act_order=False, device=images.device.type) as algorithm:
        for _ in range(algorithm.num_layers):
            algorithm.model(images)
            algorithm.update()

    def weights() -> dict[str, Tensor]:
        layers = [
            (n, m) for n, m in quantized.named_modules() if isinstance(m, qnn.QuantConv2d | qnn.QuantLinear)
        ]
        with torch.no_grad():
            return {name: layer.quant_weight().value for name, layer in layers}

    return Outcome(weights)


def _layer_map(
    bits: int, device: torch.device
) -> dict[type[nn.Module], tuple[type[nn.Module], dict[str, Any]]]:
    """The layers that replace Conv2d and Linear: their weights are quantized, everything else is float."""
    weights = Int8WeightPerChannelFloat.let(
        bit_width=bits, narrow_range=True, scaling_impl=ParameterFromStatsFromParameterScaling
    )
    options = {
        "weight_quant": weights,
        "bias_quant": None,
        "input_quant": None,
        "output_quant": None,
        "return_quant_tensor": False,
        "device": device,
    }
    return {nn.Conv2d: (qnn.QuantConv2d, options), nn.Linear: (qnn.QuantLinear, options)}
