"""The contender ``textbook``: GPFQ as its papers state it, parallel over neurons and otherwise plain.

See Lybrand and Saab 2021; Zhang, Zhou and Saab 2023, equation 5. For every layer, in the order of
execution, both networks run again from the images to the layer; its patches are unfolded; then one
column after another is quantized with the residuals of all neurons in full. The patches are
those that ``laq`` takes at ``RETAIN_RATE``; the authors' code takes as many.
"""

import copy
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from speed_contender import Contender, Outcome
from speed_plan import RETAIN_RATE
from torch import Tensor, nn

from laq.quantization.calibration.patches import Sampler

_LAYERS: Final = (nn.Conv2d, nn.Linear)


class _ReachedError(Exception):
    """Raised when the layer is reached, as the rest of the network need not run."""


def contender(_name: str) -> Contender:
    """The contender; it knows one method."""
    return _quantize


@torch.no_grad()
def _quantize(network: nn.Module, images: Tensor, bits: int) -> Outcome:
    quantized = copy.deepcopy(network)
    names = _order(network, images[:1])
    for name in names:
        analog, target = (side.get_submodule(name) for side in (network, quantized))
        inputs = [_inputs(side, name, images) for side in (network, quantized)]
        X, X_q = (rows(analog, name, x) for x in inputs)
        W = analog.weight.view(X.shape[0], -1, X.shape[2])
        Q = [column_loop(*group, bits) for group in zip(W, X, X_q, strict=True)]
        target.weight.copy_(torch.stack(Q).view_as(target.weight))
    return Outcome(lambda: {name: quantized.get_submodule(name).weight for name in names})


def chosen_places(layer: nn.Conv2d, name: str, grid: torch.Size) -> Tensor | None:
    """The numbers of the patches on a grid (images, rows, columns) that ``laq`` takes; None means all."""
    assert isinstance(layer, nn.Conv2d)
    places = Sampler(RETAIN_RATE, 0, name).places(grid, 0)
    if places is None:
        return None
    image, row, column = (p.to(layer.weight.device) for p in places)
    return (image * grid[1] + row) * grid[2] + column


def rows(layer: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """The inputs (G, m, d) of a layer as rows, by its G groups."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.reshape(1, -1, inputs.shape[-1])
    assert isinstance(layer.padding, tuple)
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    height = (
        inputs.shape[2] + 2 * layer.padding[0] - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1
    ) // (layer.stride[0]) + 1
    grid = torch.Size((len(inputs), height, patches.shape[2] // height))
    flat = patches.transpose(1, 2).flatten(0, 1)
    places = chosen_places(layer, name, grid)
    kept = flat if places is None else flat[places]
    return kept.view(len(kept), layer.groups, -1).transpose(0, 1)


def column_loop(W: Tensor, X: Tensor, X_q: Tensor, bits: int) -> Tensor:
    """The quantized weights (N, d) of one group: W (N, d), X and X_q (m, d)."""
    high = 2 ** (bits - 1) - 1
    step = W.abs().amax(1) / high
    step = torch.where(step == 0, torch.ones_like(step), step)
    U = W.new_zeros(len(W), len(X))
    Q = torch.empty_like(W)
    for t in range(W.shape[1]):
        x, x_q = X[:, t], X_q[:, t]
        U += W[:, t, None] * x
        energy = x_q.dot(x_q)
        wanted = U @ x_q / energy if energy > 0 else W[:, t]
        Q[:, t] = (wanted / step).round().clamp(-high, high) * step
        U -= Q[:, t, None] * x_q
    return Q


def _order(network: nn.Module, images: Tensor) -> list[str]:
    """The names of the layers in the order of execution."""
    seen: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: seen.append(name))
        for name, module in network.named_modules()
        if isinstance(module, _LAYERS)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return seen


def _inputs(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """The inputs of the layer ``name`` for these images."""
    caught: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])
        raise _ReachedError

    hook = network.get_submodule(name).register_forward_pre_hook(stop)
    try:
        network(images)
    except _ReachedError:
        return caught[0]
    finally:
        hook.remove()
    raise ValueError(f"layer {name} never ran")
