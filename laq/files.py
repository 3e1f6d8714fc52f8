"""Files: written whole or not at all, named by the hash of what is in them."""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile

from pydantic import TypeAdapter, ValidationError

from laq.errors import LaqError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What renaming a folder to a name says where a folder is that holds something.
TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)
_PARTIAL: Final = ".laq-partial-"
_OF_SYSTEMS: Final = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
MAKE: Final = "run `dvc repro` (or `make repro`) to make it"
_LONGEST: Final = 80  # characters of a damaged file that an error repeats
_ENTRIES: Final = {float: "finite numbers", int: "whole numbers", str: "texts"}


def project_root() -> Path:
    """The folder that relative paths and the default store start from.

    DVC runs queued experiments in a temporary copy and names the user's own repository in
    ``DVC_ROOT``; what must outlive the copy belongs there.
    """
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` once the block ends well.

    At no moment is there neither the old nor the new one, where the file system can swap two names.
    """
    with partial_folder(target.parent, target) as partial:
        yield partial
        _put(partial, target)


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield a path that is renamed to ``target`` once the block ends well."""
    with partial_folder(target.parent, target) as folder:
        yield folder / target.name
        (folder / target.name).rename(target)


@contextmanager
def partial_folder(parent: Path, target: Path) -> Iterator[Path]:
    """Yield an empty folder below ``parent`` to write in; what is left in it at the end is removed.

    A killed process leaves its own behind, which the next one that writes below ``parent`` removes. The lock
    by which it tells these from those in use is the kernel's, and gone with the process that holds it.

    Raises:
        OSError: of what cannot be written, under the name that it would have had below ``target``.
    """
    folder, lock = parent, -1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_left(parent)
        folder, lock = _locked_folder(parent)
        yield folder
    except OSError as error:
        _name(error, target)
        raise
    finally:
        if lock >= 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = parent / f"{_PARTIAL}{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        with suppress(FileNotFoundError):  # another process took it for one that was left
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks, on which nothing is taken for left
                fcntl.flock(lock, fcntl.LOCK_SH)
            if folder.exists():
                return folder, lock
            os.close(lock)


def remove_left(parent: Path) -> None:
    """Remove the partial folders below ``parent`` that no process holds: what killed processes left."""
    for left in parent.glob(f"{_PARTIAL}*"):
        with suppress(OSError):  # it is in use, another process was first, or it may not be removed
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def _put(partial: Path, target: Path) -> None:
    """Rename a folder to ``target``; what was there gets the folder's old name."""
    while True:
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        else:
            return
        with suppress(FileNotFoundError):  # deleted since, so that now it can be renamed
            _swap(partial, target)
            return


def _swap(one: Path, other: Path) -> None:
    """Swap the names of two folders: at once where the system can, else with a moment without ``other``."""
    at_once = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux
    names = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    if at_once is None or at_once(*names, _RENAME_EXCHANGE):
        aside = one.with_name(f"{one.name}-aside")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)


def _name(error: OSError, target: Path) -> None:
    """Let the error name what was to be written: a full disk's names nothing, others the partial folder."""
    if error.errno is None and "requested and" in str(error):  # NumPy tells how much was written, not why
        error.errno, error.strerror = errno.ENOSPC, os.strerror(errno.ENOSPC)
    name = error.filename2 or error.filename  # of a copy, where it goes
    parts = Path(os.fsdecode(name)).parts if isinstance(name, str | bytes) else ()
    places = [place for place, part in enumerate(parts) if part.startswith(_PARTIAL)]
    below = list(parts[places[-1] + 1 :] if places else ())
    if places or (error.errno is not None and not parts):
        error.filename = str(target if below == [target.name] else target.joinpath(*below))
    elif name and name == error.filename2:
        error.filename = name  # what is in the way of a file or folder that is whole


def write_array(path: Path, length: int, pieces: Iterable["NDArray[Any]"]) -> None:
    """Write a ``.npy`` file of an array (length, ...) that comes in ``pieces`` (b, ...), one at least.

    So it need not be in memory at once. Nor is it memory-mapped, for then a full disk would kill the process.
    """
    import numpy as np  # noqa: PLC0415 (so that the command line starts without it)

    with path.open("wb") as file, ExitStack() as stack:
        if isinstance(pieces, Generator):  # so that its progress bar ends before an error is told
            stack.enter_context(closing(pieces))
        for number, piece in enumerate(pieces):
            if number == 0:
                kind = np.lib.format.dtype_to_descr(piece.dtype)
                shape = (length, *piece.shape[1:])
                header = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(piece.tobytes())


def write_json(target: Path, content: Any) -> None:
    """Write ``content`` as indented JSON."""
    with replacing_file(target) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, kind: Any = Any, remedy: str = MAKE) -> Any:
    """Read JSON that must be of a ``kind``: a type, such as ``list[int]`` or a dataclass.

    Raises:
        LaqError: the file is missing, is not JSON or is of another kind; the line ends with the ``remedy``.
    """
    try:
        return TypeAdapter(kind).validate_json(need(path, remedy).read_bytes(), strict=True)
    except ValidationError as error:
        raise LaqError(f"{path}: {wrong_kind(error)}; {remedy}") from error


def wrong_kind(error: ValidationError) -> str:
    """The first thing that is wrong with what a file holds: where, what was found, what must be there."""
    wrong = error.errors(include_url=False)[0]
    if wrong["type"] == "json_invalid":
        return f"not JSON ({wrong['ctx']['error']})"
    keys = "".join(f"{key}: " for key in wrong["loc"])
    found = "" if wrong["type"] == "missing" else f"found {wrong['input']!r:.{_LONGEST}}; "
    told = (
        wrong["msg"]
        .removeprefix("Value error, ")
        .replace("Input should", "must")
        .replace("Field required", "missing")
    )
    return f"{keys}{found}{told.partition(' or instance of ')[0]}"


def read_array(path: Path, entries: type, shape: tuple[int | None, ...]) -> "NDArray[Any]":
    """Read an array of a ``.npy`` file, whose ``entries`` must be of float, int or str.

    Args:
        path: The file.
        entries: Floats must be finite.
        shape: The length of each dimension; None allows any but 0.

    Raises:
        LaqError: the file is missing, is no such file or holds another array.
    """
    import numpy as np  # noqa: PLC0415 (so that the command line starts without it)

    try:
        array = np.load(need(path), allow_pickle=False)
    except (ValueError, TypeError, EOFError, OverflowError, MemoryError, BadZipFile) as error:
        raise LaqError(f"{path}: not a whole .npy file ({' '.join(str(error).split())}); {MAKE}") from error
    if not isinstance(array, np.ndarray):
        raise LaqError(f"{path}: found an archive of arrays; must be one array; {MAKE}")
    lengths = zip(array.shape, shape, strict=False)
    fits = array.ndim == len(shape) and all(found and found == (asked or found) for found, asked in lengths)
    if not fits or array.dtype.kind != np.dtype(entries).kind:
        allowed = ", ".join("any" if length is None else str(length) for length in shape)
        raise LaqError(
            f"{path}: found {array.dtype} of shape {array.shape}; must be {_ENTRIES[entries]} of shape "
            f"({allowed}); {MAKE}"
        )
    if entries is float and not np.isfinite(array).all():
        raise LaqError(f"{path}: found numbers that are not finite; must be {_ENTRIES[float]}; {MAKE}")
    return array


def need(path: Path, remedy: str = MAKE) -> Path:
    """Return ``path`` if it is there.

    Raises:
        LaqError: it is not; the line ends with the ``remedy``.
    """
    if not path.exists():
        raise LaqError(f"{path}: not found; {remedy}")
    return path


def read_given(key: str, name: str, sha256: str) -> bytes:
    """What a file holds that a key of ``params.yaml`` names, from the project's folder, with its SHA-256.

    Raises:
        LaqError: the file cannot be read, or is another one.
    """
    try:
        content = (project_root() / name).read_bytes()
    except OSError as error:
        raise LaqError(f"{key}: {name}: {error.strerror}; name a file from the project's folder") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise LaqError(f"{key}: {name}: SHA-256 is {found}, params.yaml says {sha256}")
    return content


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
    return folder_md5({f.relative_to(path).as_posix(): md5(f) for f in path.rglob("*") if f.is_file()})


def is_hidden(name: str) -> bool:
    """Whether a file or folder, or one that it lies in, is none of the user's own: a system's, or hidden."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]
    return any(part.startswith(".") or part.casefold() in _OF_SYSTEMS for part in parts)


def folder_md5(files: Mapping[str, str]) -> str:
    """The hash that DVC gives a folder with ``files``: their MD5s by their names."""
    entries = [{"md5": hashed, "relpath": name} for name, hashed in sorted(files.items())]
    listing = json.dumps(entries, sort_keys=True)
    return f"{hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()}.dir"


def digest(content: Any) -> str:
    """The SHA-256 of ``content`` written as canonical JSON: a name for a result's inputs."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
