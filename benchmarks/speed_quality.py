"""Measures the quality of a contender's weights, in the same way for all."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

_LAYERS: Final = (nn.Conv2d, nn.Linear)
_BATCH: Final = 16


@dataclass(frozen=True)
class Quality:
    """The number of quantized layers, the most levels of an output channel, and the errors.

    Errors are ‖Y - Ỹ‖ / ‖Y‖ over the calibration images: ``layer_error`` is the mean over the layers'
    outputs, ``output_error`` that of the network's output.
    """

    layers: int
    levels: int
    layer_error: float
    output_error: float

    def check(self, network: nn.Module, bits: int) -> None:
        """Check that the contender quantized every layer.

        Raises:
            ValueError: a layer was left out, or has more levels than ``bits`` can hold.
        """
        expected = sum(isinstance(module, _LAYERS) for module in network.modules())
        if self.layers != expected:
            raise ValueError(f"{self.layers} of {expected} layers are quantized")
        if self.levels > 2**bits - 1:
            raise ValueError(f"{self.levels} levels in a channel at {bits} bits")


@torch.no_grad()
def quality(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Quality:
    """The quality of the network with ``weights`` (by layer) instead of its own."""
    quantized = copy.deepcopy(network)
    for name, weight in weights.items():
        quantized.get_submodule(name).weight.copy_(weight)
    sums = _squares(network, quantized, list(weights), images)
    errors = {name: (error / max(size, 1e-30)) ** 0.5 for name, (size, error) in sums.items()}
    output = errors.pop("")
    return Quality(
        len(weights), max(map(levels, weights.values())), sum(errors.values()) / len(errors), output
    )


def levels(weight: Tensor) -> int:
    """The largest number of different weights in an output channel."""
    return int((weight.flatten(1).sort(1).values.diff(dim=1) != 0).sum(1).max()) + 1


def _squares(
    network: nn.Module, quantized: nn.Module, names: list[str], images: Tensor
) -> dict[str, tuple[float, float]]:
    """‖Y‖² and ‖Y - Ỹ‖² of each layer, and of the network under the name ""."""
    sums = dict.fromkeys((*names, ""), (0.0, 0.0))
    for batch in images.split(_BATCH):
        analog, found = (_outputs(side, names, batch) for side in (network, quantized))
        for name, y in analog.items():
            size, error = sums[name]
            difference = (y - found[name]).double().square().sum()
            sums[name] = (size + float(y.double().square().sum()), error + float(difference))
    return sums


def _outputs(network: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output.clone()  # the next module may work in place

    hooks = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in (*names, "")]
    network(images)
    for hook in hooks:
        hook.remove()
    return outputs
