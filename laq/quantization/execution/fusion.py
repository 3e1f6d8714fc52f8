"""Folding batch norms into the convolutions before them."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.graph import Graph, Reading, graph_for, trace
from laq.quantization.recipe import QuantizationError

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(network: nn.Module, batch: Batch, option: str = "fuse") -> tuple[str, ...]:
    """Fold, in place, every batch norm that alone follows a convolution; identities take their places.

    Batch norms without running statistics, which norm by the images at hand, stay.

    Args:
        network: in evaluation mode.
        batch: some of the images that it is called with.
        option: of a recipe, that asks for it.

    Returns:
        The names of the batch norms.

    Raises:
        QuantizationError: the network has no graph, or a convolution takes no bias.
    """
    graph = graph_for(option, network, batch)
    pairs = list(_pairs(network, graph))
    for convolution, norm in pairs:
        _fold(network.get_submodule(convolution), network.get_submodule(norm))
        network.set_submodule(norm, nn.Identity())
    _check_biases(network, batch, [convolution for convolution, _ in pairs])
    return tuple(norm for _, norm in pairs)


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, _CONVOLUTIONS)
    assert isinstance(norm, _NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    # Typed as tensors, but a norm without weights and a convolution without a bias may have none.
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, conv.transposed)


def _pairs(network: nn.Module, graph: Graph) -> Iterator[tuple[str, str]]:
    """Modules of convolutions and of batch norms, called once each, one upon the other and nothing else."""
    reading = Reading(graph, network)
    convolutions = {
        graph.nodes[calls[0].position]: parameter.rpartition(".")[0]
        for parameter, calls in reading.calls.items()
        if parameter.endswith(".weight") and len(reading.reads[parameter]) == 1
    }
    norms = {node: norm for node in graph.nodes if (norm := _norm(network, graph, node))}
    calls = Counter(norms.values())
    for node, norm in norms.items():
        source = node.args[0]
        if isinstance(source, fx.Node) and len(source.users) == 1 and calls[norm] == 1:
            name = convolutions.get(source, "")
            conv = network.get_submodule(name) if name else None
            # Torch's fusion knows no groups of transposed convolutions.
            if isinstance(conv, _CONVOLUTIONS) and not (conv.transposed and conv.groups > 1):
                yield name, norm


def _norm(network: nn.Module, graph: Graph, node: fx.Node) -> str:
    """The name of the batch norm with running statistics that a node computes, if it does."""
    name = str(node.target) if node.op == "call_module" else ""
    if node.target is torch.ops.aten.batch_norm.default and node.args[3] in graph.attributes:
        name = graph.attributes[node.args[3]].rpartition(".")[0]  # type: ignore[index]
    norm = network.get_submodule(name) if name else None
    return name if isinstance(norm, _NORMS) and type(norm) in _NORMS and norm.running_mean is not None else ""


def _check_biases(network: nn.Module, batch: Batch, convolutions: Sequence[str]) -> None:
    """See that convolutions with a forward of their own add the bias that they have now."""
    own = [n for n in convolutions if type(network.get_submodule(n)) not in _CONVOLUTIONS]
    graph = trace(network, batch) if own else ""
    if isinstance(graph, Graph):
        reads = Reading(graph, network).reads
        own = [name for name in own if f"{name}.bias" not in reads]
    if own:
        raise QuantizationError(
            f"fuse: {own[0]} adds no bias, so no batch norm can be folded into it; leave fuse off"
        )
