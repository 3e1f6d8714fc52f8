"""Your pictures: a folder or archive with a folder for each class, perhaps below train, validation and test.

Without such folders the pictures are split by a seed, each class by the same shares. Which of them are test
images depends on what they hold and on the seed alone, so that another picture leaves most where they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

import joblib
import numpy as np

from laq.dataset.archives import Files, open_files
from laq.dataset.decoding import (
    Decoded,
    Item,
    Shares,
    decode_all,
    md5_of,
    named_splits,
    read_pixels,
    split_by_seed,
    without_copies,
    write_splits,
)
from laq.dataset.layout import Description, Split
from laq.errors import LaqError
from laq.files import digest, project_root
from laq.pictures import Interpolation, Preprocessing, Resize, read_picture
from laq.quantization.options import nearest_name

_SPLIT_FOLDERS: Final[Mapping[str, Split]] = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "val": "validation",
}
_SUFFIXES: Final = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MOST_NAMED: Final = 5


@dataclass(frozen=True)
class FolderOptions(Shares):
    """The options of ``folder`` in ``params.yaml``; shares are of each class's pictures."""

    path: str
    size: int
    resize: Resize
    interpolation: Interpolation
    skip_broken: bool


@dataclass(frozen=True)
class Picture:
    """A file and what its folders say of it; ``split`` is None where none says that."""

    name: str
    class_name: str
    split: Split | None


def write_folder(folder: Path, **options: Any) -> Description:
    """Write the pictures' images into ``folder``.

    Raises:
        LaqError: there is no such folder or archive, it does not hold pictures by classes, files are broken
            that may not be skipped, or two classes share a picture.
    """
    asked = FolderOptions(**options)
    try:
        with open_files(project_root() / asked.path) as files:
            return _write(folder, files, asked)
    except LaqError as error:
        raise LaqError(f"dataset.path: {error}") from error


def _write(folder: Path, files: Files, asked: FolderOptions) -> Description:
    pictures = arrange(files)
    preprocessing = Preprocessing(asked.size, asked.resize, asked.interpolation)
    with TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / "pixels"
        items, broken = _decode(files, pictures, preprocessing, target)
        if broken and not asked.skip_broken:
            raise LaqError(_told(broken, len(pictures)))
        _check_classes_share_nothing(items)
        splits = named_splits(without_copies(items)) or split_by_seed(items, asked)
        names = sorted({picture.class_name for picture in pictures})
        write_splits(folder, splits, read_pixels(target, len(items), asked.size), names)
    source = {
        "files": len(items),
        "sha256": digest({item.name: item.md5 for item in items}),
        "skipped": broken,
        "copies_left_out": len(items) - sum(map(len, splits.values())),
    }
    name = PurePosixPath(asked.path).name.partition(".")[0]
    return Description(names, preprocessing, source=source, name=name)


def arrange(files: Files) -> list[Picture]:
    """The pictures, each with its class, and its split where folders name it.

    Raises:
        LaqError: a picture lies in no class's folder, a class has no picture or none to train on, there are
            fewer than two classes, or there are folders for some splits, but not for train and test.
    """
    root = _root(files)
    paths = {name: parts for name in files.names if (parts := _below(root, name))}
    folders = {parts for name in files.folders if (parts := _below(root, name))}
    folders |= {parts[:end] for parts in paths.values() for end in range(1, len(parts))}
    splits = _splits_of({parts[0] for parts in folders})
    depth = 2 if splits else 1  # of a class's folder
    for name, parts in paths.items():
        if len(parts) <= depth and _is_called_a_picture(name):
            raise LaqError(f"{name!r} lies in no class's folder; move it to one")
    held = {parts[:depth] for parts in paths.values() if len(parts) > depth}
    if empty := sorted(parts for parts in folders - held if len(parts) == depth):
        raise LaqError(f"the folder {'/'.join(empty[0])!r} holds no picture; put some there or remove it")
    pictures = [
        Picture(name, parts[depth - 1], splits.get(parts[0]))
        for name, parts in paths.items()
        if len(parts) > depth
    ]
    _check_classes(pictures)
    return pictures


