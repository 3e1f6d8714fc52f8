"""What a study is measured on: the images and the networks, as they lie in ``data/``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from laq.cache import code_digest, place_of
from laq.dataset import FOLDER as DATASET
from laq.dataset import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.files import md5
from laq.finetune import FOLDER as FINETUNE
from laq.finetune import weights_of
from laq.network import FOLDER as NETWORK
from laq.network import WEIGHTS, read_design
from laq.quantization import METHODS
from laq.sections.study import Calibration, Study
from laq.study.cells import Cell


def study_code() -> str:
    """The hash of the code that a measurement depends on; how networks are trained is not part of it."""
    network = ("architectures", "network/evaluation", "network/weights")
    study = (f"study/{name}" for name in ("cells", "inputs", "measure", "results"))
    return code_digest("dataset", *network, "quantization", *study)


@dataclass(frozen=True)
class StudyInputs:
    """The study's parameters, images and networks, by their hashes.

    ``finetuned`` are weights that lie elsewhere than in ``data/``, by their subset's name. Hashes are read
    once, here, and go along to other processes.
    """

    params: Study
    finetuned: Mapping[str, Path] = field(default_factory=dict)
    code: str = field(default_factory=study_code)
    dataset: Mapping[str, str] = field(default_factory=lambda: read_manifest(DATASET)["md5"])
    design: Mapping[str, Any] = field(default_factory=lambda: read_design().to_json())
    _hashes: dict[Path, str] = field(default_factory=dict, repr=False)

    def folder(self, cell: Cell) -> Path:
        """Where the cell's results lie, once it is measured."""
        return place_of("cells", self.dependencies(cell))

    def dependencies(self, cell: Cell) -> dict[str, Any]:
        """Everything that the cell's results depend on."""
        weights = self.weights(cell)
        if weights not in self._hashes:
            self._hashes[weights] = md5(weights)
        learned = {} if cell.recipe is None else {
            "calibration": _calibration(cell),
            "images": self.params.calibration_images,
            "networks": self.params.keep_networks,
        }  # fmt: skip
        return {
            "classes": sorted(cell.subset.classes),
            "dataset": self.dataset,
            "weights": self._hashes[weights],
            "recipe": cell.recipe and asdict(cell.recipe),
            "solver": cell.recipe and METHODS[cell.recipe.method].code_digest(),
            "bits": cell.bits,
            "design": self.design,
            "code": self.code,
            **learned,
        }

    def weights(self, cell: Cell) -> Path:
        """Those of the cell's network before quantization."""
        if cell.base == "original":
            return NETWORK / WEIGHTS
        return self.finetuned.get(cell.subset.name) or weights_of(FINETUNE, cell.subset)

    def images(self, split: str) -> ImageSet:
        """The training images, which calibration draws from, or the test images, which are scored."""
        return _images(split, self.dataset[split])

    def calibration_images(self, cell: Cell) -> torch.Tensor:
        """The images (n, 3, h, w) that quantization learns from, or measures its errors on at least."""
        train = self.images("train")
        pool = train.select(cell.subset.classes) if _calibration(cell) == "subset" else train
        generator = torch.Generator().manual_seed(cell.recipe.seed if cell.recipe else 0)
        return pool.sample(self.params.calibration_images, generator).images


def _calibration(cell: Cell) -> Calibration:
    """Whose images a quantization runs on; one that learns from none measures its errors on them."""
    return cell.calibration or ("all" if cell.base == "original" else "subset")


@cache
def _images(split: str, hashed: str) -> ImageSet:
    """The dataset's images with this hash, read once in a process."""
    images = read_images(DATASET, split)
    if md5(DATASET / split) != hashed:
        raise LaqError(f"{DATASET / split}: changed while the study read it; run the command again")
    return images
