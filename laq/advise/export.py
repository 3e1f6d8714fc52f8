"""Writes the network that is delivered: packed, its classifier cut to the rows of the subset's classes."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from laq.architectures import Classifier, build
from laq.dataset.images import ImageSet
from laq.export.cut import cut_of
from laq.export.file import write_file
from laq.files import write_json
from laq.network.evaluation import predict, restrict
from laq.network.weights import load_network, read_design
from laq.paths import NETWORK, WEIGHTS
from laq.quantization import Cut, Recipe, keep_rows, load, load_quantized, save
from laq.sections.commands import Export
from laq.subsets.subset import Subset

ABOUT: Final = "network.json"
# A test runs these lines as they are.
LOADING: Final = f"""\
import json
from laq.architectures import NetworkDesign, build
from laq.quantization import load
about = json.load(open("data/advise/{ABOUT}", encoding="utf-8"))
network = load("data/advise/{WEIGHTS}", build(NetworkDesign.from_json(about["design"]), folder="data/advise"))
"""


class SubsetExport:
    """Cuts packed networks of the study's design to a subset.

    Output i stands for the subset's i-th class in the order of class numbers.
    """

    def __init__(self, subset: Subset) -> None:
        self.subset = subset
        self.numbers = tuple(sorted(subset.classes))
        self.names = subset.names_in_order
        self.design = read_design()

    @cached_property
    def _network(self) -> Classifier:
        """The whole network; its weights are replaced by those that are loaded."""
        return build(self.design, folder=NETWORK)

    @cached_property
    def _cut(self) -> Cut:
        """The classifier's name, and its rows that stay."""
        return cut_of(self._network, self.numbers)

    def write(self, path: Path, packed: Path) -> tuple[Recipe, int]:
        """Cut the network in the file ``packed`` and write it; returns its recipe and the bytes written."""
        result = load_quantized(packed, self._network)
        return result.recipe, save(path, result, {"classes": self.names}, self._cut)

    def write_onnx(self, path: Path, packed: Path, asked: Export) -> None:
        """Cut the network in the file ``packed`` and write it as an ONNX file that says what it is.

        Raises:
            LaqError: it cannot be exported as ``asked``, or onnx is missing.
        """
        cut = keep_rows(load_quantized(packed, self._network), self._cut)
        write_file(path, cut, self.subset, asked)

    def write_with_description(self, folder: Path, packed: Path, about: dict[str, Any]) -> None:
        """Cut and write the network, and beside it the description that is needed to load it again."""
        recipe, size = self.write(folder / WEIGHTS, packed)
        write_json(
            folder / ABOUT,
            {
                "design": self.design.beside(folder, NETWORK).to_json(),
                "classes": self.names,
                "numbers": self.numbers,
                "recipe": asdict(recipe),
                "size_bytes": size,
                **about,
            },
        )

    def right(self, path: Path, images: ImageSet) -> NDArray[np.bool_]:
        """Which images (n,) of its classes the network in the file ``path`` classifies correctly."""
        outputs = torch.searchsorted(torch.tensor(self.numbers), images.labels)
        answers = predict(load(path, self._network), images).topk(1).indices[:, 0]
        right: NDArray[np.bool_] = (answers == outputs).numpy()
        return right

    def right_in_float(self, images: ImageSet) -> NDArray[np.bool_]:
        """Which images (n,) of its classes the original float network does, choosing among these classes."""
        logits, outputs = restrict(predict(load_network(), images), images.labels, self.numbers)
        right: NDArray[np.bool_] = (logits.topk(1).indices[:, 0] == outputs).numpy()
        return right
