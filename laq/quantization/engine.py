"""``quantize``: a network, calibration images and recipes in, quantized copies out."""

import copy
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, islice
from math import isfinite
from typing import Any, Final

import torch
from torch import Tensor, nn

from laq.quantization.calibration.batch import Batch, Digest
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.calibration.images import calibration_batches, check_runs
from laq.quantization.calibration.patches import Patches, Sampler
from laq.quantization.calibration.split import Split
from laq.quantization.calibration.trial import device_of
from laq.quantization.execution.attention import linears_of_attention
from laq.quantization.execution.base import (
    OUTPUTS,
    CallInputs,
    Execution,
    Networks,
    Stop,
    errors_of,
    in_float32,
)
from laq.quantization.execution.devices import check_device, run_on_device, stays_on_cpu
from laq.quantization.execution.equalization import fold_and_equalize
from laq.quantization.execution.graph import Graph, Reading, trace
from laq.quantization.execution.layers import Layer, Structure, attribute
from laq.quantization.execution.layerwise import Layerwise, Recording
from laq.quantization.execution.lockstep import Lockstep
from laq.quantization.execution.offload import Offload
from laq.quantization.execution.outputs import Output
from laq.quantization.execution.points import choose_grids, inputs_of, with_points
from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.methods.network_problem import NetworkProblem
from laq.quantization.methods.problem import Settings
from laq.quantization.methods.registry import METHODS
from laq.quantization.methods.solve import solve
from laq.quantization.options import DeviceChoice, QuantizationError, check_patterns
from laq.quantization.recipe import InputKind, NotQuantized, QuantizedLayer, QuantizedNetwork, Recipe
from laq.quantization.threads import Pool, as_workers, worker_pool
from laq.quantization.tuning.settings import Tuning
from laq.quantization.tuning.transfer_set import CHUNK, TransferSet, logits_of_all, transfer_set_of
from laq.quantization.tuning.tune import tune

# Options that a pass depends on.
_SHARED: Final = ("batch_size", "ignore", "fuse", "equalize", "memory_gib", "held_back")


def quantize(
    network: nn.Module, images: Any, recipe: Recipe, output: Output = None, device: DeviceChoice | None = None
) -> QuantizedNetwork:
    """Quantize the weights of every convolution and linear of ``network``, which is left as it was.

    What is quantized are parameters that are weights of ``conv1d`` to ``conv3d``, of their transposed forms
    and of ``linear``, whatever module or function calls these. What else holds weights is named with the
    reason in the result's ``not_quantized``, and in a warning.
    A network whose graph neither ``torch.fx`` nor ``torch.export`` can make is run layer by layer instead,
    with the same outcome, and a warning.

    Args:
        network: any network; it is run in evaluation mode. Of one that ``torch.compile`` or
            ``DataParallel`` wraps, what is wrapped is quantized.
        images: calibration inputs (n, ...), what ``network`` is called with, or batches of them: see
            ``calibration.images.calibration_batches``.
        recipe: how.
        output: which of the network's outputs are the logits, by name or index, where there are several:
            see ``execution.outputs.logits_of``.
        device: ``cpu``, ``cuda`` or ``auto``, which takes a GPU where there is one and the work is worth it;
            None is the device that the network is on. The result comes back to that one.

    Raises:
        QuantizationError: there is nothing to quantize; images, weights or outputs are not finite; a
            pattern in ``recipe.ignore`` matches nothing that holds weights, or they leave none;
            ``recipe.bits`` is a map that lacks a layer; a tuning lacks classes or images; there is no GPU,
            or its memory does not suffice.

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, quantize
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10)
        >>> network = torch.nn.Sequential(*layers)
        >>> result = quantize(network, torch.rand(32, 3, 8, 8), Recipe(bits=3, method="gpfq"))
        >>> [(layer.name, layer.bits, layer.levels) for layer in result.layers]
        [('0', 3, 7), ('2', 3, 7)]
        >>> 0 < result.relative_error < 1
        True
    """
    return quantize_each(network, images, [recipe], output, device)[0]


