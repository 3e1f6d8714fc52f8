"""``quantize``: a network, calibration images and recipes in, quantized copies out."""

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
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from laq.quantization.calibration.covariance import Inputs
from laq.quantization.calibration.patches import (
    Layer,
    Patches,
    Sampler,
    cut_patches,
    grouped_weights,
    has_shifts,
)
from laq.quantization.execution.base import OUTPUTS, Execution, Networks, Pair, Stop
from laq.quantization.execution.fusion import fold_batch_norms
from laq.quantization.execution.graph import trace
from laq.quantization.execution.layerwise import Layerwise
from laq.quantization.execution.lockstep import Lockstep
from laq.quantization.execution.offload import Shelf
from laq.quantization.methods.solve import solve
from laq.quantization.options import QuantizationError, check_patterns
from laq.quantization.recipe import QuantizedLayer, QuantizedNetwork, Recipe
from laq.quantization.threads import Pool, worker_pool

_SHARED: Final = ("batch_size", "ignore", "fuse", "memory_gib")  # options that a pass depends on
_Walked = list[tuple[QuantizedLayer, ...]]  # layer after layer, by recipe


class _Digest(Protocol):
    """A hash from ``hashlib``."""

    def update(self, data: Any, /) -> None: ...


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
    return quantize_each(network, images, [recipe])[0]


def quantize_each(
    network: nn.Module, images: Tensor | Iterable[Tensor], recipes: Sequence[Recipe]
) -> tuple[QuantizedNetwork, ...]:
    """Quantize ``network`` by several recipes in one pass, which computes its own activations once.

    Each result is what ``quantize`` gives, to the bit. Activations of all quantized networks are in
    hand at a time: more of them than of one may have to wait in files.

    Args:
        network: as for ``quantize``.
        images: as for ``quantize``.
        recipes: how; alike in ``batch_size``, ``ignore``, ``fuse`` and ``memory_gib``. None give none.

    Raises:
        QuantizationError: as ``quantize`` does; the recipes differ in an option of these.
    """
    if not recipes:
        return ()
    _check_alike(recipes)
    shared, digest = recipes[0], sha256()
    with torch.no_grad(), worker_pool() as pool, Shelf(shared.memory / 2) as shelf:
        names = _names_to_quantize(network, recipes)
        analog = copy.deepcopy(network).eval()
        folded = fold_batch_norms(analog) if shared.fuse else ()
        execution = _execution(analog, names, len(recipes), pool, shelf)
        walked = _walk(execution, _chunks(network, images, shared.batch_size, digest), recipes)
    _check_all_run(execution)
    networks = zip(execution.networks.quantized, recipes, strict=True)
    results = (QuantizedNetwork(made, (), 0.0, r, folded, digest.hexdigest()) for made, r in networks)
    return tuple(_with_errors(result, k, walked, execution) for k, result in enumerate(results))


def _check_alike(recipes: Sequence[Recipe]) -> None:
    for option in _SHARED:
        values = [getattr(recipe, option) for recipe in recipes]
        if any(value != values[0] for value in values):
            found = " and ".join(dict.fromkeys(map(repr, values)))
            raise QuantizationError(f"{option}: recipes of one pass must agree; found {found}")


def _execution(analog: nn.Module, names: set[str], copies: int, pool: Pool, shelf: Shelf) -> Execution:
    """What runs the analog network and ``copies`` of it side by side."""
    graph = trace(analog)
    networks = Networks(analog, tuple(copy.deepcopy(analog) for _ in range(copies)), frozenset(names))
    if not isinstance(graph, str):
        return Lockstep(graph, networks, pool, shelf)
    warnings.warn(
        f"torch.fx cannot trace the network ({graph}): each layer takes a pass of its own",
        stacklevel=4,  # whoever called quantize
    )
    return Layerwise(networks, pool, shelf)


def layer_names(network: nn.Module) -> list[str]:
    """The names of all Conv2d and Linear layers."""
    return [name for name, module in network.named_modules() if isinstance(module, Layer)]


def _names_to_quantize(network: nn.Module, recipes: Sequence[Recipe]) -> set[str]:
    if isinstance(network, Layer):
        raise QuantizationError("the network is a layer itself; put it into an nn.Sequential")
    names = layer_names(network)
    ignore = recipes[0].ignore
    check_patterns("ignore", ignore, names)
    chosen = {name for name in names if not any(fnmatchcase(name, p) for p in ignore)}
    if not chosen:
        raise QuantizationError("no layer to quantize: the network has none, or ignore covers them all")
    for recipe in recipes:
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
        digest.update(batch.detach().cpu().contiguous().numpy())
        yield batch.to(device)
    if count == 0:
        raise QuantizationError("no calibration images: give at least one")


def _walk(execution: Execution, chunks: Iterator[Tensor], recipes: Sequence[Recipe]) -> _Walked:
    """Quantize layer after layer, each by all recipes; errors are yet to be filled in."""
    return [
        tuple(_timed(execution, stop, k, recipe) for k, recipe in enumerate(recipes))
        for stop in execution.stops(chunks)
    ]


def _timed(execution: Execution, stop: Stop, k: int, recipe: Recipe) -> QuantizedLayer:
    begin = time.perf_counter()
    layer = _quantize_layer(execution, stop, k, recipe)
    return replace(layer, seconds=time.perf_counter() - begin)


def _quantize_layer(execution: Execution, stop: Stop, k: int, recipe: Recipe) -> QuantizedLayer:
    """Choose a layer's codes and set network ``k``'s weights, and bias if that is corrected."""
    name, pairs = stop[0], stop[1][k]
    layer, *targets = execution.networks.layers(name)
    target = targets[k]
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


def _check_all_run(execution: Execution) -> None:
    if missed := execution.networks.names - execution.errors.keys():
        raise QuantizationError(
            f"layers never run, so not quantized: {', '.join(sorted(missed))}; "
            "name them in ignore if they may keep their weights"
        )


def _with_errors(result: QuantizedNetwork, k: int, walked: _Walked, execution: Execution) -> QuantizedNetwork:
    """Fill in network ``k``'s layers with their measured errors."""
    errors = {name: by_network[k] for name, by_network in execution.errors.items()}
    for name, error in errors.items():
        if not (isfinite(error.size) and isfinite(error.error)):
            where = name if name == OUTPUTS else f"outputs of layer {name}"
            raise QuantizationError(f"{where} are not finite; check weights and images")
    layers = (layers[k] for layers in walked)
    done = tuple(replace(layer, relative_error=errors[layer.name].relative) for layer in layers)
    return replace(result, layers=done, relative_error=errors[OUTPUTS].relative)
