"""Images in memory, and the one reader for the layout that CIFAR-100 and the glyphs share."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct as reconstruct
from torch import Tensor

from laq.errors import LaqError
from laq.files import md5, need, read_json

SIDE = 32
_PICKLED_TYPES = {
    # CIFAR-100 was pickled by an older NumPy under the first of these names.
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: ``images`` uint8 (n, 3, 32, 32), ``labels`` int64 (n,)."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def select(self, classes: Sequence[int]) -> "ImageSet":
        """The images of ``classes`` only, in their order here; labels keep their numbers."""
        return self.take(torch.isin(self.labels, torch.tensor(list(classes))).nonzero()[:, 0])

    def take(self, rows: Tensor) -> "ImageSet":
        """The images at ``rows`` (int64), in that order."""
        return ImageSet(self.images[rows], self.labels[rows], self.class_names)

    def sample(self, count: int, generator: torch.Generator) -> "ImageSet":
        """``count`` images without repetition (all, if there are fewer)."""
        return self.take(torch.randperm(len(self), generator=generator)[:count])


def read_images(folder: Path, split: str) -> ImageSet:
    """Read ``split`` ("train" or "test") of the dataset that lies in ``folder``.

    Raises:
        LaqError: a file is missing or is not the one that the dataset stage wrote.
    """
    content = _unpickle(folder, split)
    images = torch.from_numpy(content["data"].reshape(-1, 3, SIDE, SIDE))
    return ImageSet(images, torch.tensor(content["fine_labels"]), read_class_names(folder))


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The names of the classes, by their numbers."""
    return tuple(_unpickle(folder, "meta")["fine_label_names"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The dataset's name and the MD5 of each of its files."""
    manifest: dict[str, Any] = read_json(folder / "manifest.json")
    return manifest


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and Python's own containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLED_TYPES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a dataset") from None


def _unpickle(folder: Path, name: str) -> dict[str, Any]:
    path = need(folder / name)
    expected = read_manifest(folder)["md5"][name]
    if (found := md5(path)) != expected:
        raise LaqError(
            f"{path}: MD5 is {found}, the dataset stage wrote {expected}; "
            "remove the folder and run `dvc repro dataset`"
        )
    content: dict[str, Any] = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    return content
