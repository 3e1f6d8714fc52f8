"""The block of ``params.yaml`` for pictures and a network, and its place in the file."""

import re
from dataclasses import dataclass
from math import comb
from typing import Final

from laq.errors import LaqError
from laq.files import need
from laq.init.network import InspectedNetwork
from laq.init.pictures import InspectedPictures
from laq.params import CHOICE, NAME, NAME_IN_WORDS, study_names
from laq.report.rendering import templates
from laq.sections.base import FILE

_MOST_CLASSES: Final = 10  # of a subset
_MOST_SUBSETS: Final = 3  # of a kind
_CALIBRATION: Final = 128  # images
_KIB: Final = 1024


@dataclass(frozen=True)
class Design:
    """What the study asks, as far as it depends on the numbers of classes, images and weights.

    Attributes:
        size: the classes of a subset.
        subsets: how many there are of each kind.
        calibration_images: how many the smallest subset has, up to the usual number.
        champion_kib: about the network's size with 4 bits a weight.
    """

    size: int
    subsets: int
    calibration_images: int
    champion_kib: int


def design_of(pictures: InspectedPictures, network: InspectedNetwork) -> Design:
    """A study that these pictures have classes and images enough for."""
    train = sorted(pictures.manifest.images["train"])
    size = min(_MOST_CLASSES, max(2, 2 * len(train) // 5))
    images = min(_CALIBRATION, sum(train[:size]))
    # Not all subsets that there are: each kind shall differ.
    subsets = max(1, min(_MOST_SUBSETS, comb(len(train), size) // 3))
    return Design(size, subsets, images, max(1, round(network.float_bytes / 8 / _KIB)))


def block_of(name: str, pictures: InspectedPictures, network: InspectedNetwork) -> str:
    """The study's block, with a comment at what a user may want to change."""
    template = templates("laq.init").get_template("study.yaml")
    return template.render(name=name, pictures=pictures, network=network, design=design_of(pictures, network))


def read_without(name: str) -> str:
    """The text of ``params.yaml``, which has no study of this name.

    Raises:
        LaqError: it has one, or the name cannot be a study's.
    """
    if re.fullmatch(NAME, name, re.ASCII) is None:
        raise LaqError(f"--name: found {name!r}; must be {NAME_IN_WORDS}")
    if name in study_names():
        raise LaqError(f"--name {name}: {FILE} has a study of that name; choose another, or remove its block")
    return need(FILE).read_text(encoding="utf-8")


def with_block(text: str, name: str, block: str) -> str:
    """The text with the block at its end, and with the study of this name as the one that runs."""
    chosen = re.sub(rf"^{CHOICE}:\s*\S+", f"{CHOICE}: {name}", text, count=1, flags=re.MULTILINE)
    return f"{chosen.rstrip()}\n\n{block.rstrip()}\n"
