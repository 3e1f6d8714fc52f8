"""What fewer bits cost each layer, on the classes that matter."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from laq.quantization.calibration.batch import Batch
from laq.quantization.calibration.images import calibration_batches
from laq.quantization.execution.attention import linears_of_attention
from laq.quantization.execution.graph import Program, Reading, Segment, trace
from laq.quantization.execution.layerwise import run
from laq.quantization.execution.offload import Offload
from laq.quantization.execution.outputs import logits_of
from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork
from laq.quantization.threads import Pool, as_workers, worker_pool

_BATCH: Final = 16  # images that a core takes at once; changes memory and rounding, nothing else
_Runs = list[Callable[[], Tensor]]  # what computes the logits, batch by batch


@dataclass(frozen=True)
class Sensitivities:
    """What fewer bits cost, by layer in the order of execution.

    Attributes:
        losses: by layer and bits, ≥ 0, in any unit that adds up.
        weights: how many weights each layer has.
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
        for name, runs in probe.stops(dict.fromkeys(name for by_name in layers for name in by_name)):
            for trial, by_name in zip(found, layers, strict=True):
                if name in by_name:
                    layer = by_name[name]
                    weight = trial.network.get_parameter(layer.parameter)
                    for own, loss in zip(losses, probe.losses(layer, weight, runs), strict=True):
                        own.setdefault(name, {})[layer.bits] = loss
    weights = {name: layer.codes.numel() for by_name in layers for name, layer in by_name.items()}
    return tuple(Sensitivities(own, weights) for own in losses)


class _Probe:
    """Compares a network, which it owns, to itself with a layer's weights replaced."""

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

    def stops(self, names: Iterable[str]) -> Iterator[tuple[str, _Runs]]:
        """Each layer's name, and what runs the network from a place before that layer on."""
        graph, wanted = trace(self.network, self.batches[0]), list(names)
        if isinstance(graph, str):
            yield from ((name, self.whole) for name in wanted)
            return
        reading = Reading(graph, self.network)
        layers = [layer for layer in reading.structure.layers if layer.name in wanted]
        program = Program(graph, reading, layers)
        numbers = range(len(self.batches))
        for segment in program.segments[:-1]:
            self.pool.run(partial(self._advance, program, segment), numbers)
            runs: _Runs = [partial(self._finish, program, segment.end, n) for n in numbers]
            yield from ((stop.layer.name, runs) for stop in segment.stops)

    def losses(self, layer: QuantizedLayer, weight: Tensor, runs: _Runs) -> list[float]:
        """The mean divergences (nats) from the network's probabilities, with other weights of a layer."""
        target = self.network.get_parameter(layer.parameter)
        kept, target.data = target.data, weight.data
        try:
            found = self._log_probabilities(runs)
        finally:
            target.data = kept
        losses = [
            F.kl_div(q, p, reduction="batchmean", log_target=True).item()
            for q, p in zip(found, self.references, strict=True)
        ]
        if not all(isfinite(loss) for loss in losses):
            raise QuantizationError(f"layer {layer.name}: outputs at {layer.bits} bits are not finite")
        return [max(loss, 0.0) for loss in losses]  # rounding may fall below 0

    def _log_probabilities(self, runs: _Runs) -> list[Tensor]:
        """Of every image, among the classes that count, in float64; for each of the subsets."""
        logits = torch.cat(list(self.pool.map(lambda run: run(), runs))).double()
        return [logits[:, classes].log_softmax(1) for classes in self.subsets]

    @torch.inference_mode()
    def _logits(self, batch: Batch) -> Tensor:
        return logits_of(run(self.network, batch))

    @torch.inference_mode()
    def _advance(self, program: Program, segment: Segment, number: int) -> None:
        """Run a batch over a segment, from the images or from where it is."""
        values = program.begin(self.batches[number]) if segment.start == 0 else self.offload.take((number, 0))
        program.run(range(segment.start, segment.end), self.network, values)
        self.offload.put((number, 0), values)

    @torch.inference_mode()
    def _finish(self, program: Program, start: int, number: int) -> Tensor:
        # A copy: an operation in place must not reach what the next run begins with.
        values = copy.deepcopy(self.offload.look((number, 0)))
        program.run(range(start, len(program.nodes) - 1), self.network, values)
        return logits_of(program.outputs(self.network, values))
