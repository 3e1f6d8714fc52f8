"""Label-aware bits: spent on the layers where the classes that matter lose most without them.

What users write becomes a ``Precision``, and that the map of layers to bits that ``Recipe.bits`` takes::

    bits = choose_bits(parse_bits("auto:3"), network, images, recipe, classes)
    result = quantize(network, images, replace(recipe, bits=bits))
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor, nn

from laq.quantization.alphabet import AlphabetKind, AlphabetSpec
from laq.quantization.engine import quantize
from laq.quantization.fusion import fold_batch_norms
from laq.quantization.pool import worker_pool
from laq.quantization.precision import HIGHEST, Budget, Precision, bits_per_layer
from laq.quantization.recipe import QuantizationError, QuantizedNetwork, Recipe

_BATCH: Final = 16  # images that a core takes at once; changes memory and rounding, nothing else


def choose_bits(
    precision: Precision,
    network: nn.Module,
    images: Tensor,
    recipe: Recipe,
    classes: Sequence[int] | None = None,
) -> dict[str, int]:
    """The bits of every layer that ``quantize`` would quantize, for ``Recipe.bits``.

    Only a budget takes time: ``network`` is quantized with each of ``precision.choices``, and run once
    per layer and choice.

    Args:
        precision: what to choose by.
        network: images → logits (b, all classes).
        images: calibration inputs (n, ...).
        recipe: how the network will be quantized; its bits do not matter.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: as ``quantize``, ``bits_per_layer`` and ``label_aware_bits`` do.
    """
    if not isinstance(precision.plan, Budget):
        first = quantize(network, images[:1], replace(recipe, bits=HIGHEST, method="rtn", radius=1.0))
        return bits_per_layer(precision, [layer.name for layer in first.layers])
    if recipe.fuse:
        network = copy.deepcopy(network).eval()
        fold_batch_norms(network)
    # Weights alone are compared: they must be those of the network as it is, without shifted biases.
    recipe = replace(recipe, fuse=False, bias_correction=False)
    trials = (quantize(network, images, replace(recipe, bits=bits)) for bits in precision.choices)
    return label_aware_bits(precision, sensitivities(network, images, trials, classes), recipe.alphabet)


@dataclass(frozen=True)
class Sensitivities:
    """What fewer bits cost, by layer in the order of execution.

    Attributes:
        losses: by layer and bits, ≥ 0, in any unit that adds up.
        weights: how many weights each layer has.
    """

    losses: dict[str, dict[int, float]]
    weights: dict[str, int]


def sensitivities(
    network: nn.Module,
    images: Tensor,
    trials: Iterable[QuantizedNetwork],
    classes: Sequence[int] | None = None,
) -> Sensitivities:
    """What each layer's quantized weights cost on the classes that matter, one layer at a time.

    The loss is KL(p ‖ q) in nats, averaged over the images: p and q are the class probabilities, among
    ``classes`` only, of the network and of the same with one layer's weights replaced by a trial's.
    Every trial costs one run of the network per layer.

    Args:
        network: images (b, ...) → logits (b, all classes); run in evaluation mode and left as it was.
        images: calibration inputs (b, ...).
        trials: ``network`` quantized with several bits, without folding batch norms or correcting
            biases. A generator keeps but one of them in memory.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: the outputs are not finite.
    """
    probe = _Probe(copy.deepcopy(network).eval(), images, classes)
    losses: dict[str, dict[int, float]] = {}
    weights: dict[str, int] = {}
    for trial in trials:
        for layer in trial.layers:
            loss = probe.loss(layer.name, trial.network.get_submodule(layer.name).get_parameter("weight"))
            if not isfinite(loss):
                raise QuantizationError(f"layer {layer.name}: outputs at {layer.bits} bits are not finite")
            losses.setdefault(layer.name, {})[layer.bits] = loss
            weights[layer.name] = layer.codes.numel()
    return Sensitivities(losses, weights)


class _Probe:
    """Compares a network, which it owns, to itself with a layer's weights replaced."""

    def __init__(self, network: nn.Module, images: Tensor, classes: Sequence[int] | None) -> None:
        self.network = network
        self.device = next(network.parameters()).device
        self.batches = torch.split(images, _BATCH)
        self.classes = slice(None) if classes is None else list(classes)
        self.reference = self._log_probabilities()

    def loss(self, layer: str, weight: Tensor) -> float:
        """The mean divergence (nats) from the network's probabilities."""
        target = self.network.get_submodule(layer).get_parameter("weight")
        kept, target.data = target.data, weight.data
        try:
            found = self._log_probabilities()
        finally:
            target.data = kept
        divergence = F.kl_div(found, self.reference, reduction="batchmean", log_target=True)
        return divergence.clamp(min=0).item()  # rounding may fall below 0

    def _log_probabilities(self) -> Tensor:
        """Of every image and class that counts, in float64."""
        with worker_pool() as pool:
            logits = torch.cat(list(pool.map(self._logits, self.batches)))
        return logits[:, self.classes].double().log_softmax(1)

    @torch.inference_mode()
    def _logits(self, batch: Tensor) -> Tensor:
        # A copy: an operation in place must not reach the caller's images.
        logits: Tensor = self.network(batch.to(self.device, copy=True))
        return logits


