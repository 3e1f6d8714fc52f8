"""For networks without a graph: all networks run from their inputs for every layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.base import (
    OUTPUTS,
    Errors,
    Execution,
    Networks,
    Pair,
    Stop,
    errors_of,
    given_by_network,
    total,
)
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
from laq.quantization.execution.offload import Offload
from laq.quantization.execution.outputs import logits_of
from laq.quantization.operations import Operation, arguments_of, operation_of
from laq.quantization.recipe import QuantizationError
from laq.quantization.threads import Pool

# How torch's functions in Python ask whether a mode, or a tensor of a type of its own, answers for them.
_ASKS: Final = dict.fromkeys(
    ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
)


@dataclass(frozen=True)
class _Call:
    """A call of an operation: its arguments by name, and its outputs once they are there."""

    function: Any
    arguments: dict[str, Any]
    outputs: Any


class _ReachedError(Exception):
    """Stops a forward pass where nothing more is needed of it."""


class _Calls(TorchFunctionMode):
    """Has ``call`` compute every function of torch that a forward calls.

    Functions that torch has written in Python are entered, down to those that compute: attention's is one
    whose projections would be hidden in it.
    """

    def __init__(
        self, call: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any], inside: tuple[Any, ...] = ()
    ) -> None:
        super().__init__()
        self._call = call
        self._inside = inside  # functions that are entered

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # A method in Python and the one in C that it calls are told by the same name.
        body = None if func in self._inside else _body(func)
        # A tensor of a type of its own may have another answer than the body.
        if body is None or any(kind is not Tensor for kind in types):
            return self._call(func, args, kwargs or {})
        with _Calls(self._call, (*self._inside, func)):
            return body(*args, **kwargs or {})


def _body(function: Any) -> Callable[..., Any] | None:
    """What a function in Python does where nothing is to be asked instead of it; none of other functions."""
    if not isinstance(function, FunctionType):
        return None
    asks = _ASKS.keys() & function.__globals__.keys() & set(function.__code__.co_names)
    if not asks:
        return None
    names = {**function.__globals__, **_ASKS}
    body = FunctionType(function.__code__, names, None, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


class Recording:
    """What one pass over some images tells of a network: which operations it calls with which parameters."""

    def __init__(self, network: nn.Module, batch: Batch) -> None:
        self._parameters = Parameters(network)
        self._constant = {id(t): t for t in (*network.parameters(), *network.buffers())}
        self._computed: dict[
            int, set[str]
        ] = {}  # constants' identities to the parameters that they come from
        self._reads: dict[str, int] = {}
        self._calls: dict[str, list[Operation]] = {}
        self._reasons: dict[str, str] = {}
        with _Calls(self._call), torch.no_grad():
            run(network, batch)
        self.structure: Structure = self._parameters.structure(self._calls, self._reads, self._reasons)

    def _call(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        weight = self._weight(function, args, kwargs)
        result = function(*args, **kwargs)
        name = str(getattr(function, "__name__", function))
        if name not in {"__get__", *METADATA_CALLS}:
            tensors = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
            names = {found for t in tensors if (found := self._parameters.name_of(t))}
            for read in sorted(names):
                self._reads[read] = self._reads.get(read, 0) + 1
                if read != weight:
                    self._reasons.setdefault(read, other_reason(name))
            self._follow(tensors, names, result)
        return result

    def _weight(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Note a call of an operation; returns the name of its weight, if that is a parameter."""
        kind = operation_of(function)
        if kind is None:
            return None
        arguments, called = arguments_of(function, args, kwargs), kind.functions[function]
        weight = self._parameters.name_of(arguments["weight"])
        if weight is not None:
            operation = kind.of(called, arguments, arguments["weight"])
            self._calls.setdefault(weight, []).append(operation)
        if held := self._parameters.held_name_of(arguments["weight"]):
            self._reasons[held] = held_reason(called)
        for name in self._computed.get(id(arguments["weight"]), ()):
            self._reasons[name] = computed_reason(called, name, from_inputs=False)
        return weight

    def _follow(self, tensors: Sequence[Tensor], names: set[str], result: Any) -> None:
        """Note of what is computed from parameters alone which these are."""
        if tensors and all(id(t) in self._constant for t in tensors):
            sources = names.union(*(self._computed.get(id(t), set()) for t in tensors))
            for made in pytree.tree_leaves(result):
                if isinstance(made, Tensor):
                    self._constant[id(made)] = made  # kept, so that no other tensor has its identity
                    self._computed[id(made)] = sources