def quantize_each(
    network: nn.Module,
    images: Any,
    recipes: Sequence[Recipe],
    output: Output = None,
    device: DeviceChoice | None = None,
) -> tuple[QuantizedNetwork, ...]:
    """Quantize ``network`` by several recipes in one pass, which computes its own activations once.

    Each result is what ``quantize`` gives, to the bit. Activations of all quantized networks are in
    hand at a time: more of them than of one may have to wait in files.

    Args:
        network: as for ``quantize``.
        images: as for ``quantize``.
        recipes: how; alike in ``batch_size``, ``ignore``, ``fuse``, ``equalize``, ``memory_gib`` and
            ``held_back``, and in ``seed`` if images are held back. None give none. If one is tuned, all are;
            what differs in tuning alone is quantized once.
        output: as for ``quantize``.
        device: as for ``quantize``.

    Raises:
        QuantizationError: as ``quantize`` does; the recipes differ in an option of these.

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, quantize_each
        >>> network, images = torch.nn.Linear(32, 8), torch.rand(64, 32)
        >>> recipes = [Recipe(bits=2, method=method) for method in ("rtn", "gpfq")]
        >>> rounded, gpfq = quantize_each(network, images, recipes)
        >>> gpfq.relative_error < rounded.relative_error
        True
    """
    if not recipes:
        return ()
    _check_alike(recipes)
    check_device(device)
    digest = Digest()
    with as_workers(), linears_of_attention():
        analog = copied(unwrapped(network))
        batches = calibration_batches(analog, images, recipes[0].batch_size, digest)
        make = _quantize_only if not recipes[0].held_back else _quantize_and_judge
        run = partial(make, recipes=recipes, output=output)
        if stays_on_cpu(device, analog):
            results = run(analog, batches)
        else:
            results = run_on_device(device, analog, batches, run)
    return tuple(replace(result, calibration=digest.hexdigest()) for result in results)


@dataclass(frozen=True)
class _Prepared:
    """The analog network as it is copied: equalized, batch norms folded, activations rounded, if so asked."""

    network: nn.Module
    folded: tuple[str, ...]
    on_floats: tuple[str, ...]
    inputs: tuple[InputKind, ...]
    view: "_View"
    layers: list[Layer]

    @classmethod
    def of(cls, analog: nn.Module, known: Sequence[Batch], recipes: Sequence[Recipe]) -> "_Prepared":
        """``analog`` itself, in which batch norms are folded, or a graph over its parameters.

        ``known`` are the images, or the first of them where nothing is equalized.
        """
        shared, first = recipes[0], known[0]
        folded = fold_and_equalize(analog, known, shared)
        on_floats, inputs = tuple[str, ...](), tuple[InputKind, ...]()
        if shared.activations is not None:
            if any(recipe.bias_correction for recipe in recipes):
                _make_biases(analog, first)
            analog, on_floats = with_points(analog, first)
            inputs = inputs_of(first)
        view = _view(analog, first, _learning_together(recipes))
        return cls(analog, folded, on_floats, inputs, view, _to_quantize(analog, view.structure, recipes))


def _make_biases(network: nn.Module, batch: Batch) -> None:
    """Give layers that have a place for a bias, and none, one of zeros: a graph with points adds no other."""
    for layer in _view(network, batch).structure.layers:
        owner = network.get_submodule(layer.parameter.rpartition(".")[0])
        weight = network.get_parameter(layer.parameter)
        if owner._parameters.get("bias", weight) is None:  # noqa: SLF001 (where torch keeps a place without a bias)
            groups, outputs, _ = layer.operations[0].to_matrices(weight).shape
            owner.bias = nn.Parameter(weight.new_zeros(groups * outputs))


