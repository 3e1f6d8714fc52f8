"""Where activations are rounded: a network's graph with a module at each of these points."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, fx, nn

from laq.quantization.activations.ranges import RANGES, Histogram
from laq.quantization.activations.rounding import RoundActivations, collecting
from laq.quantization.calibration.batch import Batch, dtype_name
from laq.quantization.execution.base import Networks
from laq.quantization.execution.graph import Graph, NoGraphError, graph_for, is_metadata, kind_of
from laq.quantization.execution.layers import attribute
from laq.quantization.operations import operation_of
from laq.quantization.options import QuantizationError, check_patterns
from laq.quantization.recipe import InputKind, Recipe
from laq.quantization.threads import Pool

Seen = dict[str, Histogram]  # by the names of points
_PYTHONS: Final = operator.mul.__module__
POINTS: Final = "rounded_activations"  # the module that holds those of all points
# In these sets a text is the name of a method, or of an operation as torch.export writes it.
# What integer runtimes compute on integers, beside convolutions and linears: of two activations,
_OF_TWO: Final = frozenset(
    {
        operator.add, operator.iadd, torch.add, "add", "add_",
        operator.mul, operator.imul, torch.mul, "mul", "mul_",
    }
)  # fmt: skip
# and of one or more.
_OF_ANY: Final = frozenset(
    {
        torch.cat, torch.concat, torch.concatenate, "cat",
        F.avg_pool2d, F.adaptive_avg_pool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
        "avg_pool2d", "adaptive_avg_pool2d",
    }
)  # fmt: skip
# What is one with the operation before it: integers end where it cuts off.
_CUT_OFF: Final = frozenset(
    {
        F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", nn.ReLU,
        F.relu6, nn.ReLU6, "relu6", "relu6_",
        F.hardtanh, F.hardtanh_, nn.Hardtanh, "hardtanh", "hardtanh_",
    }
)  # fmt: skip
# What moves values about, or leaves some out, so that they stay on their grid.
_MOVED: Final = frozenset(
    {
        torch.flatten, "flatten", nn.Flatten, torch.reshape, "reshape", "view", "contiguous",
        torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze", torch.permute, "permute",
        torch.transpose, "transpose", torch.unflatten, "unflatten", nn.Unflatten,
        torch.chunk, "chunk", torch.split, "split", operator.getitem, "slice", "select",
        F.max_pool1d, F.max_pool2d, nn.MaxPool1d, nn.MaxPool2d, "max_pool1d", "max_pool2d",
        F.pad, nn.ZeroPad2d, "pad",
    }
)  # fmt: skip
# What does nothing in evaluation mode.
_PASSED_ON: Final = frozenset({nn.Identity, F.dropout, nn.Dropout, nn.Dropout2d, "dropout"})


def with_points(network: nn.Module, batch: Batch) -> tuple[nn.Module, tuple[str, ...]]:
    """The network over the same parameters as a graph, with a ``RoundActivations`` at each point.

    A point is an input or an output of what an integer runtime computes in integers; an activation function
    that cuts off belongs to the operation before it. The network's own outputs are no points.

    Args:
        network: in evaluation mode, its batch norms folded.
        batch: some images.

    Returns:
        The graph's module, and the names of its nodes that compute on floats between points.

    Raises:
        NoGraphError: the network has no graph.
    """
    points = _Points(graph_for("activations", network, batch), network)
    points.insert()
    return points.module(), tuple(points.on_floats)


def inputs_of(batch: Batch) -> tuple[InputKind, ...]:
    """What a batch's inputs are."""
    named = [*(("", value) for value in batch.args), *batch.kwargs.items()]
    return tuple(
        InputKind(keyword, tuple(value.shape[1:]), dtype_name(value.dtype)) for keyword, value in named
    )


def empty_batch(inputs: Sequence[InputKind]) -> Batch:
    """Two images of these kinds, whose values mean nothing.

    Raises:
        QuantizationError: there is no such type of numbers.
    """
    values = [(kind.keyword, _empty(kind)) for kind in inputs]
    return Batch(tuple(v for name, v in values if not name), {name: v for name, v in values if name})


def _empty(kind: InputKind) -> Tensor:
    dtype = getattr(torch, kind.dtype, None)
    if not isinstance(dtype, torch.dtype) or kind.dtype.startswith("q"):  # types of torch's own quantization
        raise QuantizationError(f"inputs: the type {kind.dtype!r} is damaged; write the file again")
    return torch.empty(2, *kind.shape, dtype=dtype)  # memory that nobody touches is none


def choose_grids(networks: Networks, recipes: Sequence[Recipe], batches: Iterable[Batch], pool: Pool) -> None:
    """Have each quantized network round its activations as its recipe says, by those of the analog one.

    Raises:
        QuantizationError: a pattern of a recipe's matches no point.
    """
    seen = seen_at_points(networks.analog, batches, pool)
    for recipe in recipes:
        if isinstance(recipe.activations, dict):
            check_patterns("activations", recipe.activations, list(seen), "point")
    for network, recipe in zip(networks.quantized, recipes, strict=True):
        rule = RANGES[recipe.activation_range]
        for name, point in points_of(network).items():
            if (bits := recipe.activation_bits(name)) is not None:
                point.set_grid(rule(seen[name], bits))


def seen_at_points(network: nn.Module, batches: Iterable[Batch], pool: Pool) -> Seen:
    """What passes the points of a network without grids, over all images."""
    seen = Seen()
    for found in pool.map(partial(_collect, network), batches):
        for name, histogram in found.items():
            seen[name] = seen[name].plus(histogram) if name in seen else histogram
    return seen


