"""How accurate a file is as onnxruntime computes it, beside torch's simulation and the float network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from laq.dataset.images import ImageSet
from laq.export.restricted import RestrictedNetworks
from laq.machine import adds_in_32_bits
from laq.network.evaluation import batch_size, predict
from laq.quantization import QuantizedNetwork
from laq.quantization.files.onnx import most_bits
from laq.run.runtime import logits, open_file

_OVERFLOW: Final = (
    "weights of 8 bits overflow on this processor; measure on one with VNNI, or leave out --vnni"
)
_TIES: Final = "sums of integers and of floats round apart near the middle between two values of a grid"
_UNKNOWN: Final = "rounding does not explain so many; report it, with the command and this text"
_FEW: Final = 0.02  # of the images, which ties change at most


class Percentages(NamedTuple):
    """A score of the file as onnxruntime computes it, of its simulation, and of the float network."""

    file: float
    simulated: float
    original: float


@dataclass(frozen=True)
class RuntimeScores:
    """Top-1 among the subset's classes, over images and (``balanced``) as the mean over classes.

    ``balanced`` is None where each class has as many images, so that it is top-1 itself. ``changed`` counts
    the images to which file and simulation give different classes, ``reason`` says why.
    """

    images: int
    top1: Percentages
    balanced: Percentages | None
    changed: int
    reason: str


def scores(path: Path, networks: RestrictedNetworks, images: ImageSet, *, vnni: bool) -> RuntimeScores:
    """The scores of the file at ``path`` on the images of its classes.

    Raises:
        LaqError: onnxruntime cannot run the file.
    """
    labels = networks.outputs_of(images.labels).numpy()
    session, size = open_file(path), batch_size(networks.original, images)
    of_file = np.concatenate([logits(session, part.numpy()) for part in images.batches(size)]).argmax(1)
    simulated, original = (
        predict(network, images).argmax(1).numpy()
        for network in (networks.quantized.network, networks.original)
    )
    top1, balanced = (
        Percentages(*(100 * float(score(labels, answers)) for answers in (of_file, simulated, original)))
        for score in (accuracy_score, balanced_accuracy_score)
    )
    return RuntimeScores(
        images=len(images),
        top1=top1,
        balanced=None if len(set(np.bincount(labels))) == 1 else balanced,
        changed=int((of_file != simulated).sum()),
        reason=_reason(networks.quantized, float((of_file != simulated).mean()), vnni=vnni),
    )


def _reason(result: QuantizedNetwork, changed: float, *, vnni: bool) -> str:
    """Why file and simulation may give other classes to this share of the images."""
    if result.recipe.activations is None:
        return _UNKNOWN
    large = any(layer.bits > most_bits(result.recipe.alphabet) for layer in result.layers)
    if vnni and large and not adds_in_32_bits():
        return _OVERFLOW
    return _TIES if changed <= _FEW else _UNKNOWN