def _quantize_copies(
    analog: nn.Module,
    batches: Iterable[Batch],
    recipes: Sequence[Recipe],
    output: Output,
    *,
    measure: bool = True,
) -> tuple[_Prepared, list[QuantizedNetwork]]:
    """Quantize a copy of ``analog`` by each recipe; that itself changes in that batch norms are folded.

    Errors stay 0 where ``measure`` does not ask for them.
    """
    batches, seen = iter(batches), dict[Any, Batch]()
    known = list(batches if recipes[0].equalize else islice(batches, 1))
    prepared = _Prepared.of(analog, known, recipes)
    quantized = tuple(copied(prepared.network) for _ in recipes)
    # To a GPU more threads would but give more batches at a time, which take its memory.
    with worker_pool(_most(analog)) as pool, Offload(recipes[0].memory / 2) as offload:
        networks = Networks(prepared.network, quantized, output)
        execution = prepared.view.execution(networks, pool, offload)
        try:
            execution.keep(_noted(chain(known, batches), seen))
            if recipes[0].activations is not None:
                choose_grids(networks, recipes, execution.images(), pool)
            stops = execution.stops(prepared.layers, measure=measure)
            done = [_quantize_layer(execution, stop, recipes) for stop in stops]
        except (QuantizationError, torch.OutOfMemoryError):
            raise
        except Exception:
            for batch in seen.values():
                check_runs(prepared.network, batch)  # tells in a line where it is the network that fails
            raise
    p, others = prepared, _others(prepared.view.structure, recipes[0].ignore)
    made = [
        QuantizedNetwork(network, layers, 0.0, recipe, p.folded, "", others, p.on_floats, p.inputs)
        for network, layers, recipe in zip(quantized, zip(*done, strict=True), recipes, strict=True)
    ]
    return prepared, _with_errors(made, execution) if measure else made


def _most(network: nn.Module) -> int | None:
    """How many threads work on a network, at most."""
    return 1 if device_of(network).type == "cuda" else None


def _quantize_only(
    analog: nn.Module, batches: Iterable[Batch], recipes: Sequence[Recipe], output: Output
) -> list[QuantizedNetwork]:
    """Quantize by each recipe."""
    if not _learning_together(recipes):
        return _quantize_copies(analog, batches, recipes, output)[1]
    batches = list(batches)
    prepared, made = _quantize_copies(analog, batches, recipes, output, measure=False)
    return _measured(prepared, _refined(prepared, made, batches, output), batches, output)


def _refined(
    prepared: _Prepared, results: Sequence[QuantizedNetwork], batches: Sequence[Batch], output: Output
) -> list[QuantizedNetwork]:
    """The results, layers learned together where the method does so; errors are not filled in."""
    refined = list[QuantizedNetwork]()
    with worker_pool(_most(prepared.network)) as pool:
        for result in results:
            recipe, method = result.recipe, METHODS[result.recipe.method]
            refine, traced = method.load_refiner(), prepared.view.traced
            if refine is None or traced is None:
                refined.append(result)
                continue
            settings = Settings("", method.settings(recipe.options), recipe.seed, recipe.memory / 2)
            about = (prepared.layers, *traced, batches, output, pool, settings)
            layers = refine(NetworkProblem(prepared.network, result, *about))
            refined.append(replace(result, layers=layers))
    return refined


def _quantize_and_judge(
    analog: nn.Module, batches: Iterable[Batch], recipes: Sequence[Recipe], output: Output
) -> list[QuantizedNetwork]:
    """Quantize by each recipe without the images that are held back, and measure the errors on these."""
    split = Split.of(batches, recipes[0].held_back, recipes[0].seed)
    learned = list(split.learned.parts(recipes[0].batch_size))
    with worker_pool(_most(analog)) as pool:
        Y = logits_of_all(analog, split.held_back.parts(CHUNK), output, pool)
    if recipes[0].tune is None:
        results = _quantize_only(analog, learned, recipes, output)
    else:
        results = _quantize_and_tune(analog, split, learned, recipes, output)
    judged = list[QuantizedNetwork]()
    with worker_pool(_most(analog)) as pool:
        for result in results:
            Y_q = logits_of_all(result.network, split.held_back.parts(CHUNK), output, pool)
            (error,) = errors_of([Y, Y_q])
            if not isfinite(error.size + error.error):
                raise QuantizationError("logits of images held back are not finite; check weights and images")
            judged.append(replace(result, held_back_error=error.relative))
    return judged


