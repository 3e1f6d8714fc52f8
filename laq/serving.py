"""A packed network as MLflow's pyfunc model: pictures in, names of classes with probabilities out.

MLflow's servers import this module by its name to load a model. It needs laq's core and pandas, which comes
with MLflow, and nothing of the pipeline: neither a project nor the packages of its stages.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from PIL import Image
from torch import Tensor, nn

from laq.architectures import Classifier, NetworkDesign, build
from laq.errors import LaqError
from laq.quantization import load

COLUMN: Final = "image"
WEIGHTS: Final = "network.safetensors"
DESCRIPTION: Final = "model.json"


class SubsetClassifier:
    """Tells the classes of a subset apart; ``classes`` are their numbers and names."""

    def __init__(self, network: Classifier, classes: Mapping[int, str]) -> None:
        self.network = network
        self.numbers = sorted(classes)
        self.names = [classes[number] for number in self.numbers]

    def predict(self, data: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002 (MLflow's signature)
        """The class of each picture in the column ``image``, its probability, and that of each class.

        A picture is the bytes of a file (PNG, JPEG and what else Pillow reads), those in Base64, or
        pixels 0..255 of (h, w, 3). It is scaled to the side that the network takes. Probabilities
        are among the classes of the subset alone.

        Raises:
            LaqError: an entry is no picture.
        """
        if data.empty:
            raise LaqError(f"{COLUMN}: no picture is given")
        with torch.inference_mode():
            inputs = torch.cat([self._prepared(read_picture(entry)) for entry in data[COLUMN]])
            probabilities = self.network.body(inputs)[:, self.numbers].double().softmax(1)
        probability, place = probabilities.max(1)
        return pd.DataFrame(
            {
                "class": [self.names[at] for at in place],
                "probability": probability.tolist(),
                "probabilities": [dict(zip(self.names, row, strict=True)) for row in probabilities.tolist()],
            }
        )

    def _prepared(self, picture: Tensor) -> Tensor:
        """Pixels (3, h, w) as the network's body takes them, (1, 3, side, side)."""
        pixels, side = picture[None], self.network.design.input_size
        # Networks for larger images than the study's scale for themselves.
        if isinstance(self.network.preprocess.resize, nn.Identity) and picture.shape[1:] != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        prepared: Tensor = self.network.preprocess(pixels)
        return prepared


def read_picture(entry: Any) -> Tensor:
    """Pixels 0..255 (3, h, w) of bytes, Base64, or an array or nested lists (h, w, 3).

    Raises:
        LaqError: it is none of these.
    """
    try:
        if isinstance(entry, str):
            entry = base64.b64decode(entry, validate=True)
        if isinstance(entry, bytes):
            entry = Image.open(io.BytesIO(entry)).convert("RGB")
        pixels = np.asarray(entry, dtype=np.float32)
    except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise LaqError(f"{COLUMN}: {_WANTED}; found {_short(entry)}") from error
    if (
        pixels.ndim != 3
        or pixels.shape[2] != 3
        or not pixels.size
        or not ((pixels >= 0) & (pixels <= 255)).all()
    ):
        raise LaqError(f"{COLUMN}: {_WANTED}; found numbers of shape {pixels.shape}")
    return torch.from_numpy(pixels).permute(2, 0, 1)


_WANTED: Final = "an entry must be a picture's bytes, these in Base64, or pixels 0..255 as (height, width, 3)"


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _load_pyfunc(path: str) -> SubsetClassifier:
    """Called by MLflow with the folder of the packed weights and of what they are of, in JSON."""
    folder = Path(path)
    about = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    network = load(folder / WEIGHTS, build(NetworkDesign.from_json(about["design"])))
    assert isinstance(network, Classifier)
    return SubsetClassifier(network, {int(number): name for number, name in about["classes"].items()})
