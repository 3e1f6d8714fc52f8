"""A quantized network as tensors: codes in the smallest integers that hold them, steps, the rest."""

from typing import Final

import torch
from torch import Tensor, nn

from laq.quantization.lockstep import QuantizedNetwork

_INTEGERS: Final = (torch.int8, torch.int16, torch.int32, torch.int64)


def to_tensors(quantized: QuantizedNetwork) -> dict[str, Tensor]:
    """Everything that ``restore`` needs, by name: ``codes:LAYER``, ``step:LAYER`` and float tensors."""
    tensors = {name: t.contiguous() for name, t in quantized.network.state_dict().items()}
    for layer in quantized.layers:
        del tensors[f"{layer.name}.weight"]
        tensors[f"codes:{layer.name}"] = _narrow(layer.codes)
        tensors[f"step:{layer.name}"] = layer.step.contiguous()
    return tensors


def restore(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Turn ``network``, of the same architecture, into the quantized one, bit for bit."""
    state = {name: t for name, t in tensors.items() if ":" not in name}
    for name, codes in tensors.items():
        if name.startswith("codes:"):
            layer = name.removeprefix("codes:")
            step = tensors[f"step:{layer}"]
            state[f"{layer}.weight"] = codes.to(step.dtype) * step
    network.load_state_dict(state)


def _narrow(codes: Tensor) -> Tensor:
    low, high = int(codes.min()), int(codes.max())
    kind = next(k for k in _INTEGERS if torch.iinfo(k).min <= low and high <= torch.iinfo(k).max)
    return codes.to(kind).contiguous()
