"""From pictures to the images of a dataset: decoded on all cores, written as they come, and split."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import joblib
import numpy as np
from numpy.typing import NDArray

from laq.dataset.layout import SPLITS, Split, write_split
from laq.progress import progress

_PIECE: Final = 64  # images that are copied at once


@dataclass(frozen=True)
class Item:
    """A picture that became an image: its class's name, the MD5 of its content, and the image's row."""

    name: str
    class_name: str
    split: Split | None
    md5: str
    row: int


@dataclass(frozen=True)
class Shares:
    """How each class's images are split, where the source does not say it."""

    test_share: float
    validation_share: float
    seed: int


@dataclass(frozen=True)
class Decoded:
    """The MD5 of a picture's content, its image (3, h, w) and its label, if it has one; or what is wrong."""

    md5: str = ""
    image: NDArray[np.uint8] | None = None
    label: int | None = None
    problem: str = ""


def decode_all(work: Iterable[Any], total: int, target: Path) -> Iterator[Decoded]:
    """Do the ``work``, calls by joblib that return ``Decoded``, and write the images to ``target``.

    Yields each in order, without its image.
    """
    # Pillow works without Python's lock, so that threads use all cores.
    results = joblib.Parallel(return_as="generator", prefer="threads")(work)
    with target.open("wb") as file, progress(results, "decode", total=total, unit="picture") as bar:
        for decoded in bar:
            if decoded.image is not None:
                file.write(decoded.image.tobytes())
            yield replace(decoded, image=None)


def read_pixels(target: Path, images: int, size: int) -> NDArray[np.uint8]:
    """What ``decode_all`` wrote: (images, 3, size, size), memory-mapped."""
    shape = (images, 3, size, size)
    return np.memmap(target, np.uint8, "r", shape=shape) if images else np.empty(shape, np.uint8)


def md5_of(content: bytes) -> str:
    """The MD5 of a picture's content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write_splits(
    folder: Path, splits: dict[Split, list[Item]], pixels: NDArray[np.uint8], class_names: Sequence[str]
) -> None:
    """Write splits of images whose ``pixels`` (n, 3, h, w) are in the order in which they were decoded."""
    number = {name: n for n, name in enumerate(class_names)}
    for split, items in splits.items():
        images = (pixels[[i.row for i in items[at : at + _PIECE]]] for at in range(0, len(items), _PIECE))
        write_split(folder, split, images, [number[item.class_name] for item in items])


def named_splits(items: Sequence[Item]) -> dict[Split, list[Item]]:
    """The splits that the items name."""
    return _grouped((item.split, item) for item in items if item.split)


def without_copies(items: Sequence[Item]) -> list[Item]:
    """The items but for copies of a picture in another split: test keeps its own, then validation.

    So what is learned from is never what is asked later.
    """
    keeper: dict[str, Split] = {}
    for split in reversed(SPLITS):
        for item in items:
            if item.split == split:
                keeper.setdefault(item.md5, split)
    return [item for item in items if item.split == keeper.get(item.md5)]


def split_by_seed(items: Sequence[Item], shares: Shares) -> dict[Split, list[Item]]:
    """The same shares of each class's images for each split, and copies of a picture all in one.

    A picture's place depends on its content and the seed, so that another picture leaves most in theirs.
    """
    classes = defaultdict(list)
    for item in items:
        classes[item.class_name].append((md5_of(f"{shares.seed} {item.md5}".encode()), item))
    found: list[tuple[Split, Item]] = []
    for members in classes.values():
        ordered = sorted(members, key=lambda member: (member[0], member[1].name))
        n = len(ordered)
        tests = _whole(ordered, max(1, round(n * shares.test_share)))
        others = _whole(ordered, tests + round(n * shares.validation_share))
        for place, (_, item) in enumerate(ordered):
            found.append(("test" if place < tests else "validation" if place < others else "train", item))
    return _grouped(found)


def _whole(ordered: Sequence[tuple[str, Item]], count: int) -> int:
    """``count``, and as many more as there are copies of the last item counted."""
    while 0 < count < len(ordered) and ordered[count][0] == ordered[count - 1][0]:
        count += 1
    return count


def _grouped(members: Iterable[tuple[Split, Item]]) -> dict[Split, list[Item]]:
    """The members of each split, by class and name."""
    splits: dict[Split, list[Item]] = {}
    for split, item in sorted(members, key=lambda member: (member[1].class_name, member[1].name)):
        splits.setdefault(split, []).append(item)
    return splits
