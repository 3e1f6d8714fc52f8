"""Labelled images, which stay in their files until they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.dataset.layout import CLASSES, MANIFEST, Classes, Manifest, images_file, labels_file
from laq.errors import LaqError
from laq.files import md5, need, read_json
from laq.pictures import SQUASHED_TO_32, Preprocessing

_REMEDY: Final = "remove the folder and run `dvc repro dataset`"


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: those at ``rows`` of ``pixels``, all of them where ``rows`` is None.

    Choosing images copies no pixels. ``pixels`` are uint8 (N, 3, h, w) and may lie in a memory-mapped file,
    ``labels`` int64 (n,), ``rows`` int64 (n,). ``preprocessing`` makes such images of other pictures.
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    preprocessing: Preprocessing = SQUASHED_TO_32
    rows: Tensor | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """The images, uint8 (n, 3, h, w), in memory where they are not all of ``pixels``."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def batches(self, size: int) -> Iterator[Tensor]:
        """The images in batches (b, 3, h, w) of ``size`` images at most."""
        for start in range(0, len(self), size):
            some = slice(start, start + size)
            yield self.pixels[some] if self.rows is None else self.pixels[self.rows[some]]

    def select(self, classes: Sequence[int]) -> "ImageSet":
        """The images of ``classes`` only, in their order here; labels keep their numbers.

        Raises:
            LaqError: there is no such class.
        """
        if unknown := sorted(set(classes).difference(range(len(self.class_names)))):
            raise LaqError(f"class {unknown[0]} is unknown; the dataset has 0 to {len(self.class_names) - 1}")
        return self.take(torch.isin(self.labels, torch.tensor(list(classes))).nonzero()[:, 0])

    def take(self, rows: Tensor) -> "ImageSet":
        """The images at ``rows`` (int64), in that order."""
        own = rows if self.rows is None else self.rows[rows]
        return replace(self, labels=self.labels[rows], rows=own)

    def sample(self, count: int, generator: torch.Generator) -> "ImageSet":
        """``count`` images without repetition (all, if there are fewer), each as likely as any other.

        So classes appear in it about as often as among these images.
        """
        return self.take(torch.randperm(len(self), generator=generator)[:count])


def read_images(folder: Path, split: str) -> ImageSet:
    """Open ``split`` ("train", "test" or "validation") of the dataset that lies in ``folder``.

    Raises:
        LaqError: a file is missing or is not the one that the dataset stage wrote, or there is no such split.
    """
    manifest = read_manifest(folder)
    if split not in manifest.images:
        raise LaqError(f"{folder}: has no {split} images; it has {', '.join(manifest.images)}")
    names = read_class_names(folder)
    images, labels = (_array(folder, name) for name in (images_file(split), labels_file(split)))
    whole = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
    named = labels.dtype == np.int64 and labels.shape == images.shape[:1]
    if not (whole and named and labels.min() >= 0 and labels.max() < len(names)):
        raise LaqError(
            f"{folder / images_file(split)}: must hold images, uint8 (n, 3, h, w), with n labels from 0 to "
            f"{len(names) - 1} beside; {_REMEDY}"
        )
    numbers = torch.from_numpy(np.array(labels))
    return ImageSet(torch.from_numpy(images), numbers, names, manifest.preprocessing)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The names of the classes, by their numbers.

    Raises:
        LaqError: a file is missing or is not the one that the dataset stage wrote.
    """
    return tuple(read_json(_checked(folder, CLASSES), Classes, _REMEDY).names)


def read_manifest(folder: Path, name: str = MANIFEST, remedy: str = "") -> Manifest:
    """What is known of the dataset without a look at its images.

    What is published has another ``name``, and another ``remedy`` where it is damaged.

    Raises:
        LaqError: the file is missing or damaged.
    """
    manifest: Manifest = read_json(need(folder / name), Manifest, remedy or _REMEDY)
    return manifest


def _array(folder: Path, name: str) -> NDArray[Any]:
    """The array in a file, memory-mapped: what is written to it stays in memory, and reaches no file."""
    path = _checked(folder, name)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise LaqError(
            f"{path}: not a whole .npy file ({' '.join(str(error).split())}); {_REMEDY}"
        ) from error
    return array


def _checked(folder: Path, name: str) -> Path:
    """The path of a file that is the one which the stage wrote."""
    path, expected = need(folder / name), read_manifest(folder).md5.get(name)
    state = path.stat()
    found = _md5(path.resolve(), (state.st_ino, state.st_size, state.st_mtime_ns))
    if found != expected:
        raise LaqError(f"{path}: MD5 is {found}, the dataset stage wrote {expected}; {_REMEDY}")
    return path


@cache
def _md5(path: Path, _: tuple[int, int, int]) -> str:
    """The MD5 of a file in this state (inode, size, time of change), for which a process reads it once."""
    return md5(path)
