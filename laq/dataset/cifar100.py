"""CIFAR-100 (Krizhevsky 2009): fetched or copied, and verified before anything reads it."""

import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy._core.multiarray import _reconstruct as reconstruct

from laq.dataset.archives import BROKEN
from laq.dataset.layout import Description, Split, write_split
from laq.errors import LaqError
from laq.files import project_root
from laq.paths import CIFAR100_COPY
from laq.pictures import SQUASHED_TO_32

MD5: Final = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_SPLITS: Final[tuple[Split, ...]] = ("train", "test")
# What the official files are pickled from, and nothing that could run code.
_PICKLED_TYPES: Final = {
    # They were pickled by an older NumPy under the first of these names.
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_LARGEST: Final = 200 * 2**20  # bytes; train has 155 million
_WAYS_OUT: Final = (
    f"set {CIFAR100_COPY} to a copy (a folder, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz), run `dvc pull` if "
    "your team has a DVC remote, or use the built-in dataset (`study: glyphs` in params.yaml)"
)


def write_cifar100(folder: Path) -> Description:
    """Write the official images into ``folder``; they are unpickled when their MD5s are known to be right.

    Raises:
        LaqError: they cannot be had.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        official = Path(scratch)
        fetch_cifar100(official)
        train, test, meta = (_unpickle(official / name) for name in MD5)
    for split, content in zip(_SPLITS, (train, test), strict=True):
        images = content["data"].reshape(-1, 3, SQUASHED_TO_32.size, SQUASHED_TO_32.size)
        write_split(folder, split, [images], content["fine_labels"])
    pairs = dict(zip(test["fine_labels"], test["coarse_labels"], strict=True))
    superclasses = [meta["coarse_label_names"][coarse] for _, coarse in sorted(pairs.items())]
    return Description(meta["fine_label_names"], SQUASHED_TO_32, superclasses, {"md5": dict(MD5)})


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and Python's own containers."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLED_TYPES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a dataset") from None


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:
        # A pickle that is none of images raises whatever it stumbles upon.
        raise LaqError(
            f"CIFAR-100: {path.name!r} is no pickle of images ({type(error).__name__}: {error}); {_WAYS_OUT}"
        ) from error
    return content


def fetch_cifar100(target: Path, expected: Mapping[str, str] = MD5) -> None:
    """Put the official ``train``, ``test`` and ``meta`` into the folder ``target``.

    They come from the copy named by the environment variable ``LAQ_CIFAR100``, if it is set, else from where
    torchvision has them. A file is known by its name, in whatever folder it lies, and its MD5 (``expected``).

    Raises:
        LaqError: there is no copy, or it holds no such file; then no file that is not the official one is
            left in ``target``.
    """
    if local := os.environ.get(CIFAR100_COPY):
        _take(project_root() / Path(local).expanduser(), target, expected, f"{CIFAR100_COPY}={local}")
    else:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _take(_download(Path(scratch)), target, expected, "the download")


def _download(folder: Path) -> Path:
    from torchvision.datasets import CIFAR100  # noqa: PLC0415 (takes seconds, and only this needs it)
    from torchvision.datasets.utils import download_url  # noqa: PLC0415 (likewise)

    try:
        download_url(CIFAR100.url, folder, CIFAR100.filename, CIFAR100.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise LaqError(
            f"CIFAR-100 cannot be downloaded from {CIFAR100.url} ({error}): {_WAYS_OUT}"
        ) from error
    return folder / str(CIFAR100.filename)


def _take(source: Path, target: Path, expected: Mapping[str, str], where: str) -> None:
    """Copy the files with the ``expected`` MD5s, each when all of it has been read."""
    if not source.exists():
        raise LaqError(f"{where}: no such file or folder; {_WAYS_OUT}")
    missing, others = dict(expected), dict[str, str]()
    for name, content in _files_in(source, expected, where):
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if missing.get(name) == found:
            (target / name).write_bytes(content)
            del missing[name]
        else:
            others[name] = found
        if not missing:
            return
    if absent := [name for name in missing if name not in others]:
        raise LaqError(f"{where}: holds no file {absent[0]!r}; {_WAYS_OUT}")
    name, known = next(iter(missing.items()))
    raise LaqError(f"{where}: {name!r} is not CIFAR-100's: MD5 {others[name]}, expected {known}; {_WAYS_OUT}")


def _files_in(source: Path, names: Collection[str], where: str) -> Iterator[tuple[str, bytes]]:
    """The files of these names in a folder or an archive, with what they hold."""
    read = _in_folder if source.is_dir() else _in_zip if zipfile.is_zipfile(source) else _in_tar
    try:
        yield from read(source, names)
    except BROKEN as error:
        # tarfile tells in a line for each kind of archive why it is none of that kind.
        reason = str(error).partition(":\n")[0]
        raise LaqError(f"{where}: not a whole CIFAR-100 archive ({reason}); {_WAYS_OUT}") from error


def _in_folder(source: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Those in the folder itself or in a folder of it."""
    for name in names:
        for path in (source / name, *sorted(source.glob(f"*/{name}"))):
            if path.is_file():
                with path.open("rb") as file:
                    yield name, file.read(_LARGEST)


def _in_zip(source: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if (name := PurePosixPath(member.filename).name) in names and not member.is_dir():
                with archive.open(member) as file:
                    yield name, file.read(_LARGEST)


def _in_tar(source: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source) as archive:
        for member in archive:
            # A link is no file: what it points to may be anything, or the link itself.
            file = archive.extractfile(member) if member.isreg() else None
            if (name := PurePosixPath(member.name).name) in names and file is not None:
                yield name, file.read(_LARGEST)