def _quantize_and_tune(
    analog: nn.Module, split: Split, learned: Sequence[Batch], recipes: Sequence[Recipe], output: Output
) -> list[QuantizedNetwork]:
    """Quantize by each recipe, and tune.

    What differs in tuning alone is quantized once, and the float network gives its answers once for all.
    """
    plans = [(recipe, recipe.tune) for recipe in recipes if recipe.tune]
    transfers = dict[Tuning, TransferSet]()
    with worker_pool(_most(analog)) as pool:
        for recipe, tuning in plans:
            if tuning.of_any_loss not in transfers:
                transfers[tuning.of_any_loss] = transfer_set_of(analog, split, recipe, output, pool)
            transfers[tuning.of_any_loss].check(tuning.compared)
    untuned = list(dict.fromkeys(replace(recipe, tune=None) for recipe in recipes))
    prepared, made = _quantize_copies(analog, learned, untuned, output, measure=False)
    made = _refined(prepared, made, learned, output)
    tuned = list[QuantizedNetwork]()
    with worker_pool(_most(analog)) as pool:
        for recipe, tuning in plans:
            result = replace(made[untuned.index(replace(recipe, tune=None))], recipe=recipe)
            tuned.append(tune(result, transfers[tuning.of_any_loss], pool))
    return _measured(prepared, tuned, learned, output)


def _measured(
    prepared: _Prepared, results: Sequence[QuantizedNetwork], batches: Sequence[Batch], output: Output
) -> list[QuantizedNetwork]:
    """The results with their errors, now that whole networks have learned."""
    networks = Networks(prepared.network, tuple(result.network for result in results), output)
    memory = results[0].recipe.memory / 2
    with worker_pool(_most(prepared.network)) as pool, Offload(memory) as offload:
        execution = prepared.view.execution(networks, pool, offload)
        execution.keep(batches)
        for _ in execution.stops(prepared.layers):
            pass  # the weights are there already
    return _with_errors(results, execution)


def _noted(batches: Iterable[Batch], seen: dict[Any, Batch]) -> Iterator[Batch]:
    """The batches; ``seen`` gets two images of each shape."""
    for batch in batches:
        shapes = tuple(t.shape[1:] for t in batch.values)
        if shapes not in seen:
            seen[shapes] = batch.map(lambda t: t[:2].clone())
        yield batch


def layer_names(network: nn.Module, images: Any, ignore: Sequence[str] = ()) -> list[str]:
    """The names of the layers that ``quantize`` would quantize, in the order of execution.

    Args:
        network: as for ``quantize``.
        images: as for ``quantize``; one is enough.
        ignore: patterns of names, as in ``Recipe.ignore``.

    Raises:
        QuantizationError: as ``quantize`` does of these.
    """
    with as_workers(), linears_of_attention():
        analog = copied(unwrapped(network))
        structure = _view(analog, next(calibration_batches(analog, images, 1))).structure
        return [layer.name for layer in _to_quantize(analog, structure, [Recipe(ignore=tuple(ignore))])]


