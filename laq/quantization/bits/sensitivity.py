"""What fewer bits cost each layer, on the classes that matter."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from operator import itemgetter
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from laq.quantization.activations.ranges import RANGES
from laq.quantization.calibration.batch import Batch
from laq.quantization.calibration.images import calibration_batches
from laq.quantization.execution.attention import linears_of_attention
from laq.quantization.execution.graph import Graph, Program, Reading, trace
from laq.quantization.execution.layerwise import run
from laq.quantization.execution.offload import Offload
from laq.quantization.execution.outputs import logits_of
from laq.quantization.execution.points import POINTS, points_of, seen_at_points, with_points
from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork, Recipe
from laq.quantization.threads import Pool, as_workers, worker_pool

_BATCH: Final = 16  # images that a core takes at once; changes memory and rounding, nothing else
_Runs = list[Callable[[], Tensor]]  # what computes the logits, batch by batch


@dataclass(frozen=True)
class Sensitivities:
    """What fewer bits cost, by layer in the order of execution.

    Attributes:
        losses: by layer and bits, ≥ 0, in any unit that adds up.
        weights: how many weights each layer has.

    Of activations, points stand in the place of layers, and the values of an image in that of weights.
    """

    losses: dict[str, dict[int, float]]
    weights: dict[str, int]

    def among(self, choices: Sequence[int]) -> "Sensitivities":
        """Those of some bits alone."""
        losses = {name: {bits: loss[bits] for bits in choices} for name, loss in self.losses.items()}
        return Sensitivities(losses, self.weights)


def sensitivities(
    network: nn.Module,
    images: Any,
    trials: Iterable[QuantizedNetwork],
    classes: Sequence[int] | None = None,
) -> Sensitivities:
    """What each layer's quantized weights cost on the classes that matter, one layer at a time.

    The loss is KL(p ‖ q) in nats, averaged over the images: p and q are the class probabilities, among
    ``classes`` only, of the network and of the same with one layer's weights replaced by a trial's.
    Every trial costs one run of the network per layer: from that layer on, where the network has a graph,
    else from the images.

    Args:
        network: images (b, ...) → logits (b, all classes); run in evaluation mode and left as it was.
        images: calibration inputs, as for ``quantize``; they are read once.
        trials: ``network`` quantized with several bits, without folding batch norms or correcting
            biases. All of them are in memory at a time; half of the largest of their recipes'
            ``memory_gib`` is for activations, before they go to a temporary folder.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: the outputs are not finite.
    """
    return sensitivities_each(network, images, trials, [classes])[0]


def sensitivities_each(
    network: nn.Module,
    images: Any,
    trials: Iterable[QuantizedNetwork],
    subsets: Sequence[Sequence[int] | None],
) -> tuple[Sensitivities, ...]:
    """What ``sensitivities`` gives for each of several ``classes``; the runs of the network are shared.

    Raises:
        QuantizationError: as ``sensitivities`` does.
    """
    found = list(trials)
    layers = [{layer.name: layer for layer in trial.layers} for trial in found]
    losses: list[dict[str, dict[int, float]]] = [{} for _ in subsets]
    memory = max((trial.recipe.memory / 2 for trial in found), default=0.0)
    with worker_pool() as pool, Offload(memory) as offload, as_workers(), linears_of_attention():
        analog = copy.deepcopy(unwrapped(network)).eval()
        batches = list(calibration_batches(analog, images, _BATCH))
        probe = _Probe(analog, batches, subsets, pool, offload)
        names = list(dict.fromkeys(name for by_name in layers for name in by_name))
        for name, runs in probe.stops(partial(_first_reads, names), names):
            for trial, by_name in zip(found, layers, strict=True):
                if name in by_name:
                    layer = by_name[name]
                    weight = trial.network.get_parameter(layer.parameter)
                    with probe.with_weights(layer, weight):
                        found_losses = probe.losses(f"layer {name}: outputs at {layer.bits} bits", runs)
                    for own, loss in zip(losses, found_losses, strict=True):
                        own.setdefault(name, {})[layer.bits] = loss
    weights = {name: layer.codes.numel() for by_name in layers for name, layer in by_name.items()}
    return tuple(Sensitivities(own, weights) for own in losses)


def sensitivities_of_activations(
    network: nn.Module,
    images: Any,
    recipe: Recipe,
    choices: Sequence[int],
    classes: Sequence[int] | None = None,
) -> Sensitivities:
    """What rounding activations costs on the classes that matter, one point at a time, with float weights.

    The loss is that of ``sensitivities``.

    Args:
        network: its batch norms folded, if they are to be.
        images: calibration inputs, as for ``quantize``; they are read once.
        recipe: how ranges are chosen, and what memory there is.
        choices: of bits.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: the outputs are not finite; the network has no graph.
    """
    losses: dict[str, dict[int, float]] = {}
    with worker_pool() as pool, Offload(recipe.memory / 2) as offload, as_workers(), linears_of_attention():
        analog = copy.deepcopy(unwrapped(network)).eval()
        batches = list(calibration_batches(analog, images, _BATCH))
        analog, _ = with_points(analog, batches[0])
        points, seen = points_of(analog), seen_at_points(analog, batches, pool)
        probe = _Probe(analog, batches, [classes], pool, offload)
        for name, runs in probe.stops(_first_uses):
            for bits in choices:
                with points[name].trying(RANGES[recipe.activation_range](seen[name], bits)):
                    (loss,) = probe.losses(f"point {name}: outputs at {bits} bits", runs)
                losses.setdefault(name, {})[bits] = loss
    count = sum(batch.count for batch in batches)
    return Sensitivities(losses, {name: int(seen[name].counts.sum()) // count for name in losses})


def _first_reads(names: Sequence[str], _: Graph, reading: Reading) -> dict[str, int]:
    """The position where the weights of each of these layers are first read."""
    wanted = (layer for layer in reading.structure.layers if layer.name in names)
    return {layer.name: reading.reads[layer.parameter][0] for layer in wanted}


def _first_uses(graph: Graph, _: Reading) -> dict[str, int]:
    """The position of each point, the first one of those where values have only moved since."""
    found: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith(f"{POINTS}."):
            found.setdefault(str(node.target).removeprefix(f"{POINTS}."), position)
    return found


class _Probe:
    """Compares a network, which it owns, to itself with something in it changed."""

    def __init__(
        self,
        network: nn.Module,
        batches: Sequence[Batch],
        subsets: Sequence[Sequence[int] | None],
        pool: Pool,
        offload: Offload,
    ) -> None:
        self.network = network
        self.subsets = [slice(None) if classes is None else list(classes) for classes in subsets]
        self.pool = pool
        self.offload = offload
        self.batches = batches
        self.whole: _Runs = [partial(self._logits, batch) for batch in batches]
        self.references = self._log_probabilities(self.whole)

    def stops(
        self, places: Callable[[Graph, Reading], dict[str, int]], otherwise: Sequence[str] = ()
    ) -> Iterator[tuple[str, _Runs]]:
        """What stands at ``places`` of the graph, in their order, and what runs the network from there on.

        Where there is no graph, the names are as ``otherwise``, and what runs begins with the images.
        """
        graph = trace(self.network, self.batches[0])
        if isinstance(graph, str):
            yield from ((name, self.whole) for name in otherwise)
            return
        reading, at = Reading(graph, self.network), 0
        program, numbers = Program(graph, reading, []), range(len(self.batches))
        for name, position in sorted(places(graph, reading).items(), key=itemgetter(1)):
            if position > at:
                self.pool.run(partial(self._advance, program, range(at, position)), numbers)
            at = position
            yield name, [partial(self._finish, program, at, number) for number in numbers]

    @contextmanager
    def with_weights(self, layer: QuantizedLayer, weight: Tensor) -> Iterator[None]:
        """Give a layer other weights within the context."""
        target = self.network.get_parameter(layer.parameter)
        kept, target.data = target.data, weight.data
        try:
            yield
        finally:
            target.data = kept

    def losses(self, what: str, runs: _Runs) -> list[float]:
        """The mean divergences (nats) from the network's probabilities as it is now; errors say of what."""
        losses = [
            F.kl_div(q, p, reduction="batchmean", log_target=True).item()
            for q, p in zip(self._log_probabilities(runs), self.references, strict=True)
        ]
        if not all(isfinite(loss) for loss in losses):
            raise QuantizationError(f"{what} are not finite")
        return [max(loss, 0.0) for loss in losses]  # rounding may fall below 0

    def _log_probabilities(self, runs: _Runs) -> list[Tensor]:
        """Of every image, among the classes that count, in float64; for each of the subsets."""
        logits = torch.cat(list(self.pool.map(lambda run: run(), runs))).double()
        return [logits[:, classes].log_softmax(1) for classes in self.subsets]

    @torch.inference_mode()
    def _logits(self, batch: Batch) -> Tensor:
        return logits_of(run(self.network, batch))

    @torch.inference_mode()
    def _advance(self, program: Program, positions: range, number: int) -> None:
        """Run a batch over some nodes, from the images or from where it is."""
        first = positions.start == 0
        values = program.begin(self.batches[number]) if first else self.offload.take((number, 0))
        program.run(positions, self.network, values)
        self.offload.put((number, 0), values)

    @torch.inference_mode()
    def _finish(self, program: Program, start: int, number: int) -> Tensor:
        # A copy: an operation in place must not reach what the next run begins with.
        values = copy.deepcopy(self.offload.look((number, 0)))
        program.run(range(start, len(program.nodes) - 1), self.network, values)
        return logits_of(program.outputs(self.network, values))
