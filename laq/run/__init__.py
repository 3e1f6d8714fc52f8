"""Command ``run``: tells by an ONNX file which class a picture is. All that it needs is in the file.

The file's metadata have a key for each field of ``About``, after the prefix ``laq.``, with its value in JSON.
The input ``pixels`` are uint8 (n, 3, size, size); the graph itself scales and normalises them.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from laq.errors import LaqError
from laq.files import need, wrong_kind
from laq.pictures import Preprocessing, read_picture
from laq.run.runtime import REMEDY, logits, open_file

PREFIX: Final = "laq."


@dataclass(frozen=True)
class About:
    """What a file says of itself.

    Attributes:
        classes: the names of its outputs, in their order.
        preprocessing: what makes its input of a picture.
        input_size: the side in pixels that the graph scales its input to.
        mean: of pixels in 0..1, by which the graph normalises them.
        std: likewise.
        mean_bits: bits per quantized weight, on average.
        recipe: how it was quantized, as ``laq.quantization.Recipe.from_json`` takes it.
        storage: of weights with 4 bits and fewer.
        vnni: whether it is only for processors that add products in 32 bits.
        dataset: the name of what it was calibrated on.
        subset: the name of the classes' subset.
        commit: of the project that wrote it, if that was known.
        version: of laq.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mean_bits: float
    recipe: dict[str, Any]
    storage: str
    vnni: bool
    dataset: str
    subset: str
    commit: str
    version: str


def write_about(path: Path, about: About) -> None:
    """Add this to the metadata of the ONNX file at ``path``."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(path)
    held = {f"{PREFIX}{name}": json.dumps(value) for name, value in asdict(about).items()}
    onnx.helper.set_model_props(model, held)
    path.write_bytes(model.SerializeToString(deterministic=True))


def read_about(metadata: Mapping[str, str], path: Path) -> About:
    """What the file at ``path`` says of itself in its ``metadata``.

    Raises:
        LaqError: it says nothing, or something else.
    """
    held = {name.removeprefix(PREFIX): text for name, text in metadata.items() if name.startswith(PREFIX)}
    if not held:
        raise LaqError(f"{path}: has no metadata of laq, so that its classes are unknown; {REMEDY}")
    fields = ", ".join(f"{json.dumps(name)}: {text}" for name, text in held.items())
    try:
        about: About = TypeAdapter(About).validate_json(f"{{{fields}}}")
    except ValidationError as error:
        raise LaqError(f"{path}: metadata of laq: {wrong_kind(error)}; {REMEDY}") from error
    return about


class OnnxClassifier:
    """A file that `laq export` wrote, in onnxruntime; ``about`` is what it says of itself.

    Raises:
        LaqError: as ``open_file`` and ``read_about``, or the graph has another input or other outputs than
            the metadata say.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.session = open_file(path, threads)
        self.about = read_about(self.session.get_modelmeta().custom_metadata_map, path)
        side, classes = self.about.preprocessing.size, len(self.about.classes)
        found = [
            (value.type, *value.shape[1:])
            for value in (*self.session.get_inputs(), *self.session.get_outputs())
        ]
        if found != [("tensor(uint8)", 3, side, side), ("tensor(float)", classes)]:
            raise LaqError(
                f"{path}: its graph is not that of its metadata, {side} pixels a side and {classes} classes; "
                f"{REMEDY}"
            )

    def probabilities(self, picture: Image.Image) -> dict[str, float]:
        """Of each class, the most probable one first."""
        image = np.asarray(self.about.preprocessing(picture)).transpose(2, 0, 1)
        row = logits(self.session, image[None])[0].astype(np.float64)
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        return {self.about.classes[place]: float(shares[place]) for place in order}

    def predict(self, pictures: Sequence[Path]) -> list[tuple[Path, dict[str, float]]]:
        """Each picture with the probabilities of its classes, as ``probabilities``.

        Raises:
            LaqError: a picture is missing or cannot be read; a line for each such.
        """
        answers, wrong = [], []
        for path in pictures:
            try:
                picture = read_picture(need(path, "name a picture").read_bytes(), str(path))
                answers.append((path, self.probabilities(picture)))
            except LaqError as error:
                wrong.append(str(error))
            except OSError as error:
                wrong.append(f"{path}: {error.strerror}; name a picture")
        if wrong:
            raise LaqError("\n".join(wrong))
        return answers
