"""The network that is exported: quantized as the study would, and cut to its subset's classes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laq.architectures import Classifier, put_rows
from laq.errors import LaqError
from laq.export.cut import cut_of
from laq.network.weights import load_network
from laq.quantization import (
    QuantizationError,
    QuantizedNetwork,
    Recipe,
    choose_activations,
    choose_bits,
    keep_rows,
    parse_bits,
    quantize,
)
from laq.quantization.files.onnx import most_bits
from laq.sections.commands import Export
from laq.sections.study import Study
from laq.study.cells import Cell, plan
from laq.study.inputs import StudyInputs
from laq.subsets.subset import Subset

Bits = int | dict[str, int]


@dataclass(frozen=True)
class RestrictedNetworks:
    """The quantized network and the float one, both with the outputs of the subset's classes alone.

    Output i stands for the i-th of ``numbers``, the classes in rising order. ``capped`` says whether weights
    have fewer bits than were asked for.
    """

    quantized: QuantizedNetwork
    original: Classifier
    numbers: tuple[int, ...]
    capped: bool

    def outputs_of(self, labels: Tensor) -> Tensor:
        """The output that stands for each label (n,) of these classes."""
        return torch.searchsorted(torch.tensor(self.numbers), labels)


def restrict(study: Study, subset: Subset, asked: Export) -> RestrictedNetworks:
    """Quantize for the subset, on the images that the study would calibrate on.

    Raises:
        LaqError: the network cannot be quantized so, or cut to classes.
    """
    network, numbers = load_network(), tuple(sorted(subset.classes))
    cut, asks = cut_of(network, numbers), as_study(study, asked)
    cell = plan([subset], asks)[-1]
    images = StudyInputs(asks).calibration_images(cell)
    try:
        recipe, capped = _recipe(cell, network, images, asked)
        quantized = keep_rows(quantize(network, images, recipe), cut)
    except QuantizationError as error:
        raise LaqError(f"export: {error}") from error
    original = Classifier(network.design, put_rows(network.body, numbers, network.design.classes)).eval()
    return RestrictedNetworks(quantized, original, numbers, capped)


def as_study(study: Study, asked: Export) -> Study:
    """The study with what is exported as its one cell of a subset."""
    return study.restricted(
        bits=(asked.bits,),
        methods=(asked.method,),
        bases=("original",),
        calibrations=study.calibrations[:1],
        seeds=study.seeds[:1],
        activations=asked.activations,
    )


def _recipe(cell: Cell, network: Classifier, images: Tensor, asked: Export) -> tuple[Recipe, bool]:
    """The cell's recipe with all bits chosen, and whether a layer would have had more bits."""
    assert cell.recipe is not None
    recipe, classes = cell.recipe, sorted(cell.subset.classes)
    if isinstance(recipe.activations, str):
        recipe = replace(recipe, activations=choose_activations(network, images, recipe, classes))
    bits: Bits = recipe.bits
    if isinstance(cell.bits, str):
        bits = choose_bits(parse_bits(cell.bits), network, images, recipe, classes)
    if asked.vnni or asked.activations is None:
        return replace(recipe, bits=bits), False
    most = most_bits(recipe.alphabet)
    fewer: Bits = (
        min(bits, most) if isinstance(bits, int) else {name: min(b, most) for name, b in bits.items()}
    )
    return replace(recipe, bits=fewer), fewer != bits
