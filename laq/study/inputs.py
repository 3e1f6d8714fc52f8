"""The inputs of a study: the images and the networks in ``data/``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from laq.cache import place_of
from laq.dataset.images import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.files import digest, md5
from laq.imports import code_digest
from laq.network.weights import read_design
from laq.paths import DATASET, FINETUNE, NETWORK, WEIGHTS, finetuned_weights
from laq.quantization import METHODS
from laq.sections.study import Calibration, Study
from laq.study.cells import Cell

_RANKING_SEED: Final = 2**32  # which draws none of the calibrations' images, whose seeds are below


def study_code() -> str:
    """The hash of the code that a measurement depends on, which leaves out the training of networks."""
    return code_digest("laq.study.measure")


@dataclass(frozen=True)
class StudyInputs:
    """The study's parameters, images and networks, identified by their hashes.

    ``finetuned`` are files of weights outside ``data/``, by the name of their subset. ``purpose`` keeps
    results apart from others of the same cells. ``split`` has the images that score; where ``ranked`` is not
    0, so many training images tell besides how far each network is from its float network. Hashes are
    computed once, here, and are handed to other processes.
    """

    params: Study
    finetuned: Mapping[str, Path] = field(default_factory=dict)
    code: str = field(default_factory=study_code)
    dataset: Mapping[str, str] = field(default_factory=lambda: read_manifest(DATASET).md5)
    design: Mapping[str, Any] = field(default_factory=lambda: read_design().to_json())
    purpose: str = ""
    split: str = "test"
    ranked: int = 0
    _hashes: dict[Path, str] = field(default_factory=dict, repr=False)

    def folder(self, cell: Cell) -> Path:
        """The folder of the cell's results; it exists once the cell is measured."""
        return place_of("cells", self.dependencies(cell))

    def dependencies(self, cell: Cell) -> dict[str, Any]:
        """The hashes and settings that the cell's results depend on."""
        weights, patterns = self.weights(cell), cell.recipe.patterns if cell.recipe else ()
        if weights not in self._hashes:
            self._hashes[weights] = md5(weights)
        learned = {} if cell.recipe is None else {
            "calibration": _calibration(cell),
            "images": self.params.calibration_images,
            "networks": self.params.keep_networks,
            **({"device": self.params.device} if self.params.device != "cpu" else {}),
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
            # A hash of maps knows no order, and of patterns the first that matches counts.
            **({"patterns": patterns} if len(patterns) > 1 else {}),
            **({"purpose": self.purpose} if self.purpose else {}),
            **({"split": self.split} if self.split != "test" else {}),
            **({"ranked": self.ranked} if self.ranked else {}),
        }

    def weights(self, cell: Cell) -> Path:
        """The file with the weights of the cell's network before quantization."""
        if cell.base == "original":
            return NETWORK / WEIGHTS
        return self.finetuned.get(cell.subset.name) or finetuned_weights(FINETUNE, cell.subset.name)

    def images(self, split: str) -> ImageSet:
        """The images of ``split``: ``train``, from which calibration draws, or that of the scores."""
        return _images(split, digest(self.dataset))

    def scored(self, classes: Sequence[int]) -> list[ImageSet]:
        """The images of ``classes`` that score, then the training images that rank, if there are any."""
        scored = [self.images(self.split).select(classes)]
        if self.ranked:
            generator = torch.Generator().manual_seed(_RANKING_SEED)
            scored.append(self.images("train").select(classes).sample(self.ranked, generator))
        return scored

    def calibration_images(self, cell: Cell) -> torch.Tensor:
        """The images (n, 3, h, w) that quantization learns from, or at least measures its errors on."""
        train = self.images("train")
        pool = train.select(cell.subset.classes) if _calibration(cell) == "subset" else train
        generator = torch.Generator().manual_seed(cell.recipe.seed if cell.recipe else 0)
        return pool.sample(self.params.calibration_images, generator).images


def _calibration(cell: Cell) -> Calibration:
    """The classes of the calibration images; a method that needs none still measures its errors on them."""
    return cell.calibration or ("all" if cell.base == "original" else "subset")


@cache
def _images(split: str, hashed: str) -> ImageSet:
    """The images of ``split``, opened once by a process; ``hashed`` is the digest of the files' hashes."""
    images = read_images(DATASET, split)
    if digest(read_manifest(DATASET).md5) != hashed:
        raise LaqError(f"{DATASET}: changed while the study read it; run the command again")
    return images
