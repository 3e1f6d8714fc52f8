"""Folding batch norms into the convolutions before them."""

from collections import Counter
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from laq.quantization.execution.graph import trace
from laq.quantization.recipe import QuantizationError


def fold_batch_norms(network: nn.Module) -> tuple[str, ...]:
    """Fold, in place, every batch norm that alone follows a convolution; identities take their places.

    Args:
        network: in evaluation mode.

    Returns:
        The names of the batch norms.

    Raises:
        QuantizationError: ``torch.fx`` cannot trace the network.
    """
    graph = trace(network)
    if isinstance(graph, str):
        raise QuantizationError(f"fuse: torch.fx cannot trace the network: {graph}")
    folded = []
    for convolution, norm in list(_pairs(network, graph)):
        conv, bn = network.get_submodule(convolution), network.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        network.set_submodule(convolution, fuse_conv_bn_eval(conv, bn))
        network.set_submodule(norm, nn.Identity())
        folded.append(norm)
    return tuple(folded)


def _pairs(network: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Convolutions and batch norms, called once each, one upon the other and on nothing else's account."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if (
            _is(network, node, nn.BatchNorm2d)
            and isinstance(source, fx.Node)
            and _is(network, source, nn.Conv2d)
            and len(source.users) == 1
            and calls[node.target] == calls[source.target] == 1
        ):
            yield str(source.target), str(node.target)


def _is(network: nn.Module, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and type(network.get_submodule(str(node.target))) is kind
