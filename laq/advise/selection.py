"""Which images choose among the candidates, and which report on the one that is chosen."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from laq.dataset.images import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.params import Params
from laq.paths import DATASET
from laq.sections.network import Network
from laq.study.selection import choosing
from laq.subsets.subset import Subset

_CHOSE_THE_EPOCH: Final = "the epoch of the network's training was chosen by the validation images"


@dataclass(frozen=True)
class Selection:
    """The images of a subset's classes that choose, and those that report.

    Attributes:
        split: of the dataset, from which the images come that choose.
        rows: which of the split's images of these classes (n,) choose; the others of a test split report.
        report: the images that report.
        told: a sentence that says which images these are, and why.
    """

    split: str
    rows: NDArray[np.bool_]
    report: ImageSet
    told: str

    @cached_property
    def n(self) -> int:
        """How many images choose."""
        return int(self.rows.sum())


def select(params: Params, subset: Subset) -> Selection:
    """Decide which images choose, as the section ``advise`` asks.

    Validation images choose if the network is known not to have learned from them: if it was trained here, or
    got a new head here. A network that comes trained for these classes may have seen them, and where transfer
    learning trains all of the network it chooses the best epoch by them; then, and where there are none, a
    share of each class's test images chooses and the others report.

    Raises:
        LaqError: the section asks for validation images that there are not, or that chose an epoch; or no
            image is left to choose or to report.
    """
    asked, test = params.advise, read_images(DATASET, "test").select(subset.classes)
    reason = _why_not_validation(params.network)
    if asked.selection == "validation" and (not _has_validation() or reason == _CHOSE_THE_EPOCH):
        raise LaqError(f"advise.selection: found validation, but {reason}; must be split or auto")
    if asked.selection == "validation" or (asked.selection == "auto" and not reason):
        count = len(read_images(DATASET, "validation").select(subset.classes))
        told = (
            f"The {count} validation images of these classes chose the network, "
            f"and all {len(test)} test images of them report on it."
        )
        found = Selection("validation", np.ones(count, bool), test, told)
    else:
        rows = choosing(test.labels.numpy(), asked.selection_share, asked.selection_seed)
        report = test.take(torch.from_numpy(np.flatnonzero(~rows)))
        because = f", because {reason}" if reason else ""
        told = (
            f"Of the {len(test)} test images of these classes {rows.sum()} chose the network and the other "
            f"{len(report)} report on it{because}."
        )
        found = Selection("test", rows, report, told)
    if not found.n or not len(found.report):
        raise LaqError(
            f"advise: {found.n} images choose and {len(found.report)} report; both need one at least: "
            "give the dataset more test images of these classes"
        )
    return found


def _has_validation() -> bool:
    return sum(read_manifest(DATASET).images.get("validation", [])) > 0


def _why_not_validation(network: Network) -> str:
    """Why validation images must not choose; empty if they may."""
    if not _has_validation():
        return "the dataset has no validation images"
    if network.transfer is not None:
        return _CHOSE_THE_EPOCH if network.transfer.training else ""
    if network.source != "train":
        return "the network comes trained, perhaps on the validation images"
    return ""
