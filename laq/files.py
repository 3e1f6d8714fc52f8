"""Files: written whole or not at all, named by the hash of what is in them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laq.errors import LaqError


def project_root() -> Path:
    """The folder that relative paths and the default store start from.

    DVC runs queued experiments in a temporary copy and names the user's own repository in
    ``DVC_ROOT``; what must outlive the copy belongs there.
    """
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` once the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    partial.chmod(0o755)  # mkdtemp's 0700 would make the result unreadable to others
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        _name(target, error)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``target`` that is renamed to it once the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield partial
        partial.rename(target)
    except OSError as error:
        _name(target, error)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _name(target: Path, error: OSError) -> None:
    """Give the error the name of what was being written, which a full disk's lacks."""
    if error.filename is None:
        error.filename = str(target)


def write_json(target: Path, content: Any) -> None:
    """Write ``content`` as indented JSON."""
    with replacing_file(target) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        LaqError: the file is missing or is not JSON.
    """
    try:
        return json.loads(need(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LaqError(f"{path}: not JSON ({error}); remove it and run `dvc repro`") from error


def need(path: Path) -> Path:
    """Return ``path`` if it is there.

    Raises:
        LaqError: it is not.
    """
    if not path.exists():
        raise LaqError(f"{path}: not found; run `dvc repro` (or `make repro`) to make it")
    return path


def md5(path: Path) -> str:
    """The MD5 of a file, as DVC and CIFAR-100's authors give it.

    Raises:
        LaqError: the file is missing.
    """
    with need(path).open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def dvc_md5(path: Path) -> str:
    """The hash that DVC gives a file, or a folder, by the hashes and the names of the files in it.

    Raises:
        LaqError: the file is missing.
    """
    if need(path).is_file():
        return md5(path)
    files = sorted((f.relative_to(path).as_posix(), f) for f in path.rglob("*") if f.is_file())
    listing = json.dumps([{"md5": md5(file), "relpath": name} for name, file in files], sort_keys=True)
    return f"{hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()}.dir"


def digest(content: Any) -> str:
    """The SHA-256 of ``content`` written as canonical JSON: a name for a result's inputs."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_digest(*folders: Path) -> str:
    """The SHA-256 over the names and bytes of every file below ``folders``."""
    files = sorted(f for folder in folders for f in folder.rglob("*") if f.is_file())
    return digest([(f.name, md5(f)) for f in files if f.suffix not in {".pyc", ".nbi", ".nbc"}])