def label_aware_bits(
    precision: Precision, measured: Sensitivities, alphabet: AlphabetKind = "symmetric"
) -> dict[str, int]:
    """The bits of every layer that lose least within a budget, the first and last being as given.

    Raises:
        QuantizationError: the plan is not a budget, or it is too small.
    """
    if not isinstance(precision.plan, Budget):
        raise QuantizationError("bits: only auto is chosen from sensitivities")
    fixed = {name: {bits: 0.0} for name, bits in precision.ends(list(measured.losses)).items()}
    budget = precision.plan.bits(sum(measured.weights.values()))
    return allocate(measured.losses | fixed, measured.weights, budget, alphabet)


def allocate(
    losses: Mapping[str, Mapping[int, float]],
    weights: Mapping[str, int],
    budget: int,
    alphabet: AlphabetKind = "symmetric",
) -> dict[str, int]:
    """The bits of every layer whose losses add up to the least that ``budget`` bits allow.

    A multiple-choice knapsack, solved exactly: layer by layer, all sums of size and loss are kept that
    no other beats in both (Nemhauser and Ullmann 1969). Of equal losses the smaller size wins.

    Args:
        losses: by layer and bits, each layer having some choice.
        weights: of every layer, how many.
        budget: bits for the codes of all weights.
        alphabet: which codes: a weight takes the whole bits that its number of levels needs.

    Raises:
        QuantizationError: no choice fits the budget.
    """
    names = list(losses)
    sizes = [np.array([weights[n] * code_bits(alphabet, b) for b in losses[n]], np.int64) for n in names]
    least = sum(int(s.min()) for s in sizes)
    if least > budget:
        raise QuantizationError(_too_small(budget, least, sum(weights[n] for n in names)))
    size, loss, kept = np.zeros(1, np.int64), np.zeros(1), []
    for name, choices in zip(names, sizes, strict=True):
        least -= int(choices.min())
        size = np.add.outer(size, choices).ravel()
        loss = np.add.outer(loss, list(losses[name].values())).ravel()
        kept.append(_unbeaten(size, loss, budget - least))
        size, loss = size[kept[-1]], loss[kept[-1]]
    return _trace_back(losses, kept)


def _unbeaten(size: NDArray[np.int64], loss: NDArray[np.float64], budget: int) -> NDArray[np.int64]:
    """Indices of the sums within ``budget`` that no smaller or equal one matches in loss, by size."""
    order = np.lexsort((loss, size))
    order = order[size[order] <= budget]
    lowest = np.minimum.accumulate(loss[order])
    unbeaten: NDArray[np.int64] = order[np.r_[True, lowest[1:] < lowest[:-1]]]
    return unbeaten


def _trace_back(losses: Mapping[str, Mapping[int, float]], kept: list[NDArray[np.int64]]) -> dict[str, int]:
    """The choices that led to the last, so the best, of the sums that were kept."""
    chosen: list[int] = []
    at = -1
    for choices, indices in zip(reversed(list(losses.values())), reversed(kept), strict=True):
        at, choice = divmod(int(indices[at]), len(choices))
        chosen.append(list(choices)[choice])
    return dict(zip(losses, reversed(chosen), strict=True))


def code_bits(alphabet: AlphabetKind, bits: int) -> int:
    """The whole bits of a packed weight, ⌈log2 levels⌉: ``bits``, but one more for the predecessor's."""
    low, high = AlphabetSpec(alphabet, bits).codes
    return (high - low).bit_length()


def _too_small(budget: int, least: int, weights: int) -> str:
    found, needed = (f"{b / weights:.4g} bits a weight ({b / 8:,.0f} bytes)" for b in (budget, least))
    return f"bits: a budget of {found} is too small; the least possible is {needed}"
