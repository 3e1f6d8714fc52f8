"""The layers of a network: parameters that are weights of operations, and what else holds weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from laq.quantization.operations import Operation
from laq.quantization.recipe import NotQuantized, QuantizationError

# What these methods of a weight return tells nothing of its values.
METADATA_CALLS: Final = frozenset({"size", "dim", "numel", "stride", "is_floating_point", "type"})
# What tells of a weight that torch computes from other parameters, and what makes a parameter of it again.
_COMPUTED = (
    (".parametrizations.", "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"),
    ("_orig", "torch.nn.utils.prune.remove(module, 'weight'), or remove_spectral_norm(module)"),
    ("weight_g", "torch.nn.utils.remove_weight_norm(module)"),
    ("weight_v", "torch.nn.utils.remove_weight_norm(module)"),
)
_FOLD = "store what is computed as a parameter"


@dataclass(frozen=True)
class Layer:
    """A parameter that is the weight of operations.

    Attributes:
        name: the module's whose ``weight`` it is, else the parameter's.
        parameter: its name, the first one where it has several.
        operations: one for each call, in the order of execution.
        weights: how many.
        reads: how often the forward reads them, in these calls and elsewhere.
    """

    name: str
    parameter: str
    operations: tuple[Operation, ...]
    weights: int
    reads: int


@dataclass(frozen=True)
class Structure:
    """What a network holds: its layers in the order in which their weights are first read, and the rest."""

    layers: tuple[Layer, ...]
    others: tuple[NotQuantized, ...]


class Parameters:
    """The parameters of a network by their tensors; one under several names has the first of them.

    So has a buffer or another attribute of two dimensions or more, which may be a weight too.
    """

    def __init__(self, network: nn.Module) -> None:
        self.tensors: Mapping[str, nn.Parameter] = dict(network.named_parameters())
        self._names = {id(tensor): name for name, tensor in self.tensors.items()}
        self._held = {name: tensor for name, tensor in _held(network) if id(tensor) not in self._names}
        self._names_held = {id(tensor): name for name, tensor in reversed(self._held.items())}

    def name_of(self, tensor: object) -> str | None:
        """The parameter's name; none if it is another tensor."""
        return self._names.get(id(tensor))

    def held_name_of(self, tensor: object) -> str | None:
        """The name of a buffer or another attribute with several dimensions; none if it is another tensor."""
        return self._names_held.get(id(tensor))

    def structure(
        self,
        calls: Mapping[str, list[Operation]],
        reads: Mapping[str, int],
        reasons: Mapping[str, str],
    ) -> Structure:
        """The structure that the ``calls`` of operations by parameter make.

        ``reads`` tells how often each parameter is read, in the order of the layers; ``reasons`` why others
        than the layers' are not quantized.
        """
        refused = {name: reason for name, found in calls.items() if (reason := self._refusal(name, found))}
        layers = [
            Layer(layer_name(name), name, tuple(calls[name]), self.tensors[name].numel(), count)
            for name, count in reads.items()
            if name in calls and name not in refused
        ]
        quantized = {layer.parameter for layer in layers}
        return Structure(tuple(layers), tuple(self._others(quantized, {**reasons, **refused})))

    def _refusal(self, name: str, found: list[Operation]) -> str:
        weight = self.tensors[name]
        if not weight.is_floating_point():
            return f"its weight is of type {weight.dtype}, which is no float"
        if len({operation.to_matrices(weight).shape for operation in found}) > 1:
            return "its calls see the weight as matrices of different shapes"
        return ""

    def _others(self, quantized: set[str], reasons: Mapping[str, str]) -> Iterator[NotQuantized]:
        """All that hold weights: parameters of two dimensions or more, and what operations multiply with."""
        for name, tensor in self.tensors.items():
            if tensor.dim() > 1 and name not in quantized:
                reason = reasons.get(name, "the network never reads it in evaluation mode")
                yield NotQuantized(layer_name(name), tensor.numel(), reason)
        for name, held in self._held.items():
            if name in reasons:
                yield NotQuantized(layer_name(name), held.numel(), reasons[name])


def _held(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in network.named_modules():
        for name, value in (*module.named_buffers(recurse=False), *vars(module).items()):
            if isinstance(value, Tensor) and value.dim() > 1:
                yield f"{prefix}.{name}".removeprefix("."), value


def layer_name(parameter: str) -> str:
    """A layer is called as the module whose ``weight`` it is."""
    return parameter.removesuffix(".weight")


def computed_reason(kind: str, parameter: str, *, from_inputs: bool) -> str:
    """Why a parameter from which the weight of a ``kind`` of operation is computed is not quantized."""
    if from_inputs:
        return f"the weight of {kind} is computed from it and from the network's inputs"
    remedy = next((call for part, call in _COMPUTED if part in parameter), _FOLD)
    return f"the weight of {kind} is computed from it before use; to quantize that: {remedy}"


def held_reason(kind: str) -> str:
    """Why the weight of a ``kind`` of operation is not quantized that is no parameter."""
    return f"{kind} multiplies with it, and it is no parameter; to quantize it, make it a torch.nn.Parameter"


def other_reason(reader: str) -> str:
    """Why a parameter that something else reads is not quantized."""
    return f"{reader} reads it, which is neither a convolution nor a linear"


def bias_of(layer: Layer, network: nn.Module, added: set[str | None]) -> str:
    """The name of the bias that all calls of a layer add.

    Args:
        layer: whose calls.
        network: that holds the layer.
        added: the names of the biases that the calls add, "" for what is no parameter; None for those that
            add none. Where none does, it is the bias of the layer's module, if that has a place for one,
            that they are to add.

    Raises:
        QuantizationError: the calls add different ones, or what is no parameter, or there is no place.
    """
    owner = layer.parameter.rpartition(".")[0]
    places = network.get_submodule(owner)._parameters  # noqa: SLF001 (where torch keeps a place without a bias)
    if added == {None} and "bias" in places and places["bias"] is None:
        return f"{owner}.bias".removeprefix(".")
    if len(added) == 1 and (name := next(iter(added))):
        return name
    raise QuantizationError(
        f"bias_correction: the calls of layer {layer.name} add no bias, a computed one, or not the same one; "
        "name the layer in ignore, or leave bias_correction off"
    )


def attribute(network: nn.Module, name: str) -> Any:
    """A parameter, a buffer or another attribute by its name; a bias may be None."""
    owner, _, last = name.rpartition(".")
    return getattr(network.get_submodule(owner), last)
