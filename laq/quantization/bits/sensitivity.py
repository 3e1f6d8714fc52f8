"""What fewer bits cost each layer, on the classes that matter."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from laq.quantization.execution.graph import Program, Segment, first_argument, trace
from laq.quantization.execution.offload import Shelf
from laq.quantization.recipe import QuantizationError, QuantizedNetwork
from laq.quantization.threads import Pool, worker_pool

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
    images: Tensor,
    trials: Iterable[QuantizedNetwork],
    classes: Sequence[int] | None = None,
) -> Sensitivities:
    """What each layer's quantized weights cost on the classes that matter, one layer at a time.

    The loss is KL(p ‖ q) in nats, averaged over the images: p and q are the class probabilities, among
    ``classes`` only, of the network and of the same with one layer's weights replaced by a trial's.
    Every trial costs one run of the network per layer: from that layer on, where ``torch.fx`` can trace
    it, else from the images.

    Args:
        network: images (b, ...) → logits (b, all classes); run in evaluation mode and left as it was.
        images: calibration inputs (b, ...).
        trials: ``network`` quantized with several bits, without folding batch norms or correcting
            biases. All of them are in memory at a time; half of the largest of their recipes'
            ``memory_gib`` is for activations, before they go to a temporary folder.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: the outputs are not finite.
    """
    found = list(trials)
    layers = [{layer.name: layer for layer in trial.layers} for trial in found]
    losses: dict[str, dict[int, float]] = {}
    memory = max((trial.recipe.memory / 2 for trial in found), default=0.0)
    with worker_pool() as pool, Shelf(memory) as shelf:
        probe = _Probe(copy.deepcopy(network).eval(), images, classes, pool, shelf)
        for name, runs in probe.stops(dict.fromkeys(name for by_name in layers for name in by_name)):
            for trial, by_name in zip(found, layers, strict=True):
                if name in by_name:
                    weight = trial.network.get_submodule(name).get_parameter("weight")
                    bits = by_name[name].bits
                    losses.setdefault(name, {})[bits] = probe.loss(name, bits, weight, runs)
    weights = {name: layer.codes.numel() for by_name in layers for name, layer in by_name.items()}
    return Sensitivities(losses, weights)


class _Probe:
    """Compares a network, which it owns, to itself with a layer's weights replaced."""

    def __init__(
        self, network: nn.Module, images: Tensor, classes: Sequence[int] | None, pool: Pool, shelf: Shelf
    ) -> None:
        self.network = network
        self.device = next(network.parameters()).device
        self.classes = slice(None) if classes is None else list(classes)
        self.pool = pool
        self.shelf = shelf
        self.batches = torch.split(images, _BATCH)
        self.whole: _Runs = [partial(self._logits, batch) for batch in self.batches]
        self.reference = self._log_probabilities(self.whole)

    def stops(self, names: Iterable[str]) -> Iterator[tuple[str, _Runs]]:
        """Each layer's name, and what runs the network from a place before that layer on."""
        graph = trace(self.network)
        if isinstance(graph, str):
            yield from ((name, self.whole) for name in names)
            return
        program = Program(graph, frozenset(names))
        numbers = range(len(self.batches))
        for at, segment in enumerate(program.segments[:-1]):
            self.pool.run(partial(self._advance, program, segment), numbers)
            rest = program.segments[at + 1 :]
            yield str(segment.end.target), [partial(self._finish, program, rest, n) for n in numbers]

    def loss(self, name: str, bits: int, weight: Tensor, runs: _Runs) -> float:
        """The mean divergence (nats) from the network's probabilities."""
        target = self.network.get_submodule(name).get_parameter("weight")
        kept, target.data = target.data, weight.data
        try:
            found = self._log_probabilities(runs)
        finally:
            target.data = kept
        loss = F.kl_div(found, self.reference, reduction="batchmean", log_target=True).item()
        if not isfinite(loss):
            raise QuantizationError(f"layer {name}: outputs at {bits} bits are not finite")
        return max(loss, 0.0)  # rounding may fall below 0

    def _log_probabilities(self, runs: _Runs) -> Tensor:
        """Of every image and class that counts, in float64."""
        logits = torch.cat(list(self.pool.map(lambda run: run(), runs)))
        return logits[:, self.classes].double().log_softmax(1)

    @torch.inference_mode()
    def _logits(self, batch: Tensor) -> Tensor:
        # A copy: an operation in place must not reach the caller's images.
        logits: Tensor = self.network(batch.to(self.device, copy=True))
        return logits

    @torch.inference_mode()
    def _advance(self, program: Program, segment: Segment, number: int) -> None:
        """Run a batch from the images or the segment's layer up to the segment's end."""
        if segment.layer is None:
            values = {"images": self.batches[number].to(self.device)}
        else:
            values = self.shelf.take((number, 0))
        program.run(segment.nodes, self.network, values)
        self.shelf.put((number, 0), values)

    @torch.inference_mode()
    def _finish(self, program: Program, rest: Sequence[Segment], number: int) -> Tensor:
        # A copy: an operation in place must not reach what the next run begins with.
        values = copy.deepcopy(self.shelf.look((number, 0)))
        for segment in rest:
            program.run(segment.nodes, self.network, values)
        logits: Tensor = first_argument(rest[-1].end, values)
        return logits
