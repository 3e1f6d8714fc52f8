"""One pass over a network that quantizes every layer from the inputs it has in hand.

The graph is walked node by node with a pair of activations, the analog network's and the partly
quantized one's. At a Conv2d or Linear both inputs are there: the layer is quantized, then computes
both outputs. Nothing is run twice, whatever the depth.
"""

import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from laq.quantization.alphabet import AlphabetKind, make_alphabet
from laq.quantization.gpfq import gpfq
from laq.quantization.patches import Layer, grouped_weights, input_rows

Method = Literal["rtn", "gpfq"]


class QuantizationError(ValueError):
    """The network, the calibration images or the options cannot be worked with."""


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    ``method`` is round-to-nearest or GPFQ; ``radius`` and ``percentile`` place the alphabet
    (``make_alphabet``); ``retain_rate`` is the fraction of a convolution's patches to learn from;
    layers whose names match a pattern of ``ignore`` keep their weights; ``seed`` draws the patches.
    """

    bits: int = 4
    method: Method = "gpfq"
    alphabet: AlphabetKind = "symmetric"
    radius: float | Literal["auto"] = "auto"
    percentile: float = 1.0
    retain_rate: float = 1.0
    ignore: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer's outcome: ``codes`` int64 and ``step``, whose product are the layer's weights.

    ``relative_error`` is ‖Y - Ỹ‖ / ‖Y‖ over the calibration images, Y and Ỹ being the outputs of this
    layer in the analog and in the quantized network.
    """

    name: str
    bits: int
    levels: int
    codes: Tensor
    step: Tensor
    relative_error: float

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are zero."""
        return int((self.codes == 0).sum()) / self.codes.numel()


@dataclass(frozen=True)
class QuantizedNetwork:
    """A quantized copy of a network, its layers in the order of execution, and its outputs' error.

    ``relative_error`` is ‖Y - Ỹ‖ / ‖Y‖ over the calibration images, Y being the network's outputs.
    """

    network: nn.Module
    layers: tuple[QuantizedLayer, ...]
    relative_error: float

    @property
    def sparsity(self) -> float:
        """The fraction of quantized weights that are zero."""
        zeros = sum(int((layer.codes == 0).sum()) for layer in self.layers)
        return zeros / sum(layer.codes.numel() for layer in self.layers)


class _Pair(NamedTuple):
    """A value of the analog network and its counterpart of the quantized one."""

    analog: Any
    quantized: Any


def quantize(network: nn.Module, images: Tensor, recipe: Recipe) -> QuantizedNetwork:
    """Quantize every Conv2d and Linear layer of ``network``, which is left as it was.

    Args:
        network: any network that ``torch.fx`` can trace; it is run in evaluation mode.
        images: calibration inputs (b, ...), what ``network`` is called with.
        recipe: how.

    Raises:
        QuantizationError: the network cannot be traced, never runs one of its layers, has layers with
            a forward of their own or outputs that are not finite; a pattern in ``recipe.ignore``
            matches no layer, or they leave none.
    """
    analog, quantized = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    names = _names_to_quantize(network, recipe.ignore)
    walk = _Lockstep(_trace(analog), quantized, names, recipe)
    with torch.no_grad():
        error = _relative_error("network", walk.run(images))
    if missed := names - walk.done.keys():
        raise QuantizationError(
            f"layers never run, so not quantized: {', '.join(sorted(missed))}; "
            "name them in ignore if they may keep their weights"
        )
    return QuantizedNetwork(quantized, tuple(walk.done.values()), error)


def layer_names(network: nn.Module) -> list[str]:
    """The names of all Conv2d and Linear layers."""
    return [name for name, module in network.named_modules() if isinstance(module, Layer)]


def _names_to_quantize(network: nn.Module, ignore: tuple[str, ...]) -> set[str]:
    names = layer_names(network)
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantizationError(f"ignore: {pattern!r} matches no layer; layers: {', '.join(names)}")
    chosen = {name for name in names if not any(fnmatchcase(name, p) for p in ignore)}
    if not chosen:
        raise QuantizationError("no layer to quantize: the network has none, or ignore covers them all")
    for name in sorted(chosen):
        # Padding or weights computed in a forward of its own would not be what is quantized here.
        if type(network.get_submodule(name)).forward not in {nn.Conv2d.forward, nn.Linear.forward}:
            kind = type(network.get_submodule(name)).__name__
            raise QuantizationError(f"layer {name}: {kind} computes in its own way; name it in ignore")
    return chosen


class _LayerTracer(fx.Tracer):
    """Keeps layers whole, those of torch and those derived from them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(network, _LayerTracer().trace(network))
    except (TraceError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise QuantizationError(f"torch.fx cannot trace the network: {reason}") from error


class _Lockstep(fx.Interpreter):
    """Walks the analog network's graph with pairs of values, and fills in the quantized one."""

    def __init__(self, graph: fx.GraphModule, quantized: nn.Module, names: set[str], recipe: Recipe) -> None:
        super().__init__(graph)
        self.quantized = quantized
        self.names = names
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.done: dict[str, QuantizedLayer] = {}
        self.extra_traceback = False  # errors stay the one line that they are

    def run_node(self, n: fx.Node) -> Any:
        """Run one node for both networks."""
        if n.op == "placeholder":
            # Copies: an operation in place must reach neither the caller's tensor nor its twin.
            value = super().run_node(n)
            return _Pair(copy.deepcopy(value), copy.deepcopy(value))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            return args[0]
        if n.op == "call_module" and n.target in self.names:
            return self._layer(str(n.target), args[0])
        return _Pair(*(self._one(n, _side(args, i), _side(kwargs, i), i) for i in (0, 1)))

    def _one(self, n: fx.Node, args: Any, kwargs: Any, side: int) -> Any:
        """Run a node that is not quantized for one of the networks."""
        if n.op == "call_module" and side == 1:
            return self.quantized.get_submodule(str(n.target))(*args, **kwargs)
        return getattr(self, n.op)(n.target, args, kwargs)

    def _layer(self, name: str, inputs: _Pair) -> _Pair:
        """Quantize the layer, unless an earlier call did, and compute both outputs."""
        analog, quantized = self.submodules[name], self.quantized.get_submodule(name)
        assert isinstance(analog, Layer)
        assert isinstance(quantized, Layer)
        first = name not in self.done
        if first:
            codes, step, levels = self._solve(analog, inputs)
            quantized.weight.copy_(codes.to(step.dtype) * step)
        outputs = _Pair(analog(inputs.analog), quantized(inputs.quantized))
        if first:
            error = _relative_error(f"layer {name}", outputs)
            self.done[name] = QuantizedLayer(name, self.recipe.bits, levels, codes, step, error)
        return outputs

    def _solve(self, layer: Layer, inputs: _Pair) -> tuple[Tensor, Tensor, int]:
        """Codes of the weights' shape, steps that broadcast over them, and the number of levels."""
        r = self.recipe
        W = grouped_weights(layer)
        alphabet = make_alphabet(W.flatten(0, 1), r.alphabet, r.bits, r.radius, r.percentile).view(*W.shape)
        if r.method == "rtn":
            codes = alphabet.encode(W)
        else:
            rows = input_rows(layer, r.retain_rate, self.generator)
            codes = gpfq(W, rows(inputs.analog), rows(inputs.quantized), alphabet)
        step = alphabet.step.reshape(-1, *[1] * (layer.weight.dim() - 1))
        return codes.view_as(layer.weight), step, alphabet.levels


def _side(values: Any, side: int) -> Any:
    """``values`` (nested) with every pair replaced by one of its two."""
    if isinstance(values, _Pair):
        return values[side]
    if isinstance(values, tuple | list):
        return type(values)(_side(v, side) for v in values)
    if isinstance(values, dict):
        return {key: _side(v, side) for key, v in values.items()}
    if isinstance(values, slice):
        return slice(*(_side(v, side) for v in (values.start, values.stop, values.step)))
    return values


def _relative_error(name: str, outputs: _Pair) -> float:
    size, error = outputs.analog.norm(), (outputs.analog - outputs.quantized).norm()
    if not (size.isfinite() and error.isfinite()):
        raise QuantizationError(f"{name}: outputs are not finite; check weights and images")
    return float(error / size) if size > 0 else float(error)