def _collect(network: nn.Module, batch: Batch) -> Seen:
    """What passes the points of a network without grids, by their names."""
    points = points_of(network)
    with torch.no_grad(), collecting() as seen:
        batch = batch.map(lambda t: t.clone())  # an operation in place must not reach the images
        network(*batch.args, **batch.kwargs)
    return {name: seen[point] for name, point in points.items()}


def points_of(network: nn.Module) -> dict[str, RoundActivations]:
    """The modules at a network's points, by the names of what they round."""
    prefix = f"{POINTS}."
    return {
        name.removeprefix(prefix): module
        for name, module in network.named_modules()
        if isinstance(module, RoundActivations)
    }


def _numbers(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that are no tensors: sizes, and what Python computes of them."""
    found = set[fx.Node]()
    for node in nodes:
        of_numbers = bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
        if is_metadata(node) or (of_numbers and getattr(node.target, "__module__", "") == _PYTHONS):
            found.add(node)
    return found


class _Points:
    """A graph that gets points."""

    def __init__(self, graph: Graph, network: nn.Module) -> None:
        self._network = network
        self._read = graph
        self._graph = graph.nodes[0].graph
        self._remove_identities()
        self._nodes = list(self._graph.nodes)
        self._kinds = {node: kind_of(node, network) for node in self._nodes}
        self._numbers = _numbers(self._nodes)
        self._points: dict[str, RoundActivations] = {}
        self._computing = {node for node in self._nodes if self._computes(node)}
        self.on_floats = list(self._names_on_floats())

    def insert(self) -> None:
        """Add a module after every node whose values are rounded."""
        for node in self._nodes:
            if node not in self._computing:
                continue
            for source in self._inputs(node):
                self._round_input(source, node)
            ending = self._ending(node)
            if not self._is_output(ending):
                self._round(ending)

    def module(self) -> nn.Module:
        """A module that runs the graph."""
        held: dict[str, Any] = {f"{POINTS}.{name}": point for name, point in self._points.items()}
        for node in self._graph.nodes:
            if node.op == "get_attr":
                held[str(node.target)] = self._value(node)
            elif node.op == "call_module" and str(node.target) not in held:
                held[str(node.target)] = self._network.get_submodule(str(node.target))
        self._restore_outputs(self._nodes[-1])
        self._graph.lint()
        return fx.GraphModule(held, self._graph).eval()

    def _restore_outputs(self, output: fx.Node) -> None:
        """Return what the network's forward does: torch.export has a list."""
        before = set(output.all_input_nodes)
        made = self._read.unflatten(output.args[0])
        output.args = (made,)
        if set(output.all_input_nodes) != before:
            raise NoGraphError("activations", f"outputs in a {type(made).__name__} are unknown to torch.fx")

    def _remove_identities(self) -> None:
        """Remove what passes its inputs on, such as batch norms that were folded, and dropouts."""
        for node in list(self._graph.nodes):
            if kind_of(node, self._network) in _PASSED_ON:
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)

    def _value(self, node: fx.Node) -> Any:
        if node in self._read.constants:
            return self._read.constants[node]
        return attribute(self._network, self._read.attributes[node])

    def _computes(self, node: fx.Node) -> bool:
        kind = self._kinds[node]
        if node in self._numbers:
            return False
        if kind in _OF_TWO:
            return len(set(self._inputs(node))) == len(node.args) == 2
        return kind in _OF_ANY or (node.op == "call_function" and operation_of(node.target) is not None)

    def _inputs(self, node: fx.Node) -> Iterator[fx.Node]:
        """The activations that a node computes on."""
        for source in node.all_input_nodes:
            if not any(
                source in found for found in (self._read.attributes, self._read.constants, self._numbers)
            ):
                yield source

    def _ending(self, node: fx.Node) -> fx.Node:
        """The node itself, or the one that cuts its values off, if nothing else reads them."""
        while len(node.users) == 1 and self._kinds.get(user := next(iter(node.users))) in _CUT_OFF:
            node = user
        return node

    def _is_output(self, node: fx.Node) -> bool:
        """Whether values go to the network's outputs alone."""
        return all(
            user.op == "output" or (self._kinds.get(user) in _MOVED and self._is_output(user))
            for user in node.users
        )

    def _round(self, node: fx.Node) -> str:
        """Round a node's values, once; returns the point's name."""
        name = node.name
        if name not in self._points:
            self._points[name] = RoundActivations()
            self._call(name, node, list(node.users))
        return name

    def _round_input(self, source: fx.Node, reader: fx.Node) -> None:
        """Round what a node reads; where values have only moved since a point, by that point's grid."""
        origin = source
        while self._kinds.get(origin) in _MOVED:
            origin = origin.all_input_nodes[0]
        if self._is_point(origin):
            name = str(origin.target).removeprefix(f"{POINTS}.")
        else:
            name = self._round(origin)
        if origin is not source:
            self._call(name, source, [reader])

    def _is_point(self, node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target).startswith(f"{POINTS}.")

    def _call(self, name: str, node: fx.Node, readers: list[fx.Node]) -> None:
        with self._graph.inserting_after(node):
            rounded = self._graph.call_module(f"{POINTS}.{name}", (node,))
        for reader in readers:
            reader.replace_input_with(node, rounded)

    def _names_on_floats(self) -> Iterator[str]:
        """What lies behind the first integers and is neither computed in integers nor moves them."""
        behind = set[fx.Node]()
        for node in self._nodes:
            if node in self._computing or behind.intersection(node.all_input_nodes):
                behind.add(node)
                known = self._kinds[node] in _CUT_OFF | _MOVED or node.op == "output" or node in self._numbers
                if node not in self._computing and not known:
                    yield node.name
