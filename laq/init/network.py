"""What a network is, by a look at it on some of the pictures."""

from dataclasses import dataclass, replace
from typing import Final

import torch

from laq.architectures import Classifier, NetworkDesign, build, put_rows, usual_of
from laq.architectures.registry import IMAGENET_MEAN, IMAGENET_STD, find_source
from laq.errors import LaqError
from laq.init.pictures import InspectedPictures
from laq.network import foreign_network, outputs_of
from laq.network.evaluation import Scores, evaluate
from laq.network.outputs import find_rows
from laq.quantization import Recipe, float32_bytes, quantize
from laq.quantization.methods.registry import BASELINE
from laq.sections.network import Network

_INSPECTED: Final = 8  # images that layers are found with
_SCORED: Final = 500  # test images that the accuracy is estimated on
_GREY: Final = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # of pixels, for a network that is not trained yet


@dataclass(frozen=True)
class InspectedNetwork:
    """A network, and what was found of it.

    Attributes:
        architecture: its name in the registry.
        trained_here: it comes with no weights, so that it is trained on the pictures.
        tells_normalisation: whether its source tells the mean and the standard deviation of the pixels that
            it was trained with; ImageNet's are taken if not.
        outputs: how many it has by itself.
            layers: how many of its operations are quantized.
        kept: those that are not, with the reason.
        float_bytes: of its weights in float32.
        scores: its accuracy on ``scored`` test images; None if it has no outputs for the classes yet.
    """

    architecture: str
    trained_here: bool
    tells_normalisation: bool
    outputs: int
    layers: int
    kept: tuple[str, ...]
    float_bytes: int
    scores: Scores | None = None
    scored: int = 0

    @property
    def needs_head(self) -> bool:
        """Whether a new head must be learned, as its outputs stand for other classes."""
        return not self.trained_here and self.scores is None


def inspect_network(architecture: str, pictures: InspectedPictures) -> InspectedNetwork:
    """Build the network, run it on some of the pictures, and round its weights, so that its layers are known.

    Raises:
        LaqError: it cannot be had, or does not take the pictures.
    """
    source, _ = find_source(architecture)
    network, outputs = _made(architecture, pictures, pretrained=source.has_weights)
    images = pictures.train.take(torch.arange(min(_INSPECTED, len(pictures.train)))).images
    rounded = quantize(network, images, Recipe(method=BASELINE, bits=8))
    inspected = InspectedNetwork(
        architecture=architecture,
        trained_here=not source.has_weights,
        tells_normalisation=usual_of(architecture).mean is not None,
        outputs=outputs,
        layers=len(rounded.layers),
        kept=tuple(f"{kept.name}: {kept.reason}" for kept in rounded.not_quantized),
        float_bytes=float32_bytes(network),
    )
    return inspected if inspected.trained_here else _scored(inspected, network, pictures)


def _made(architecture: str, pictures: InspectedPictures, *, pretrained: bool) -> tuple[Classifier, int]:
    """The network and how many outputs it has."""
    if pretrained:
        told = usual_of(architecture)
        section = Network(
            source="pretrained",
            architecture=architecture,
            input_size=pictures.side,
            mean=told.mean or IMAGENET_MEAN,
            std=told.std or IMAGENET_STD,
        )
        network, _ = foreign_network(section, pictures.train)
    else:
        classes, size = len(pictures.class_names), pictures.side
        network = build(NetworkDesign(architecture, classes, size, *_GREY, pictures.manifest.preprocessing))
    return network, outputs_of(network, pictures.train)


def _scored(found: InspectedNetwork, network: Classifier, pictures: InspectedPictures) -> InspectedNetwork:
    """With the accuracy on some test images, where the network's outputs stand for the classes."""
    known = usual_of(found.architecture).output_names
    try:
        rows = find_rows(None, pictures.class_names, found.outputs, known)
    except LaqError:
        return found
    if rows != tuple(range(found.outputs)):
        network = Classifier(network.design, put_rows(network.body, rows, found.outputs)).eval()
    some = pictures.test.sample(_SCORED, torch.Generator().manual_seed(0))
    scores = evaluate(network, some, range(len(pictures.class_names)))
    return replace(found, scores=scores, scored=len(some))
