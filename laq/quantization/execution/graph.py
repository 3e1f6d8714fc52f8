"""A network as ``torch.fx`` sees it: nodes, cut at the layers to stop at, and what runs them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from laq.quantization.calibration.patches import Layer
from laq.quantization.execution.offload import Values


class _LayerTracer(fx.Tracer):
    """Keeps layers whole, those of torch and those derived from them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.Graph | str:
    """The network's graph, or why there is none."""
    try:
        return _LayerTracer().trace(network)
    except (TraceError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return str(error).partition("\n")[0]


@dataclass(frozen=True)
class Segment:
    """Nodes from a layer (``layer``; none before the first) up to ``end``, the next layer or the output."""

    layer: str | None
    nodes: tuple[fx.Node, ...]
    end: fx.Node


class Program:
    """The segments between the layers called ``names``; runs them for any network of that structure."""

    def __init__(self, graph: fx.Graph, names: frozenset[str]) -> None:
        self.segments = list(_segments(graph, names))
        self._last_uses = _last_uses(graph)

    def run(self, nodes: Iterable[fx.Node], network: nn.Module, values: Values) -> Any:
        """Add what the nodes compute to ``values``, which lose what no later node needs.

        Returns:
            The last node's value.
        """
        value = None
        for node in nodes:
            value = values[node.name] = _call(node, values, network)
            for name in self._last_uses.get(node, ()):
                del values[name]
        return value


def first_argument(node: fx.Node, values: Values) -> Any:
    """What a node is called with."""
    return _resolve(node.args[0], values)


def _call(node: fx.Node, values: Values, network: nn.Module) -> Any:
    """Run a node."""
    if node.op == "placeholder":
        # A copy: an operation in place must reach neither the caller's tensor nor another network's.
        given = values.pop("images", None) if not node.args else node.args[0]
        return given.clone() if isinstance(given, Tensor) else given
    args, kwargs = _resolve(node.args, values), _resolve(node.kwargs, values)
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(network.get_submodule(owner), name)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _resolve(argument: Any, values: Values) -> Any:
    """A node's argument with other nodes in it replaced by their values."""
    return map_arg(argument, lambda n: values[n.name])


def _segments(graph: fx.Graph, names: frozenset[str]) -> Iterator[Segment]:
    layer, nodes, seen = None, list[fx.Node](), set[str]()
    for node in graph.nodes:
        stop = node.op == "call_module" and node.target in names and node.target not in seen
        if stop or node.op == "output":
            yield Segment(layer, tuple(nodes), node)
            layer, nodes = str(node.target), []
            seen.add(layer)
        nodes.append(node)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[str]]:
    """The names that no node after a node needs."""
    result: dict[fx.Node, list[str]] = {}
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for source in node.all_input_nodes:
            last[source] = node
    for node, at in last.items():
        if at.op != "output":
            result.setdefault(at, []).append(node.name)
    return result
