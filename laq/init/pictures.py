"""What a folder or archive of pictures holds, by a look at every file."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import joblib
from PIL import Image

from laq.architectures import usual_of
from laq.dataset.archives import Files, open_files
from laq.dataset.counts import check_counts
from laq.dataset.folder import arrange
from laq.dataset.images import ImageSet, read_images
from laq.dataset.layout import Manifest, write_manifest
from laq.dataset.registry import Dataset, Needs
from laq.errors import LaqError
from laq.files import project_root
from laq.pictures import FORMATS

_SMALL = 32  # pixels a side, where neither the user nor the network says another number


@dataclass(frozen=True)
class InspectedPictures:
    """Pictures, and what was found of them.

    Attributes:
        path: as the user named it.
        dataset: the section of ``params.yaml`` that makes images of them.
        manifest: of these images: counts by class, broken files, copies.
        train, test: these images.
        sizes: width and height of the smallest, the median and the largest picture, by area.
        shorter_side: the median of the pictures' shorter sides, in pixels.
        modes: how many pictures have which of Pillow's colour modes.
        is_split: whether folders say which pictures are for training and which for tests.
    """

    path: str
    dataset: Dataset
    manifest: Manifest
    train: ImageSet
    test: ImageSet
    sizes: Sequence[tuple[int, int]]
    shorter_side: int
    modes: Mapping[str, int]
    is_split: bool

    @property
    def side(self) -> int:
        """The side of the images in pixels."""
        return self.manifest.preprocessing.size

    @property
    def enlarged_from(self) -> int | None:
        """The usual shorter side in pixels, where images are larger than that; else None."""
        return self.shorter_side if self.shorter_side < self.side else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by their numbers."""
        return self.train.class_names

    @property
    def counts(self) -> list[dict[str, Any]]:
        """A row for each class: its name, and how many images each split has of it."""
        columns = self.manifest.images.items()
        return [
            {"class": name, **{split: counts[number] for split, counts in columns}}
            for number, name in enumerate(self.class_names)
        ]

    @property
    def broken(self) -> list[str]:
        """What is wrong with each of the files that are no whole pictures."""
        return list(self.manifest.source.get("skipped", []))


def inspect_pictures(path: str, network: str, size: int | None, scratch: Path) -> InspectedPictures:
    """Make images of all pictures, in the folder ``scratch``, and count what they are.

    Raises:
        LaqError: there are none, or too few classes or images for any study.
    """
    side = size or usual_of(network).input_size or _SMALL
    dataset = Dataset(name="folder", path=path, size=side, skip_broken=True)
    folder = scratch / "dataset"
    folder.mkdir()
    with joblib.parallel_config("threading", n_jobs=joblib.cpu_count()):
        told = dataset.source.write(folder, dataset.options)
    manifest = write_manifest(folder, dataset.name, told)
    check_counts(manifest, told.class_names, Needs())
    train, test = (read_images(folder, split) for split in ("train", "test"))
    with open_files(project_root() / path) as files:
        pictures = arrange(files)
        headers = [header for picture in pictures if (header := _header(files, picture.name))]
    sizes = sorted((size for size, _ in headers), key=lambda size: size[0] * size[1])
    return InspectedPictures(
        path=path,
        dataset=dataset,
        manifest=manifest,
        train=train,
        test=test,
        sizes=[sizes[0], sizes[len(sizes) // 2], sizes[-1]],
        shorter_side=int(median_low(min(size) for size in sizes)),
        modes=dict(Counter(mode for _, mode in headers).most_common()),
        is_split=pictures[0].split is not None,
    )


def _header(files: Files, name: str) -> tuple[tuple[int, int], str] | None:
    """The size and the colour mode that a file's header tells; None if it tells none."""
    try:
        with Image.open(io.BytesIO(files.read(name)), formats=FORMATS) as image:
            return image.size, image.mode
    except (LaqError, OSError, ValueError, Image.DecompressionBombError):
        return None  # it is among those that are told as broken
