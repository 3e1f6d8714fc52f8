"""CIFAR-100 (Krizhevsky 2009): fetched or copied, and verified before anything reads it."""

import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Final

from laq.errors import LaqError
from laq.files import md5, project_root

LOCAL_COPY: Final = "LAQ_CIFAR100"
MD5: Final = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_FOLDER: Final = "cifar-100-python"
_WAYS_OUT: Final = (
    f"set {LOCAL_COPY} to a copy (a folder, .tar.gz or .tar.xz), run `dvc pull` if your team has a "
    "DVC remote, or use the built-in dataset (`study: glyphs` in params.yaml)"
)


def fetch_cifar100(target: Path) -> None:
    """Put the official ``train``, ``test`` and ``meta`` into the folder ``target``.

    They come from the copy named by the environment variable ``LAQ_CIFAR100``, if it is set,
    else from torchvision's download.

    Raises:
        LaqError: there is no copy, or a file is not the official one.
    """
    local = os.environ.get(LOCAL_COPY)
    if local:
        _copy(project_root() / Path(local).expanduser(), target)
    else:
        _download(target)
    for name in MD5:
        _verify(target / name, local or "the download")


def _download(target: Path) -> None:
    from torchvision.datasets import CIFAR100  # noqa: PLC0415 (takes seconds, and only this needs it)

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            CIFAR100(scratch, download=True)
        except (OSError, RuntimeError) as error:
            raise LaqError(
                f"CIFAR-100 cannot be downloaded from {CIFAR100.url} ({error}): {_WAYS_OUT}"
            ) from error
        for name in MD5:
            shutil.copyfile(Path(scratch) / _FOLDER / name, target / name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        _copy_folder(source, target)
    elif source.is_file():
        _extract(source, target)
    else:
        raise LaqError(f"{LOCAL_COPY}={source}: no such file or folder; {_WAYS_OUT}")


def _copy_folder(source: Path, target: Path) -> None:
    inner = source / _FOLDER if (source / _FOLDER).is_dir() else source
    for name in MD5:
        if not (inner / name).is_file():
            raise LaqError(f"{LOCAL_COPY}={source}: holds no file {name!r}; {_WAYS_OUT}")
        shutil.copyfile(inner / name, target / name)


def _extract(archive: Path, target: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            for name in MD5:
                with tar.extractfile(f"{_FOLDER}/{name}") as source, (target / name).open("wb") as out:  # type: ignore[union-attr]
                    shutil.copyfileobj(source, out)
    except (
        tarfile.TarError,
        KeyError,
        AttributeError,
        EOFError,
        OSError,
        lzma.LZMAError,
        zlib.error,
    ) as error:
        raise LaqError(
            f"{LOCAL_COPY}={archive}: not a whole CIFAR-100 archive ({error}); {_WAYS_OUT}"
        ) from error


def _verify(path: Path, origin: str) -> None:
    if (found := md5(path)) != MD5[path.name]:
        raise LaqError(
            f"{origin}: {path.name!r} is not CIFAR-100's: MD5 {found}, expected {MD5[path.name]}; {_WAYS_OUT}"
        )
