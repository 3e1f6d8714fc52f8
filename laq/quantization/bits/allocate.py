"""Label-aware bits: spent on the layers where the classes that matter lose most without them.

What users write becomes a ``Precision``, and that the map of layers to bits that ``Recipe.bits`` takes::

    bits = choose_bits(parse_bits("auto:3"), network, images, recipe, classes)
    result = quantize(network, images, replace(recipe, bits=bits))
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from laq.quantization.alphabet import AlphabetSpec
from laq.quantization.bits.sensitivity import Sensitivities, sensitivities, sensitivities_of_activations
from laq.quantization.bits.spec import Budget, Precision, bits_per_layer, parse_bits
from laq.quantization.calibration.batch import Batch
from laq.quantization.calibration.images import calibration_batches
from laq.quantization.calibration.split import Split
from laq.quantization.engine import copied, layer_names, quantize_each
from laq.quantization.execution.equalization import fold_and_equalize
from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.options import AlphabetKind, QuantizationError
from laq.quantization.recipe import Recipe
from laq.quantization.threads import as_workers


def choose_bits(
    precision: Precision,
    network: nn.Module,
    images: Any,
    recipe: Recipe,
    classes: Sequence[int] | None = None,
) -> dict[str, int]:
    """The bits of every layer that ``quantize`` would quantize, for ``Recipe.bits``.

    Only a budget takes time: ``network`` is quantized with all of ``precision.choices`` in one pass,
    and run once per layer and choice, from that layer on where it can be traced.

    Args:
        precision: what to choose by.
        network: images → logits (b, all classes).
        images: calibration inputs, as for ``quantize``.
        recipe: how the network will be quantized; its bits do not matter. What a tuning holds back is not
            read here either.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: as ``quantize``, ``bits_per_layer`` and ``label_aware_bits`` do.

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, choose_bits, parse_bits, quantize
        >>> network = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> images, recipe = torch.rand(64, 16), Recipe(method="gpfq")
        >>> bits = choose_bits(parse_bits("auto:3"), network, images, recipe, classes=[0, 2])
        >>> from dataclasses import replace
        >>> quantize(network, images, replace(recipe, bits=bits)).mean_bits <= 3
        True
    """
    return choose_bits_each([precision], network, images, recipe, classes)[0]


def choose_bits_each(
    precisions: Sequence[Precision],
    network: nn.Module,
    images: Any,
    recipe: Recipe,
    classes: Sequence[int] | None = None,
) -> tuple[dict[str, int], ...]:
    """What ``choose_bits`` gives for each of ``precisions``; budgets share what is measured.

    Args:
        precisions: what to choose by, each for itself.
        network: as for ``choose_bits``, like the others.
        images: as for ``choose_bits``.
        recipe: how the network will be quantized.
        classes: indices of the logits that count; None for all.

    Raises:
        QuantizationError: as ``choose_bits`` does.
    """
    images = list(images) if isinstance(images, Iterator) else images  # which are read several times
    choices = dict.fromkeys(b for p in precisions if isinstance(p.plan, Budget) for b in p.choices)
    names, measured = list[str](), Sensitivities({}, {})
    if not all(isinstance(p.plan, Budget) for p in precisions):
        names = layer_names(network, images, recipe.ignore)
    fixed = [None if isinstance(p.plan, Budget) else bits_per_layer(p, names) for p in precisions]
    if choices:
        measured = _measure(network, images, recipe, choices, classes)
    return tuple(
        label_aware_bits(p, measured.among(p.choices), recipe.alphabet) if bits is None else bits
        for p, bits in zip(precisions, fixed, strict=True)
    )


def choose_activations(
    network: nn.Module, images: Any, recipe: Recipe, classes: Sequence[int] | None = None
) -> dict[str, int]:
    """The bits at every point where activations are rounded, which lose least within a recipe's budget.

    The budget is a mean over the values of all points: ``auto:6`` is 6 bits an activation on average. Each
    point is tried with each of the ``CHOICES`` of bits, all others and the weights being floats.

    Args:
        network: images → logits (b, all classes).
        images: calibration inputs, as for ``quantize``.
        recipe: how the network will be quantized, ``activations`` being a text such as ``auto:6``.
        classes: indices of the logits that count; None for all.

    Returns:
        What takes the text's place in ``Recipe.activations``.

    Raises:
        QuantizationError: there is no such budget; the network has no graph.

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, choose_activations, quantize
        >>> network = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        >>> images, recipe = torch.rand(64, 16), Recipe(bits=7, activations="auto:6")
        >>> bits = choose_activations(network, images, recipe, classes=[0, 2])
        >>> list(bits), (16 * bits["input_1"] + 8 * bits["_1"]) / 24 <= 6
        (['input_1', '_1'], True)
        >>> from dataclasses import replace
        >>> result = quantize(network, images, replace(recipe, activations=bits))
    """
    if not isinstance(recipe.activations, str):
        raise QuantizationError(f"activations: found {recipe.activations!r}; must be a budget such as auto:6")
    images = list(images) if isinstance(images, Iterator) else images
    precision = parse_bits(recipe.activations)
    folded, images = _prepared(network, images, recipe)
    measured = sensitivities_of_activations(folded, images, recipe, precision.choices, classes)
    return label_aware_bits(precision, measured)


def _measure(
    network: nn.Module,
    images: Any,
    recipe: Recipe,
    choices: Iterable[int],
    classes: Sequence[int] | None,
) -> Sensitivities:
    network, images = _prepared(network, images, recipe)
    # Weights alone are compared: they must be those of the network as it is, without shifted biases.
    recipe = replace(recipe, fuse=False, equalize=False, bias_correction=False, tune=None, held_back=0.0)
    trials = quantize_each(network, images, [replace(recipe, bits=bits) for bits in choices])
    return sensitivities(network, images, trials, classes)


def _prepared(network: nn.Module, images: Any, recipe: Recipe) -> tuple[nn.Module, Any]:
    """The network as it is before a recipe's method takes it, and the images that this learns from."""
    if recipe.held_back:
        images = _learned(network, images, recipe)
    if recipe.fuse:
        with as_workers():
            network = copied(unwrapped(network))
            batches = calibration_batches(network, images, recipe.batch_size)
            known = list(batches if recipe.equalize else islice(batches, 1))
            fold_and_equalize(network, known, recipe)
    return network, images


def _learned(network: nn.Module, images: Any, recipe: Recipe) -> list[Batch]:
    """The images that methods learn from, without those that are held back."""
    with as_workers():
        batches = calibration_batches(unwrapped(network), images, recipe.batch_size)
        return list(Split.of(batches, recipe.held_back, recipe.seed).learned.parts(recipe.batch_size))


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
        total = sum(weights[n] for n in names)
        found, needed = (f"{b / total:.4g} bits a weight ({b / 8:,.0f} bytes)" for b in (budget, least))
        raise QuantizationError(f"bits: a budget of {found} is too small; the least possible is {needed}")
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
