"""Networks made to hold what a packed file holds: folded norms, added biases, cut classifiers."""

import copy
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.files.header import Cut, Header
from laq.quantization.recipe import QuantizationError

OTHER_NETWORK: Final = "give load a network of the architecture that the file was written from"
_COUNTER: Final = "num_batches_tracked"  # of a batch norm, which inference has no use for
_HEADS: Final = ("linear", "conv1d", "conv2d", "conv3d")


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a network: each tensor once, shared ones under their first name."""
    kept = network.state_dict().keys()
    return {
        name: t.detach()
        for name, t in chain(network.named_parameters(), network.named_buffers())
        if name in kept and not name.endswith(_COUNTER)
    }


def check_finite(network: nn.Module) -> None:
    """See that parameters are finite, and that no buffer, such as a mask, holds NaN.

    Raises:
        QuantizationError: one is not.
    """
    broken = [name for name, tensor in network.named_parameters() if not torch.isfinite(tensor).all()]
    broken += [name for name, buffer in network.named_buffers() if buffer.isnan().any()]
    if broken:
        raise QuantizationError(f"{broken[0]} holds values that are not finite")


def copy_to_fill(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, out of its wrappers, for tensors to be written to.

    What is on the meta device, which holds no values, is on the CPU in the copy.

    Raises:
        QuantizationError: the network has layers without shapes, or something on the meta device that
            no file holds.
    """
    network = copy.deepcopy(unwrapped(network)).eval()
    if lazy := [name for name, t in chain(network.named_parameters(), network.named_buffers()) if is_lazy(t)]:
        raise QuantizationError(f"{lazy[0]} has no shape yet; run the network once before load")
    kept, made = network.state_dict().keys(), dict[int, Tensor]()
    for prefix, module in network.named_modules():
        # Also plain attributes, which hold neither parameters nor buffers.
        for name, tensor in _meta_tensors(module):
            full = f"{prefix}.{name}" if prefix else name
            if full not in kept:
                raise QuantizationError(
                    f"{full} is on the meta device and no file holds it; build the network on the CPU"
                )
            made.setdefault(id(tensor), _on_cpu(tensor))
            setattr(module, name, made[id(tensor)])
    return network


def fit(network: nn.Module, header: Header, names: Iterable[str]) -> None:
    """Repeat on a fresh network what fusion, bias correction and a cut did to its modules.

    Raises:
        QuantizationError: it is a network of another architecture.
    """
    modules = dict(network.named_modules())
    for name in header.folded:
        if not isinstance(modules.get(name), _BatchNorm):
            raise QuantizationError(f"the network has no {name}; {OTHER_NETWORK}")
        network.set_submodule(name, nn.Identity())
    operations = {layer.parameter: layer.operation for layer in header.layers}
    for name in names:
        owner, _, last = name.rpartition(".")
        if last.endswith("bias") and owner in modules:
            _make_bias(modules[owner], last, operations.get(f"{name.removesuffix('bias')}weight", ""))
    if header.cut is not None:
        narrow(network, header.cut, operations)


def narrow(network: nn.Module, cut: Cut, operations: Mapping[str, str]) -> None:
    """Cut the classifier of ``network`` in place; ``operations`` are those of parameters, if known.

    Raises:
        QuantizationError: the cut does not fit the network.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    parameter = next((n for n in (f"{cut.layer}.weight", cut.layer) if n in parameters), "")
    owner, _, last = parameter.rpartition(".")
    head = network.get_submodule(owner)
    if not last.endswith("weight") or not _is_head(head, parameters[parameter], operations.get(parameter)):
        raise QuantizationError(
            f"cut: {cut.layer!r} is no Linear or ungrouped convolution; name the classifier"
        )
    weight = parameters[parameter]
    holders = [m for m in network.modules() if any(p is weight for p in m.parameters(recurse=False))]
    if len(holders) > 1:
        raise QuantizationError(f"cut: another layer shares the weights of {cut.layer}; leave cut out")
    rows, length = list(cut.rows), len(weight)
    if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= length:
        raise QuantizationError(
            f"cut: rows of {cut.layer} must be distinct and in 0..{length - 1}, got {rows}"
        )
    for name in (last, f"{last.removesuffix('weight')}bias"):
        if (tensor := getattr(head, name, None)) is not None:
            setattr(head, name, nn.Parameter(tensor.detach()[rows]))
    for name in ("out_features", "out_channels"):
        if hasattr(head, name):
            setattr(head, name, len(rows))


def _meta_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    named = chain(vars(module).items(), module._parameters.items(), module._buffers.items())  # noqa: SLF001
    return [(name, value) for name, value in named if isinstance(value, Tensor) and value.is_meta]


def _on_cpu(tensor: Tensor) -> Tensor:
    made = torch.zeros_like(tensor, device="cpu")
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _make_bias(module: nn.Module, name: str, operation: str) -> None:
    """Give a module the bias that it has a place for, and its weights outputs."""
    weight = getattr(module, f"{name.removesuffix('bias')}weight", None)
    if getattr(module, name, module) is not None or not isinstance(weight, Tensor) or weight.ndim < 2:
        return
    transposed = getattr(module, "transposed", operation.startswith("conv_transpose"))
    outputs = weight.shape[1] * getattr(module, "groups", 1) if transposed else len(weight)
    setattr(module, name, nn.Parameter(weight.detach().new_zeros(outputs)))


def _is_head(module: nn.Module, weight: Tensor, operation: str | None) -> bool:
    """Whether rows of a weight are outputs of their own."""
    if operation:
        known = operation in _HEADS
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        known = False
    else:
        known = weight.ndim == 2 or isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    groups: Any = getattr(module, "groups", 1)
    return known and groups == 1