def copied(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode.

    Raises:
        QuantizationError: the network cannot be copied.
    """
    held = [value for module in network.modules() for value in vars(module).values()]
    # Torch copies no tensor that it has computed with gradients, as hooks of weight_norm or prune do.
    computed = {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and not v.is_leaf}
    # Of every module's empty dictionaries of hooks, deepcopy makes more work than of its weights.
    empty = {id(v): v.copy() for v in held if type(v) in {dict, OrderedDict, set} and not v}
    try:
        return copy.deepcopy(network, {**computed, **empty}).eval()
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise QuantizationError(f"the network cannot be copied: {reason}") from error


@dataclass(frozen=True)
class _View:
    """What is known of a network's structure, what runs it, and its graph, if there is one."""

    structure: Structure
    execution: Callable[[Networks, Pool, Offload], Execution]
    traced: tuple[Graph, Reading] | None = None


def _view(network: nn.Module, batch: Batch, in_need: Sequence[str] = ()) -> _View:
    """The network as a graph or, where there is none, as one pass over its functions shows it.

    Raises:
        QuantizationError: there is no graph, and methods are in need of it.
    """
    graph = trace(network, batch)
    if isinstance(graph, Graph):
        traced = graph, Reading(graph, network)
        return _View(traced[1].structure, partial(Lockstep, traced), traced)
    check_runs(network, batch)
    if in_need:
        raise QuantizationError(
            f"method: {in_need[0]} finds blocks in the network's graph, and there is none ({graph}); take a "
            "method that goes layer by layer"
        )
    warnings.warn(
        f"the network has no graph ({graph}): each layer takes a pass of its own",
        stacklevel=5,  # whoever called quantize
    )
    return _View(Recording(network, batch).structure, Layerwise)


def _learning_together(recipes: Sequence[Recipe]) -> list[str]:
    """The methods that learn layers together."""
    return [recipe.method for recipe in recipes if METHODS[recipe.method].refiner]


def _check_alike(recipes: Sequence[Recipe]) -> None:
    if budget := next((r.activations for r in recipes if isinstance(r.activations, str)), None):
        raise QuantizationError(
            f"activations: found {budget}; a budget is spent for classes: choose_activations makes bits of it"
        )
    if len({recipe.activations is None for recipe in recipes}) > 1:
        raise QuantizationError(
            "activations: recipes of one pass must all have bits for these, or none of them"
        )
    if len({recipe.tune is None for recipe in recipes}) > 1:
        raise QuantizationError("tune: recipes of one pass must all be tuned, or none of them")
    for option in (*_SHARED, "seed") if recipes[0].held_back else _SHARED:
        values = [getattr(recipe, option) for recipe in recipes]
        if any(value != values[0] for value in values):
            found = " and ".join(dict.fromkeys(map(repr, values)))
            raise QuantizationError(f"{option}: recipes of one pass must agree; found {found}")


def _to_quantize(network: nn.Module, structure: Structure, recipes: Sequence[Recipe]) -> list[Layer]:
    """The layers that are not ignored, their weights checked."""
    ignore = recipes[0].ignore
    names = [layer.name for layer in structure.layers] + [other.name for other in structure.others]
    check_patterns("ignore", ignore, names)
    layers = [layer for layer in structure.layers if not _matches(layer.name, ignore)]
    if not layers:
        raise QuantizationError(_nothing(structure))
    chosen = {layer.name for layer in layers}
    for recipe in recipes:
        if not isinstance(recipe.bits, int) and (missing := chosen - recipe.bits.keys()):
            raise QuantizationError(f"bits: no entry for {', '.join(sorted(missing))}")
    for layer in layers:
        if not torch.isfinite(network.get_parameter(layer.parameter)).all():
            raise QuantizationError(f"layer {layer.name}: weights are not finite")
    return layers


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _nothing(structure: Structure) -> str:
    if structure.layers:
        return "no layer to quantize: ignore covers them all"
    reasons = "; ".join(f"{other.name}: {other.reason}" for other in structure.others)
    return "no layer to quantize: the network has none" + (f" ({reasons})" if reasons else "")


def _others(structure: Structure, ignore: Sequence[str]) -> tuple[NotQuantized, ...]:
    """What is not quantized; one warning tells of all that users have not asked for."""
    asked = [
        NotQuantized(layer.name, layer.weights, "ignore names it")
        for layer in structure.layers
        if _matches(layer.name, ignore)
    ]
    if found := [other for other in structure.others if not _matches(other.name, ignore)]:
        told = "; ".join(f"{other.name} ({other.weights} weights): {other.reason}" for other in found)
        warnings.warn(f"not quantized: {told}; name it in ignore if that is meant", stacklevel=5)
    return (*asked, *structure.others)


def _quantize_layer(
    execution: Execution, stop: Stop, recipes: Sequence[Recipe]
) -> tuple[QuantizedLayer, ...]:
    """Choose a layer's codes by every recipe, and set the quantized networks' weights and biases."""
    done = []
    for k, recipe in enumerate(recipes):
        begin = time.perf_counter()
        layer = _quantize_by(execution, stop, k, recipe)
        done.append(replace(layer, seconds=time.perf_counter() - begin))
    return tuple(done)


def _quantize_by(execution: Execution, stop: Stop, k: int, recipe: Recipe) -> QuantizedLayer:
    layer, operation = stop.layer, stop.layer.operations[0]
    weight = execution.networks.analog.get_parameter(layer.parameter)
    W = operation.to_matrices(in_float32(weight.detach()))
    inputs = _inputs(W, stop, k, recipe, execution.pool)
    solved = solve(layer.name, W, inputs, recipe)
    Q = solved.alphabet.decode(solved.codes)
    network = execution.networks.quantized[k]
    network.get_parameter(layer.parameter).copy_(operation.from_matrices(Q, weight.shape))
    if recipe.bias_correction:
        X_mean, X_q_mean = inputs.means()
        shift = W.double() @ X_mean[..., None] - Q.double() @ X_q_mean[..., None]
        _shift_bias(network, execution.add_bias(layer), shift.flatten().to(weight))
    return QuantizedLayer(
        name=layer.name,
        bits=recipe.alphabet_spec(layer.name).bits,
        codes=operation.from_matrices(solved.codes, weight.shape),
        alphabet=solved.alphabet.with_step(operation.step_over(solved.alphabet.step, weight.shape)),
        relative_error=0.0,
        seconds=0.0,
        flops=solved.flops,
        operation=operation.kind,
        parameter=layer.parameter,
    )


def _inputs(W: Tensor, stop: Stop, k: int, recipe: Recipe, pool: Pool) -> Inputs:
    """What all calls of a layer are given in the analog network and in quantized network ``k``."""
    first, given = stop.layer.operations[0], stop.given[k]
    calls = range(len(stop.layer.operations))
    names = [f"{stop.layer.name}#{call}" if call else stop.layer.name for call in calls]
    samplers = [Sampler(recipe.retain_rate, recipe.seed, name) for name in names]
    return Inputs(
        chunks=[partial(_patches, one, samplers[one.call]) for one in given],
        sizes=[samplers[one.call].kept(one.operation.grid(one.shape)) for one in given],
        groups=first.groups,
        columns=W.shape[2],
        kernel=first.kernel,
        pool=pool,
        shifts=recipe.retain_rate == 1 and all(o.has_shifts for o in stop.layer.operations),
    )


def _patches(given: CallInputs, sampler: Sampler) -> Patches:
    X, X_q = (in_float32(t) for t in given.pair())
    return given.operation.patches(X, X_q, sampler.places_from(given.first))


def _shift_bias(network: nn.Module, name: str, shift: Tensor) -> None:
    bias = attribute(network, name)
    if bias is None:
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, nn.Parameter(shift))
    else:
        bias.add_(shift)


def _with_errors(results: Sequence[QuantizedNetwork], execution: Execution) -> list[QuantizedNetwork]:
    """Fill in the measured errors of the networks and their layers."""
    for name, by_network in execution.errors.items():
        if not all(isfinite(error.size) and isfinite(error.error) for error in by_network):
            where = name if name == OUTPUTS else f"outputs of layer {name}"
            raise QuantizationError(f"{where} are not finite; check weights and images")
    filled = []
    for k, result in enumerate(results):
        relative = {name: by_network[k].relative for name, by_network in execution.errors.items()}
        layers = tuple(replace(layer, relative_error=relative[layer.name]) for layer in result.layers)
        filled.append(replace(result, layers=layers, relative_error=relative[OUTPUTS]))
    return filled
