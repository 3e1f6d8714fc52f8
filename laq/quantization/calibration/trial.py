"""Whether a network can be run on the images that it is given, and if not, what is wrong with them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from laq.quantization.calibration.batch import Batch, dtype_name
from laq.quantization.recipe import QuantizationError

# The number of dimensions that a convolution moves over.
_CONVOLUTIONS: Final = {
    **{f"conv{n}d": n for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": n for n in (1, 2, 3)},
}


def device_of(network: nn.Module) -> torch.device:
    """Where the network is; one without parameters and buffers is on the CPU."""
    first = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode for a block; afterwards each module is in the mode that it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_runs(network: nn.Module, batch: Batch) -> None:
    """Run the network on at most two images, in evaluation mode, to say what is wrong with them.

    Raises:
        QuantizationError: the network cannot be run, or takes an image's channels for a batch.
    """
    device = device_of(network)
    count = batch.count
    few = batch.map(lambda t: (t[:2] if len(t) == count else t).to(device, copy=True))
    calls = _FirstCall()
    reason = None
    with torch.no_grad(), _evaluating(network), calls:
        try:
            network(*few.args, **few.kwargs)
        except Exception as error:  # noqa: BLE001 (whatever a network's own code raises)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    image = batch.values[0]
    if problems := _problems(image, calls.call or _first_layer(network), failed=reason is not None):
        raise QuantizationError(f"calibration images: {'; '.join(problems)}")
    if reason is not None:
        found = " and ".join(f"{dtype_name(t.dtype)} {tuple(t.shape)}" for t in batch.values)
        raise QuantizationError(
            f"calibration images: the network cannot be run on {found} ({reason}); "
            "give what the network is called with"
        )


@dataclass(frozen=True)
class _Layer:
    """What a convolution (of ``dimensions``) or a matrix product (0) takes, and what it was given."""

    dimensions: int
    channels: int
    dtype: torch.dtype
    given: Tensor | None = None


class _FirstCall(TorchFunctionMode):
    """Notes the first convolution or matrix product, whatever module or function calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.call: _Layer | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self.call is None and (name in _CONVOLUTIONS or name == "linear"):
            given, weight = (
                args[k] if len(args) > k else kwargs[key] for k, key in enumerate(("input", "weight"))
            )
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
            channels = weight.shape[0] if "transpose" in name else weight.shape[1] * groups
            self.call = _Layer(_CONVOLUTIONS.get(name, 0), channels, weight.dtype, given)
        return func(*args, **kwargs)


def _first_layer(network: nn.Module) -> _Layer | None:
    """The first convolution or Linear in the order of definition."""
    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001 (the class that they share)
            return _Layer(len(module.kernel_size), module.in_channels, module.weight.dtype)
        if isinstance(module, nn.Linear):
            return _Layer(0, module.in_features, module.weight.dtype)
    return None


def fits_first_layer(network: nn.Module, batch: Batch) -> bool:
    """Whether the images have the shape and the type of what the first layer takes."""
    image, layer = batch.values[0], _first_layer(network)
    return (
        layer is not None
        and len(batch.values) == 1
        and (image.ndim, image.dtype) == (layer.dimensions + 2, layer.dtype)
        and image.shape[1] == layer.channels
    )


def _problems(image: Tensor, layer: _Layer | None, *, failed: bool) -> list[str]:
    """What is wrong with images for a network with this first layer, and what to do, as far as known."""
    if layer is None or (layer.given is None and not failed):
        return []
    given = image if layer.given is None else layer.given
    shape = _shape_problem(image, given, layer, failed=failed)
    problems = [] if shape is None else [shape]
    if failed and given.dtype != layer.dtype:
        problems.append(
            f"{dtype_name(image.dtype)} images, while the network's first layer computes in "
            f"{dtype_name(layer.dtype)}; "
            f"convert them as you do to call it, as by images.to(torch.{dtype_name(layer.dtype)})"
        )
    return problems


def _shape_problem(image: Tensor, given: Tensor, layer: _Layer, *, failed: bool) -> str | None:
    """The same of the shape; ``given`` is what reached the layer, or else the image."""
    shape, channels, rank = tuple(image.shape), layer.channels, layer.dimensions + 2
    flat = layer.dimensions == 0 and failed and image.numel() == channels and shape[0] != 1
    if flat or given.ndim == image.ndim == rank - 1:
        last = layer.dimensions > 0 and channels == shape[-1] != shape[0]
        order = f".permute({', '.join(map(str, _channels_first(rank - 1, 0)))})" if last else ""
        return (
            f"{shape} is one image without a batch dimension; give image{order}[None], or torch.stack several"
        )
    if not failed or not layer.dimensions or given.ndim != rank or given.shape[1] == channels:
        return None
    if given.shape[-1] == channels:
        order = ", ".join(map(str, _channels_first(rank, 1)))
        return (
            f"{shape} has its channels last, while the network takes them first; give images.permute({order})"
        )
    return (
        f"{shape} has {given.shape[1]} channels, while the network's first convolution takes {channels}; "
        "give images (n, channels, ...) as it was trained on"
    )


def _channels_first(rank: int, at: int) -> list[int]:
    """The order of dimensions that brings the last one to place ``at``."""
    return [*range(at), rank - 1, *range(at, rank - 1)]
