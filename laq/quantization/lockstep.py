"""One pass over a ``torch.fx`` graph with pairs of activations, from one layer to the next.

Nothing is run twice, whatever the depth: at a layer both inputs are at hand. Activations are
forgotten after their last use.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from laq.quantization.execution import OUTPUTS, Error, Execution, Networks, Pair, Stop, total
from laq.quantization.patches import Layer
from laq.quantization.pool import Pool
from laq.quantization.shelf import Shelf, Values


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
class _Segment:
    """Nodes from a layer (``layer``; none before the first) up to ``end``, the next layer or the output."""

    layer: str | None
    nodes: tuple[fx.Node, ...]
    end: fx.Node


class Lockstep(Execution):
    """Walks the graph once, a segment at a time for all chunks."""

    def __init__(self, graph: fx.Graph, networks: Networks, pool: Pool, shelf: Shelf) -> None:
        super().__init__(networks, pool, shelf)
        self.segments = list(_segments(graph, networks.names))
        self.last_uses = _last_uses(graph)

    def stops(self, chunks: Iterable[Tensor]) -> Iterator[Stop]:
        """Advance every chunk by a segment, stop at the layer that it ends at."""
        numbers = self._keep(chunks)
        for segment in self.segments:
            error = total(self.pool.map(partial(self._advance, segment), numbers))
            if segment.layer is not None:
                self.errors[segment.layer] = error
            if segment.end.op == "output":
                outputs = self.pool.map(partial(self._argument, segment.end), numbers)
                self.errors[OUTPUTS] = total(map(Error.of, outputs))
            else:
                yield str(segment.end.target), [partial(self._argument, segment.end, n) for n in numbers]

    def _argument(self, node: fx.Node, chunk: int) -> Pair:
        """What a node is called with."""
        values = self.shelf.look(chunk)
        return Pair(_resolve(node.args[0], values, 0), _resolve(node.args[0], values, 1))

    def _advance(self, segment: _Segment, chunk: int) -> Error:
        """Run a chunk over a segment; the error of the layer at its beginning."""
        values, error = self.shelf.take(chunk), Error()
        for node in segment.nodes:
            value = self._run(node, values)
            values[node.name] = tuple(value)
            if segment.layer is not None and node is segment.nodes[0]:
                error = Error.of(value)
            for name in self.last_uses.get(node, ()):
                del values[name]
        self.shelf.put(chunk, values)
        return error

    def _run(self, node: fx.Node, values: Values) -> Pair:
        if node.op == "placeholder":
            # Copies: an operation in place must reach neither the caller's tensor nor its twin.
            given = values.pop("images", None) if not node.args else node.args[0]
            return Pair(given, given) if not isinstance(given, Tensor) else Pair(given.clone(), given.clone())
        analog = _call(node, values, self.networks.analog, 0)
        return Pair(analog, _call(node, values, self.networks.quantized, 1))


def _call(node: fx.Node, values: Values, network: nn.Module, side: int) -> Any:
    """Run a node for one of the networks."""
    args, kwargs = _resolve(node.args, values, side), _resolve(node.kwargs, values, side)
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(network.get_submodule(owner), name)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _resolve(argument: Any, values: Values, side: int) -> Any:
    """A node's argument with other nodes in it replaced by their values for one of the networks."""
    return map_arg(argument, lambda n: values[n.name][side])


def _segments(graph: fx.Graph, names: frozenset[str]) -> Iterator[_Segment]:
    layer, nodes, seen = None, list[fx.Node](), set[str]()
    for node in graph.nodes:
        stop = node.op == "call_module" and node.target in names and node.target not in seen
        if stop or node.op == "output":
            yield _Segment(layer, tuple(nodes), node)
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
