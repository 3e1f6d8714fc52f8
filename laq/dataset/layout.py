"""The files of a dataset, the same for every source, which the stage ``dataset`` writes and others read.

For each split there are ``<split>.npy``, images uint8 (n, 3, h, w), and ``<split>_labels.npy``, int64 (n,).
``classes.json`` names the classes by their numbers, and ``manifest.json`` tells the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from laq.files import md5, write_array, write_json
from laq.pictures import Preprocessing

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
CLASSES: Final = "classes.json"
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Description:
    """What a source tells of the images that it has written.

    Attributes:
        class_names: by the classes' numbers.
        preprocessing: what made the images, and makes any other picture one of their kind.
        superclasses: the name of each class's superclass, where classes have such.
        source: where the images come from, with hashes.
        name: what tables call the dataset, if not by its source's name in the registry.
    """

    class_names: Sequence[str]
    preprocessing: Preprocessing
    superclasses: Sequence[str] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Manifest:
    """What is known of a dataset without a look at its images.

    Attributes:
        name: what tables call the dataset.
        preprocessing: what made the images.
        images: for each split, how many images each class has.
        source: where they come from, with hashes.
        md5: the MD5 of each of the other files.
    """

    name: str
    preprocessing: Preprocessing
    images: dict[Split, list[int]]
    source: dict[str, Any]
    md5: dict[str, str]

    @property
    def is_balanced(self) -> bool:
        """Whether there are as many test images of each class, so that balanced top-1 is top-1 itself."""
        return len(set(self.images["test"])) == 1


@dataclass(frozen=True)
class Classes:
    """The names of the classes by their numbers, and those of their superclasses, if they have any."""

    names: list[str]
    superclasses: list[str]


def images_file(split: str) -> str:
    """The name of the file with a split's images."""
    return f"{split}.npy"


def labels_file(split: str) -> str:
    """The name of the file with a split's labels."""
    return f"{split}_labels.npy"


def write_split(
    folder: Path, split: Split, images: Iterable[NDArray[np.uint8]], labels: Sequence[int]
) -> None:
    """Write a split, whose ``images`` come in pieces (b, 3, h, w), so that they need not all be in memory."""
    write_array(folder / images_file(split), len(labels), images)
    np.save(folder / labels_file(split), np.asarray(labels, np.int64))


def write_manifest(folder: Path, name: str, told: Description) -> Manifest:
    """Write the classes and the manifest beside the splits that are there."""
    write_json(folder / CLASSES, asdict(Classes(list(told.class_names), list(told.superclasses))))
    labels = {
        split: np.load(folder / labels_file(split))
        for split in SPLITS
        if (folder / labels_file(split)).exists()
    }
    manifest = Manifest(
        told.name or name,
        told.preprocessing,
        {split: np.bincount(y, minlength=len(told.class_names)).tolist() for split, y in labels.items()},
        dict(told.source),
        {path.name: md5(path) for path in sorted(folder.iterdir())},
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest
