"""A packed network that tells the classes of a subset apart: pictures in, names with probabilities out.

It needs laq's core alone, and nothing of the pipeline: neither a project nor the packages of its stages.
``laq.serving.pyfunc`` is how MLflow takes it.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from laq.architectures import Classifier, NetworkDesign, build
from laq.errors import LaqError
from laq.files import md5, need, read_json
from laq.pictures import MAX_PIXELS, MOST_PIXELS, check_size, read_picture
from laq.quantization import QuantizationError, load

COLUMN: Final = "image"
WEIGHTS: Final = "network.safetensors"
DESCRIPTION: Final = "model.json"
_BATCH: Final = 50  # pictures that the network sees at once
_ONE_AT_A_TIME: Final = Lock()  # of parallel requests, for the largest pictures take 650 MB to decode


class Limits(BaseModel):
    """What one request may ask for.

    Attributes:
        max_pictures: how many pictures it may hold.
        max_pixels: width times height of each; decoding takes up to 13 bytes for one.
        max_total_pixels: of all its pictures together; decoding takes 2 to 9 seconds for 100 million.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_pictures: PositiveInt = 1_000
    max_pixels: PositiveInt = Field(MAX_PIXELS, le=MOST_PIXELS)
    max_total_pixels: PositiveInt = 4 * MAX_PIXELS

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Limits":
        """Limits by name; those not given are the default's.

        Raises:
            LaqError: one is unknown or not a whole number of at least 1.
        """
        try:
            return cls(**config)
        except ValidationError as error:
            wrong = error.errors()[0]
            known = ", ".join(cls.model_fields)
            raise LaqError(
                f"model_config {wrong['loc'][0]}: found {wrong['input']!r}; {wrong['msg']}; keys are {known}"
            ) from error


class SubsetClassifier:
    """Tells the classes of a subset apart; ``classes`` are their numbers and names."""

    def __init__(self, network: Classifier, classes: Mapping[int, str], limits: Limits | None = None) -> None:
        self.network = network
        self.numbers = sorted(classes)
        self.names = [classes[number] for number in self.numbers]
        self.limits = limits or Limits()

    def predict(self, data: pd.DataFrame) -> pd.DataFrame:
        """The class of each picture in the column ``image``, its probability, and that of each class.

        A picture is the bytes of a file, these in Base64 (``laq.pictures`` says how files are read), or
        pixels 0..255 of (height, width, 3). It is preprocessed as those that the network has learned from.
        Probabilities are among the classes of the subset alone.

        Raises:
            LaqError: an entry is no picture, or there are none or too many.
        """
        entries = _entries(data)
        if not entries:
            raise LaqError(f"{COLUMN}: found no picture; send one at least")
        if len(entries) > (most := self.limits.max_pictures):
            raise LaqError(
                f"{COLUMN}: found {len(entries)} pictures; at most {most} are allowed in a request"
            )
        pictures = np.stack([np.asarray(picture) for picture in self._scaled_down(entries)])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = torch.cat([self.network(some)[:, self.numbers] for some in torch.split(images, _BATCH)])
        probabilities = logits.double().softmax(1)
        probability, place = probabilities.max(1)
        return pd.DataFrame(
            {
                "class": [self.names[at] for at in place],
                "probability": probability.tolist(),
                "probabilities": [dict(zip(self.names, row, strict=True)) for row in probabilities.tolist()],
            }
        )

    def _scaled_down(self, entries: Sequence[Any]) -> Iterable[Image.Image]:
        """Each entry's picture, made an image as those of the dataset before the next one is read."""
        left = self.limits.max_total_pixels
        for number, entry in enumerate(entries, 1):
            with _ONE_AT_A_TIME:
                picture = read_entry(entry, f"{COLUMN} {number} of {len(entries)}", self.limits.max_pixels)
                left -= picture.width * picture.height
                picture = self.network.design.preprocessing(picture)
            if left < 0:
                most = self.limits.max_total_pixels
                raise LaqError(f"{COLUMN}: found more than {most} pixels in all; send fewer pictures at once")
            yield picture


def _entries(data: pd.DataFrame) -> list[Any]:
    entries = list(data[COLUMN])
    # MLflow makes one row of {"inputs": {"image": [text, ...]}}.
    if len(entries) == 1 and isinstance(entries[0], list) and all(isinstance(e, str) for e in entries[0]):
        return entries[0]
    return entries


def read_entry(entry: Any, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture, in mode RGB, of a file's bytes, these in Base64, or an array or nested lists (h, w, 3).

    Numbers are 0..255 and rounded to whole ones. Floats that are all within 0..1 are refused: they mean
    pixels of another scale, or a picture that is black.

    Raises:
        LaqError: it is none of these, or has more than ``max_pixels``.
    """
    if isinstance(entry, str):
        try:
            entry = base64.b64decode(entry, validate=True)
        except ValueError as error:
            raise LaqError(f"{name}: found text that is no Base64; {_WANTED}") from error
    if isinstance(entry, bytes):
        return read_picture(entry, name, max_pixels)
    try:
        pixels = np.asarray(entry)
    except ValueError as error:
        raise LaqError(f"{name}: found lists of different lengths; {_WANTED}") from error
    found = _what_is_wrong(pixels)
    if found:
        raise LaqError(f"{name}: found {found}; {_WANTED}")
    height, width, _ = pixels.shape
    try:
        check_size(width, height, max_pixels)
    except LaqError as error:
        raise LaqError(f"{name}: {error}") from error
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


_WANTED: Final = "it must be a picture's bytes, these in Base64, or pixels 0..255 as (height, width, 3)"


def _what_is_wrong(pixels: np.ndarray) -> str:
    """What an array has that pixels have not; nothing, if it is one of pixels."""
    if pixels.ndim == 0:
        text = repr(pixels.item())
        return text if len(text) <= 40 else f"{text[:40]}…"
    if pixels.dtype.kind not in "iuf":
        return "lists with what is no number"
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        return f"numbers of shape {pixels.shape}"
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 255):
        return f"numbers from {low} to {high}"
    if pixels.dtype.kind == "f" and 0 < high <= 1:
        return "floats all within 0..1, to be multiplied by 255"
    return ""


def load_classifier(folder: Path, limits: Limits | None = None) -> SubsetClassifier:
    """The classifier in the folder of its packed weights and of what they are of, in JSON.

    Raises:
        LaqError: a file is missing or damaged, or the weights are others than those that were described.
    """
    about: _Description = read_json(folder / DESCRIPTION, _Description, _REMEDY)
    if (found := md5(need(folder / WEIGHTS, _REMEDY))) != about.md5:
        raise LaqError(
            f"{folder / WEIGHTS}: MD5 is {found}, and was {about.md5} when it was saved; {_REMEDY}"
        )
    try:
        network = load(folder / WEIGHTS, build(about.design, folder=folder))
    except QuantizationError as error:
        raise LaqError(f"{error}; {_REMEDY}") from error
    assert isinstance(network, Classifier)
    return SubsetClassifier(network, about.classes, limits)


_REMEDY: Final = "take another version of the model, or send it again: delete its run, then `laq track`"


@dataclass(frozen=True)
class _Description:
    """What the packed weights are of, and their hash."""

    design: NetworkDesign
    classes: dict[int, str]
    md5: str