def _splits_of(folders: set[str]) -> dict[str, Split]:
    """The splits that folders stand for; none where they are not all called as such."""
    found = {name: _SPLIT_FOLDERS[name.casefold()] for name in folders if name.casefold() in _SPLIT_FOLDERS}
    if not found or len(found) < len(folders):
        return {}
    if not {"train", "test"} <= set(found.values()):
        raise LaqError(
            f"found the folders {', '.join(sorted(folders))}; must be train and test, perhaps with "
            "validation, or a folder for each class"
        )
    return found


def _root(files: Files) -> PurePosixPath:
    """The folder that holds the classes' or the splits': all of it, or the one folder that there is in it."""
    root = PurePosixPath()
    while True:
        below = [parts for name in (*files.names, *files.folders) if (parts := _below(root, name))]
        holding = {parts[0] for parts in below if len(parts) > 1}
        pictures = [
            name for name in files.names if 0 < len(_below(root, name)) < 3 and _is_called_a_picture(name)
        ]
        if len(holding) != 1 or pictures or not any(len(parts) > 2 for parts in below):
            return root
        root /= holding.pop()


def _below(root: PurePosixPath, name: str) -> tuple[str, ...]:
    """The parts of a name from ``root`` on; none where it is not below."""
    path = PurePosixPath(name)
    return path.relative_to(root).parts if path.is_relative_to(root) else ()


def _is_called_a_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _SUFFIXES


def _check_classes(pictures: Sequence[Picture]) -> None:
    trained = sorted({picture.class_name for picture in pictures if picture.split in {None, "train"}})
    for picture in pictures:
        if picture.class_name not in trained:
            hint = nearest_name(picture.class_name, trained)
            raise LaqError(
                f"{picture.name!r} is of the class {picture.class_name!r}, which train lacks{hint}"
            )
    if len(trained) < 2:
        found = f"one class, {trained[0]!r}" if trained else "no folder with pictures"
        raise LaqError(f"found {found}; must be two folders at least, one for each class")


def _decode(
    files: Files, pictures: Sequence[Picture], preprocessing: Preprocessing, target: Path
) -> tuple[list[Item], list[str]]:
    """Write the images into ``target``; returns what became one, and what is wrong with the other files."""
    items: list[Item] = []
    broken: list[str] = []
    work = (
        joblib.delayed(_decoded)(picture.name, content, preprocessing)
        for picture, content in _contents(files, pictures)
    )
    for picture, done in zip(pictures, decode_all(work, len(pictures), target), strict=True):
        if done.problem:
            broken.append(done.problem)
        else:
            items.append(Item(picture.name, picture.class_name, picture.split, done.md5, len(items)))
    return items, broken


def _contents(files: Files, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, bytes | str]]:
    """What each file holds, or else why it cannot be read."""
    for picture in pictures:
        try:
            yield picture, files.read(picture.name)
        except LaqError as error:
            yield picture, str(error)


def _decoded(name: str, content: bytes | str, preprocessing: Preprocessing) -> Decoded:
    if not content or isinstance(content, str):
        return Decoded(problem=content or f"{name}: found an empty file")
    try:
        image = np.asarray(preprocessing(read_picture(content, name))).transpose(2, 0, 1)
    except LaqError as error:
        return Decoded(problem=str(error).partition("; ")[0])
    return Decoded(md5_of(content), image)


def _told(broken: Sequence[str], files: int) -> str:
    """What is said of the broken files, in a line."""
    more = f"; and {len(broken) - _MOST_NAMED} more" if len(broken) > _MOST_NAMED else ""
    return (
        f"{len(broken)} of {files} files are no whole pictures ({'; '.join(broken[:_MOST_NAMED])}{more}); "
        "remove them, or set dataset.skip_broken: true"
    )


def _check_classes_share_nothing(items: Sequence[Item]) -> None:
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(item.md5, item)
        if other.class_name != item.class_name:
            raise LaqError(f"{other.name!r} and {item.name!r} are the same picture in two classes; keep one")
