"""``quantize``: a network, calibration images and a recipe in, a quantized copy out."""

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from itertools import accumulate
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor, nn

from laq.quantization.execution import OUTPUTS, Execution, Networks, Pair, Stop
from laq.quantization.fusion import fold_batch_norms
from laq.quantization.inputs import Inputs
from laq.quantization.layerwise import Layerwise
from laq.quantization.lockstep import Lockstep, trace
from laq.quantization.methods import solve
from laq.quantization.patches import Layer, Patches, Sampler, cut_patches, grouped_weights, has_shifts
from laq.quantization.pool import worker_pool
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork, Recipe
from laq.quantization.shelf import Shelf


class _Digest(Protocol):
    """A hash from ``hashlib``."""

    def update(self, data: bytes, /) -> None: ...


def quantize(network: nn.Module, images: Tensor | Iterable[Tensor], recipe: Recipe) -> QuantizedNetwork:
    """Quantize every Conv2d and Linear layer of ``network``, which is left as it was.

    Works on the device that the network is on. A network that ``torch.fx`` cannot trace is run layer by
    layer instead, with the same outcome, and a warning.

    Args:
        network: any network; it is run in evaluation mode.
        images: calibration inputs (n, ...), what ``network`` is called with; or batches of them, which
            are taken one by one, once.
        recipe: how.

    Raises:
        QuantizationError: the network never runs one of its layers, or has layers with a forward of
            their own; images, weights or outputs are not finite; a pattern in ``recipe.ignore``
            matches no layer, or they leave none; ``recipe.bits`` is a map that lacks a layer.
    """
    with torch.no_grad(), worker_pool() as pool, Shelf(recipe.memory / 2) as shelf:
        names = _names_to_quantize(network, recipe)
        analog = copy.deepcopy(network).eval()
        folded = fold_batch_norms(analog) if recipe.fuse else ()
        graph = trace(analog)
        networks = Networks(analog, copy.deepcopy(analog), frozenset(names))
        if isinstance(graph, str):
            warnings.warn(
                f"torch.fx cannot trace the network ({graph}): each layer takes two passes over the network",
                stacklevel=2,
            )
            execution: Execution = Layerwise(networks, pool, shelf)
        else:
            execution = Lockstep(graph, networks, pool, shelf)
        digest = sha256()
        layers = _walk(execution, _chunks(network, images, recipe.batch_size, digest), recipe)
    result = QuantizedNetwork(networks.quantized, (), 0.0, recipe, folded, digest.hexdigest())
    return _with_errors(result, layers, execution)


def layer_names(network: nn.Module) -> list[str]:
    """The names of all Conv2d and Linear layers."""
    return [name for name, module in network.named_modules() if isinstance(module, Layer)]