class Layerwise(Execution):
    """The same stops, inputs and errors as in lockstep, at the cost of a pass per layer and network."""

    def __init__(self, networks: Networks, pool: Pool, offload: Offload) -> None:
        super().__init__(networks, pool, offload)
        self._only: dict[int, _Call] = {}  # by network, an only call of the layer at hand
        self._analog_biases: list[Tensor | None] = []  # what its calls add in the analog network
        self._biases: dict[str, str] = {}  # by layer, what takes the place of these in all networks

    def stops(self, layers: Sequence[Layer], *, measure: bool = True) -> Iterator[Stop]:
        """Run every chunk up to the last call of each layer in turn."""
        chunks = range(self.chunks)
        for layer in layers:
            shapes = list(self.pool.map(partial(self._reach, layer), chunks))
            yield Stop(layer, given_by_network(len(self.networks.quantized), shapes, layer, self._pair))
            for errors in self.pool.map(partial(self._layer_errors, layer), chunks if measure else ()):
                self._add(layer.name, errors)
        for errors in self.pool.map(self._output_errors, chunks if measure else ()):
            self._add(OUTPUTS, errors)

    def add_bias(self, layer: Layer) -> str:
        """The parameter that all calls add, or one of the layer's module."""
        network = self.networks.analog
        parameters = Parameters(network)
        added = {None if b is None else parameters.name_of(b) or "" for b in self._analog_biases}
        name = bias_of(layer, network, added)
        self._biases[layer.name] = name
        return name

    def _reach(self, layer: Layer, chunk: int) -> list[torch.Size]:
        """Keep the inputs of a layer's calls; returns their shapes."""
        inputs: list[Tensor] = []
        for number, network in enumerate(self.networks.all()):
            calls = self._calls(network, layer, self._batch(chunk))
            inputs = [call.arguments["input"] for call in calls]
            self.offload.put((chunk, number), {"inputs": inputs})
            if number == 0:
                self._analog_biases = [call.arguments["bias"] for call in calls]
            self._only[number] = _Call(calls[0].function, {**calls[0].arguments, "input": None}, None)
        return [t.shape for t in inputs]

    def _calls(self, network: nn.Module, layer: Layer, batch: Batch, *, outputs: bool = False) -> list[_Call]:
        """The calls of a layer; with the ``outputs`` of all of them, or without the last one's."""
        weight, found, last = network.get_parameter(layer.parameter), list[_Call](), len(layer.operations)

        def call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            arguments = arguments_of(function, args, kwargs) if operation_of(function) else {}
            if arguments.get("weight") is not weight:
                return function(*args, **kwargs)
            if len(found) + 1 < last or outputs:
                # Copies: what follows may change inputs and outputs in place.
                arguments["input"], result = arguments["input"].clone(), function(*args, **kwargs)
                found.append(_Call(function, arguments, result.clone()))
            else:
                found.append(_Call(function, arguments, None))
                result = None
            if len(found) == last:
                raise _ReachedError
            return result

        try:
            with _Calls(call):
                run(network, batch)
        except _ReachedError:
            return found
        raise QuantizationError(f"layer {layer.name}: some images do not reach it; name it in ignore")

    def _pair(self, chunk: int, call: int, number: int) -> Pair:
        return Pair(*(self.offload.look((chunk, side))["inputs"][call] for side in (0, number)))

    def _layer_errors(self, layer: Layer, chunk: int) -> Errors:
        networks = self.networks.all()
        if layer.reads == 1:
            return errors_of(self._output(layer, chunk, number) for number in range(len(networks)))
        # What is kept was computed with weights that have changed.
        batch = self._batch(chunk)
        calls = [self._calls(network, layer, batch, outputs=True) for network in networks]
        return total(errors_of(call.outputs for call in same) for same in zip(*calls, strict=True))

    def _output(self, layer: Layer, chunk: int, number: int) -> Tensor:
        """What an only call computes of the inputs that are kept, with the weights as they are now."""
        network, call = self.networks.all()[number], self._only[number]
        (inputs,) = self.offload.take((chunk, number))["inputs"]
        bias = self._biases.get(layer.name)
        changed = {"bias": attribute(network, bias)} if bias else {}
        output: Tensor = call.function(**{**call.arguments, **changed, "input": inputs})
        return output

    def _output_errors(self, chunk: int) -> Errors:
        networks, batch = self.networks.all(), self._batch(chunk)
        return errors_of(logits_of(run(network, batch), self.networks.output) for network in networks)


def run(network: nn.Module, batch: Batch) -> Any:
    """A network's outputs for copies of the images: an operation in place must not reach these."""
    copied = batch.map(Tensor.clone)
    return network(*copied.args, **copied.kwargs)
