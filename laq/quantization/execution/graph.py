"""A network as a graph of operations: traced by ``torch.fx`` or exported, cut at layers, and run."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # what torch.export writes, which has no other name
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from laq.quantization.activations.rounding import RoundActivations
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.layers import (
    METADATA_CALLS,
    Layer,
    Parameters,
    Structure,
    attribute,
    bias_of,
    computed_reason,
    held_reason,
    other_reason,
)
from laq.quantization.execution.offload import Values
from laq.quantization.operations import Operation, arguments_of, operation_of
from laq.quantization.options import QuantizationError

# Modules of torch with a graph of their own; all other modules of torch are nodes.
_ENTERED: Final = (
    nn.Linear,
    nn.modules.conv._ConvNd,  # noqa: SLF001 (the class that all convolutions share)
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_PLAIN: Final = frozenset({bool, int, float, str, type(None)})
# Reading these of a weight tells nothing of its values.
_METADATA: Final = frozenset({"shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout"})


class NoGraphError(QuantizationError):
    """The network has no graph, which an ``option`` needs, for a ``reason``."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: the network has no graph ({reason}); leave {option} out")
        self.reason = reason


@dataclass(frozen=True)
class Graph:
    """A network's forward as nodes, to be run with any network of that structure.

    Attributes:
        nodes: in the order of execution; the last one is the output.
        attributes: nodes that stand for a parameter, a buffer or another attribute, by its name.
        constants: nodes that stand for a tensor that was made in the forward.
        bind: the values of inputs by the names of their nodes.
        unflatten: makes the network's outputs of what the output node is called with.
    """

    nodes: tuple[fx.Node, ...]
    attributes: dict[fx.Node, str]
    constants: Mapping[fx.Node, Any]
    bind: Callable[[Batch], Values]
    unflatten: Callable[[Any], Any] = field(default=lambda outputs: outputs)


class _Tracer(fx.Tracer):
    """Enters convolutions and linear layers, as whatever is derived from them, down to their functions.

    Nothing is noted of the modules that nodes come from: torch takes longer for that than for the nodes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in network.named_parameters()}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A node for a parameter; torch's own looks through all parameters each time."""
        name = self._names.get(id(attr_val))
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node for a leaf; of another module what its forward returns."""
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        return forward(*args, **kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node of the graph and no more."""
        return self.graph.create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """A node's argument; torch's own asks of every number whether it is a tensor, a module and so on."""
        if type(a) is tuple:
            return tuple(map(self.create_arg, a))
        return a if type(a) in _PLAIN else super().create_arg(a)

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Proxy:
        """A node, but of attention, which would hide its projections and cannot be entered here."""
        if target is F.multi_head_attention_forward:
            raise fx.proxy.TraceError("multi_head_attention_forward computes several linears")
        return super().create_proxy(kind, target, *args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, RoundActivations):
            return True
        entered = isinstance(m, _ENTERED) or type(m).__module__.startswith("torch.nn.utils.parametriz")
        return not entered and super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module, batch: Batch) -> Graph | str:
    """The graph of a network in evaluation mode, or why there is none.

    ``torch.fx`` comes first; where it cannot trace, ``torch.export`` may, which takes seconds.
    """
    if hooked := _hooked(network):
        return f"{hooked} has hooks, which a graph does not call"
    traced = _trace_fx(network, batch)
    # A module without a grid does nothing, which is what torch.export would write for ever.
    rounds = any(isinstance(module, RoundActivations) for module in network.modules())
    if isinstance(traced, Graph) or rounds:
        return traced
    exported = _export(network, batch)
    return exported if isinstance(exported, Graph) else f"torch.fx: {traced}; torch.export: {exported}"


def graph_for(option: str, network: nn.Module, batch: Batch) -> Graph:
    """The graph of a network that an option needs.

    Raises:
        NoGraphError: there is none.
    """
    graph = trace(network, batch)
    if isinstance(graph, str):
        raise NoGraphError(option, graph)
    return graph


def _hooked(network: nn.Module) -> str:
    """A module whose hooks see inputs or outputs, and which is no node of a graph."""
    known = {"WeightNorm", "SpectralNorm", "BasePruningMethod"}  # compute a weight from parameters
    for name, module in network.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]  # noqa: SLF001
        if any(not known.intersection(c.__name__ for c in type(hook).__mro__) for hook in hooks) and (
            isinstance(module, _ENTERED) or not type(module).__module__.startswith("torch.nn")
        ):
            return f"module {name or type(module).__name__}"
    return ""