def check_patterns(option: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """See that every pattern of an option matches the name of some layer.

    Raises:
        QuantizationError: one does not.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantizationError(f"{option}: {pattern!r} matches no layer; layers: {', '.join(names)}")


def _names_to_quantize(network: nn.Module, recipe: Recipe) -> set[str]:
    if isinstance(network, Layer):
        raise QuantizationError("the network is a layer itself; put it into an nn.Sequential")
    names = layer_names(network)
    check_patterns("ignore", recipe.ignore, names)
    chosen = {name for name in names if not any(fnmatchcase(name, p) for p in recipe.ignore)}
    if not chosen:
        raise QuantizationError("no layer to quantize: the network has none, or ignore covers them all")
    if not isinstance(recipe.bits, int) and (missing := chosen - recipe.bits.keys()):
        raise QuantizationError(f"bits: no entry for {', '.join(sorted(missing))}")
    for name in sorted(chosen):
        _check(name, network.get_submodule(name))
    return chosen


def _check(name: str, layer: nn.Module) -> None:
    # Padding or weights computed in a forward of its own would not be what is quantized here.
    if type(layer).forward not in {nn.Conv2d.forward, nn.Linear.forward}:
        kind = type(layer).__name__
        raise QuantizationError(f"layer {name}: {kind} computes in its own way; name it in ignore")
    if not torch.isfinite(layer.get_parameter("weight")).all():
        raise QuantizationError(f"layer {name}: weights are not finite")


def _chunks(
    network: nn.Module, images: Tensor | Iterable[Tensor], size: int, digest: _Digest
) -> Iterator[Tensor]:
    """Checked batches on the network's device; ``digest`` sees the bytes of all of them."""
    device = next(network.parameters()).device
    batches = torch.split(images, size) if isinstance(images, Tensor) else images
    count = 0
    for batch in batches:
        if not torch.isfinite(batch).all():
            bad = int((~torch.isfinite(batch.flatten(1)).all(1)).nonzero()[0])
            raise QuantizationError(f"calibration image {count + bad} holds values that are not finite")
        count += len(batch)
        digest.update(batch.detach().cpu().contiguous().numpy().tobytes())
        yield batch.to(device)
    if count == 0:
        raise QuantizationError("no calibration images: give at least one")


def _walk(execution: Execution, chunks: Iterator[Tensor], recipe: Recipe) -> list[QuantizedLayer]:
    """Quantize layer after layer; errors are yet to be filled in."""
    layers = []
    for stop in execution.stops(chunks):
        begin = time.perf_counter()
        layer = _quantize_layer(execution, stop, recipe)
        layers.append(replace(layer, seconds=time.perf_counter() - begin))
    return layers


def _quantize_layer(execution: Execution, stop: Stop, recipe: Recipe) -> QuantizedLayer:
    """Choose a layer's codes and set the quantized network's weights, and bias if that is corrected."""
    name, pairs = stop
    layer, target = execution.networks.layers(name)
    assert isinstance(layer, Layer)
    W = grouped_weights(layer)
    sampler = Sampler(recipe.retain_rate, recipe.seed, name)
    firsts = accumulate(execution.counts, initial=0)
    chunks = [
        partial(_patches, layer, pair, sampler, first) for pair, first in zip(pairs, firsts, strict=False)
    ]
    kernel, shifts = layer.weight.shape[2:].numel(), recipe.retain_rate == 1 and has_shifts(layer)
    inputs = Inputs(chunks, execution.counts, W.shape[0], W.shape[2], kernel, execution.pool, shifts)
    solved = solve(name, W, inputs, recipe)
    Q = solved.alphabet.decode(solved.codes)
    target.get_parameter("weight").copy_(Q.view_as(layer.weight))
    if recipe.bias_correction:
        X_mean, X_q_mean = inputs.means()
        shift = W.double() @ X_mean[..., None] - Q.double() @ X_q_mean[..., None]
        _shift_bias(target, shift.flatten().to(W))
    step = solved.alphabet.step.reshape(-1, *[1] * (layer.weight.dim() - 1))
    bits = recipe.alphabet_spec(name).bits
    codes = solved.codes.view_as(layer.weight)
    return QuantizedLayer(name, bits, codes, solved.alphabet.with_step(step), 0.0, 0.0, solved.flops)


def _patches(layer: Layer, pair: Callable[[], Pair], sampler: Sampler, first_image: int) -> Patches:
    return cut_patches(layer, *pair(), sampler.places_from(first_image))


def _shift_bias(layer: nn.Module, shift: Tensor) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(shift)
    else:
        layer.get_parameter("bias").add_(shift)


def _with_errors(
    result: QuantizedNetwork, layers: list[QuantizedLayer], execution: Execution
) -> QuantizedNetwork:
    """Fill in the layers with their measured errors, and see that there is one for every layer."""
    errors = execution.errors
    if missed := execution.networks.names - errors.keys():
        raise QuantizationError(
            f"layers never run, so not quantized: {', '.join(sorted(missed))}; "
            "name them in ignore if they may keep their weights"
        )
    for name, error in errors.items():
        if not (isfinite(error.size) and isfinite(error.error)):
            where = name if name == OUTPUTS else f"outputs of layer {name}"
            raise QuantizationError(f"{where} are not finite; check weights and images")
    done = tuple(replace(layer, relative_error=errors[layer.name].relative) for layer in layers)
    return replace(result, layers=done, relative_error=errors[OUTPUTS].relative)