def _trace_fx(network: nn.Module, batch: Batch) -> Graph | str:
    copied = _tracing_copy(network, {})
    try:
        graph = _Tracer(copied).trace(copied)
        bound = inspect.signature(network.forward)
        bound.bind(*batch.args, **batch.kwargs)
    except Exception as error:  # noqa: BLE001 (a forward may raise anything when it meets a proxy)
        return _first_line(error)
    attributes, constants = dict[fx.Node, str](), dict[fx.Node, Any]()
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            if _has(network, name):
                attributes[node] = name
            else:
                constants[node] = attribute(copied, name)
    placeholders = {str(node.target).lstrip("*"): node for node in graph.nodes if node.op == "placeholder"}

    def bind(batch: Batch) -> Values:
        given = bound.bind(*batch.args, **batch.kwargs)
        given.apply_defaults()
        return {node.name: given.arguments[name] for name, node in placeholders.items()}

    return Graph(tuple(graph.nodes), attributes, constants, bind)


def _tracing_copy(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """The same modules over the same tensors: tracing may leave attributes behind."""
    if id(module) not in done:
        # A graph's module makes a class of its own whenever it is made.
        copied = done[id(module)] = object.__new__(type(module))
        vars(copied).update(vars(module))
        for place in ("_parameters", "_buffers"):
            copied.__dict__[place] = dict(vars(module)[place])
        children = vars(module)["_modules"].items()
        copied.__dict__["_modules"] = {name: child and _tracing_copy(child, done) for name, child in children}
    return done[id(module)]


def _export(network: nn.Module, batch: Batch) -> Graph | str:
    try:
        args, kwargs = _at_least_two(batch)
        given = inspect.signature(network.forward).bind(*args, **kwargs).arguments
        shapes = {name: pytree.tree_map(_varying, value) for name, value in given.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what export cannot follow, it also raises
            program = torch.export.export(network, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # noqa: BLE001 (export raises whatever a forward does)
        return _first_line(error)
    return _of_program(program, [t.shape[1:] for t in batch.values])


def _at_least_two(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The batch, an only image twice: export takes a size of one for a constant."""
    if batch.count > 1:
        return batch.args, batch.kwargs
    twice: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
        Tensor, lambda t: torch.cat([t, t]) if t.dim() else t, (batch.args, batch.kwargs)
    )
    return twice


def _varying(value: Any) -> Any:
    """Which sizes of an input change from batch to batch: how many images there are."""
    return {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) and value.dim() else None


def _of_program(program: torch.export.ExportedProgram, sizes: list[torch.Size]) -> Graph | str:
    """The graph of a program as ``torch.fx`` writes it: a node reads what is held, and is no input."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return "the forward changes a buffer"
    if any(node.op == "get_attr" for node in program.graph.nodes):
        return "the forward holds a branch or a loop"
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_lifted_custom_objs}
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    inputs = [name for name in placeholders if name not in names and name not in lifted]
    read = _read_instead(program.graph, {**names, **lifted})

    def bind(batch: Batch) -> Values:
        found = [t.shape[1:] for t in batch.values]
        if found != sizes:  # the graph may hold what the forward made of the first images' sizes
            first, other = (" and ".join(str(tuple(s)) for s in some) for some in (sizes, found))
            raise QuantizationError(
                f"calibration images: the first are of size {first}, later ones of {other}; this network's "
                "forward depends on the size, so give images of one size"
            )
        return dict(zip(inputs, batch.values, strict=True))

    outputs = program.call_spec.out_spec
    return Graph(
        tuple(program.graph.nodes),
        {read[name]: target for name, target in names.items()},
        {read[name]: program.constants[target] for name, target in lifted.items()},
        bind,
        lambda values: pytree.tree_unflatten(list(values), outputs),
    )


def _read_instead(graph: fx.Graph, targets: Mapping[str, str]) -> dict[str, fx.Node]:
    """Nodes that read attributes in the place of inputs that stand for them, by the names of these."""
    graph.owning_module = None  # which does not hold them, nor what may come
    read = dict[str, fx.Node]()
    for node in list(graph.nodes):
        if node.name in targets:
            with graph.inserting_before(node):
                read[node.name] = graph.get_attr(targets[node.name])
            node.replace_all_uses_with(read[node.name])
            graph.erase_node(node)
    return read


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def _has(network: nn.Module, name: str) -> bool:
    try:
        attribute(network, name)
    except AttributeError:
        return False
    return True


@dataclass(frozen=True)
class Call:
    """A call of a layer: the position of its node in the graph, and where its inputs and bias come from."""

    position: int
    operation: Operation
    inputs: fx.Node


class Reading:
    """Who reads the parameters of a network, and where, in the order of the graph.

    Attributes:
        calls: of operations, by the parameter that is their weight.
        reads: the positions of the nodes that depend on a parameter's values.
        structure: the layers, and what else holds weights.
    """

    def __init__(self, graph: Graph, network: nn.Module) -> None:
        self.calls: dict[str, list[Call]] = {}
        self.reads: dict[str, list[int]] = {}
        self._graph = graph
        self._parameters = Parameters(network)
        self._modules = dict(network.named_modules())
        self._named = {
            n: self._parameters.name_of(attribute(network, at)) for n, at in graph.attributes.items()
        }
        tensors = {n: attribute(network, at) for n, at in graph.attributes.items()} | dict(graph.constants)
        self._held = {n: self._parameters.held_name_of(tensor) for n, tensor in tensors.items()}
        self._reasons: dict[str, str] = {}
        for position, node in enumerate(graph.nodes):
            self._read(position, node)
        operations = {name: [call.operation for call in calls] for name, calls in self.calls.items()}
        # What is read by one node is worked on in the order of the calls.
        order = sorted(self.calls, key=lambda name: (self.reads[name][0], self.calls[name][0].position))
        reads = {name: len(self.reads[name]) for name in order}
        self.structure: Structure = self._parameters.structure(operations, reads, self._reasons)

    def bias_of(self, call: fx.Node) -> str | None:
        """The parameter that a call adds, "" if that is no parameter; none if it adds none."""
        bias = arguments_of(call.target, call.args, call.kwargs)["bias"]  # type: ignore[arg-type]
        return None if bias is None else self._named.get(bias) or ""

    def _read(self, position: int, node: fx.Node) -> None:
        kind = operation_of(node.target) if node.op == "call_function" else None
        weight = None
        if kind is not None:
            arguments = arguments_of(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
            weight = self._call(position, kind, kind.functions[node.target], arguments)  # type: ignore[index]
        for name in self._read_by(node):
            self.reads.setdefault(name, []).append(position)
            if name != weight:
                called: Any = node.target
                if node.op == "call_module":
                    called = type(self._modules[str(called)])
                told = str(getattr(called, "__name__", called)).partition(".")[0]
                self._reasons.setdefault(name, other_reason(told))

    def _call(
        self, position: int, kind: type[Operation], name: str, arguments: Mapping[str, Any]
    ) -> str | None:
        """Note a call, and return the name of its weight, if that is a parameter."""
        weight, inputs = arguments["weight"], arguments["input"]
        parameter = self._named.get(weight)
        if held := self._held.get(weight):
            self._reasons[held] = held_reason(name)
        if parameter is None:
            self._computed(weight, name)
            return None
        known = (inputs, weight, arguments["bias"])
        is_constant = all(node in known for node in self._graph.nodes[position].all_input_nodes)
        if isinstance(inputs, fx.Node) and is_constant:
            operation = kind.of(name, arguments, self._parameters.tensors[parameter])
            self.calls.setdefault(parameter, []).append(Call(position, operation, inputs))
        return parameter

    def _computed(self, weight: Any, kind: str) -> None:
        """Note of all parameters that a weight is computed from that they are no weights themselves."""
        seen, waiting = set[fx.Node](), [weight] if isinstance(weight, fx.Node) else []
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += node.all_input_nodes
        known = {*self._graph.attributes, *self._graph.constants}
        from_inputs = any(node.op == "placeholder" and node not in known for node in seen)
        for name in filter(None, map(self._named.get, seen)):
            # What is told first of a parameter is that something reads it; this tells more.
            self._reasons[name] = computed_reason(kind, name, from_inputs=from_inputs)

    def _read_by(self, node: fx.Node) -> Iterator[str]:
        """The names of the parameters on whose values a node depends directly."""
        if node.op == "call_module":
            parameters = self._modules[str(node.target)].parameters()
            yield from filter(None, map(self._parameters.name_of, parameters))
        elif not is_metadata(node):
            yield from filter(None, map(self._named.get, node.all_input_nodes))


def kind_of(node: fx.Node, network: nn.Module) -> Any:
    """What a node calls: a function, a module's class, the name of a method or of torch's own operation."""
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target)))
    if isinstance(node.target, OpOverload):
        return node.target.overloadpacket.__name__
    return node.target if node.op in {"call_function", "call_method"} else None


def is_metadata(node: fx.Node) -> bool:
    """Whether a node reads of a tensor what tells nothing of its values, such as its shape."""
    if node.op == "call_method":
        return node.target in METADATA_CALLS
    reads = node.target is getattr and node.args[1] in _METADATA
    return reads or node.target is torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class StopAt:
    """A layer whose weight is first read at the end of a segment, and its calls."""

    layer: Layer
    calls: tuple[Call, ...]

    def is_at(self, position: int) -> bool:
        """Whether the layer is called there and nowhere else."""
        return [call.position for call in self.calls] == [position]


@dataclass(frozen=True)
class Segment:
    """Nodes up to ``end``, which reads the weights of ``stops`` first, or is the output.

    ``start`` and ``end`` are positions in the graph; the node at ``end`` is not part of it.
    """

    start: int
    end: int
    stops: tuple[StopAt, ...]
    is_last: bool


class Program:
    """The segments of a graph between the layers to quantize; runs them for any network of its structure."""

    def __init__(self, graph: Graph, reading: Reading, layers: Sequence[Layer]) -> None:
        self.nodes = graph.nodes
        self.calls = {c.position: layer.name for layer in layers for c in reading.calls[layer.parameter]}
        self.segments = _segments(reading, layers, len(graph.nodes) - 1)
        self._graph = graph
        self._reading = reading
        self._last_uses = _last_uses(graph)
        self._modules: dict[tuple[int, str], nn.Module] = {}
        self._biases: dict[str, str] = {}  # what the calls of a layer add, where that was asked for

    def parts(self, segment: Segment) -> list[range]:
        """The positions of a segment in parts, each of which but the first begins with a layer's call."""
        cuts = [p for p in self.calls if segment.start < p < segment.end]
        ends = [*sorted(cuts), segment.end]
        return [range(start, end) for start, end in zip([segment.start, *ends], ends, strict=False)]

    def begin(self, batch: Batch) -> Values:
        """A network's inputs, copied: operations in place must reach no other network."""
        copied: Values = pytree.tree_map_only(Tensor, Tensor.clone, self._graph.bind(batch))
        return copied

    def run(self, positions: range, network: nn.Module, values: Values) -> Any:
        """Add what the nodes compute to ``values``, which lose what no later node needs.

        Returns:
            The last node's value.
        """
        value = None
        for node in self.nodes[positions.start : positions.stop]:
            if node.op in {"placeholder", "get_attr"}:
                continue  # bound at the beginning, and read from the network where they are needed
            value = values[node.name] = self._compute(node, network, values)
            for name in self._last_uses.get(node, ()):
                values.pop(name, None)
        return value

    def value_of(self, node: fx.Node, network: nn.Module, values: Values) -> Any:
        """What a node has computed, or the attribute or the constant that it stands for."""
        if node in self._graph.attributes:
            owner, _, name = self._graph.attributes[node].rpartition(".")
            return getattr(self._module(network, owner), name)
        return self._graph.constants[node] if node in self._graph.constants else values[node.name]

    def outputs(self, network: nn.Module, values: Values) -> Any:
        """The network's outputs, as its forward returns them."""
        return self._graph.unflatten(self._resolve(self.nodes[-1].args[0], network, values))

    def add_bias(self, layer: Layer, network: nn.Module) -> str:
        """The name of the bias that all calls of a layer add.

        Calls without one add that of the module from now on, which is None until it has a value.

        Raises:
            QuantizationError: calls add different ones, or the module has no place for a bias.
        """
        if layer.name in self._biases:  # another network's turn
            return self._biases[layer.name]
        nodes = [self.nodes[call.position] for call in self._reading.calls[layer.parameter]]
        added = {self._reading.bias_of(node) for node in nodes}
        bias = self._biases[layer.name] = bias_of(layer, network, added)
        for node in nodes if added == {None} else ():
            with node.graph.inserting_before(node):
                read = node.graph.get_attr(bias)
            self._graph.attributes[read] = bias
            if "bias" in node.kwargs:
                node.kwargs = {**node.kwargs, "bias": read}
            else:
                node.args = (*node.args[:2], read, *node.args[3:])
        return bias

    def _compute(self, node: fx.Node, network: nn.Module, values: Values) -> Any:
        args, kwargs = (self._resolve(given, network, values) for given in (node.args, node.kwargs))
        if node.op == "call_module":
            return self._module(network, str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _module(self, network: nn.Module, name: str) -> nn.Module:
        """A module of a network, looked up once: nodes of small layers take little longer than a look-up."""
        key = (id(network), name)
        found = self._modules.get(key)
        if found is None:
            found = self._modules[key] = network.get_submodule(name)
        return found

    def _resolve(self, argument: Any, network: nn.Module, values: Values) -> Any:
        """A node's argument with other nodes in it replaced by their values."""
        return map_arg(argument, lambda node: self.value_of(node, network, values))


def _segments(reading: Reading, layers: Sequence[Layer], output: int) -> list[Segment]:
    stops: dict[int, list[StopAt]] = {}
    for layer in layers:
        calls = tuple(reading.calls[layer.parameter])
        stops.setdefault(reading.reads[layer.parameter][0], []).append(StopAt(layer, calls))
    ends = [*sorted(stops), output]
    starts = [0, *ends[:-1]]
    return [
        Segment(start, end, tuple(stops.get(end, ())), end == output)
        for start, end in zip(starts, ends, strict=True)
    ]


def _last_uses(graph: Graph) -> dict[fx.Node, list[str]]:
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
