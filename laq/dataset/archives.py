"""The files in a folder, a tar archive or a zip archive, none of which leads outside of it."""

import io
import lzma
import os
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from laq.errors import LaqError
from laq.files import is_hidden

# What archives raise that are cut off, damaged, encrypted or packed in a way that Python does not know.
BROKEN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
)
_UNWRITABLE: Final = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are no UTF-8, ends of lines
_LARGEST: Final = 512 * 2**20  # bytes of a file


@dataclass(frozen=True)
class Files:
    """Files by their names, with slashes, from the folder or archive on; hidden ones are left out.

    Attributes:
        names: in the order in which they are read fastest.
        folders: the names of the folders, also of those that hold nothing.
        read: returns what a file holds; raises ``LaqError`` where it cannot be read.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """Open the folder or archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz) for this block.

    Raises:
        LaqError: there is none, it is damaged, or a name or link in it leads outside.
    """
    if path.is_dir():
        yield _in_folder(path)
        return
    if not path.exists():
        raise LaqError(f"{path}: no such folder or archive")
    with ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                files = _in_zip(stack.enter_context(zipfile.ZipFile(path)))
            else:
                files = _in_tar(stack.enter_context(tarfile.open(path)))
        except BROKEN as error:
            # tarfile tells in a line for each kind of archive why it is none of that kind.
            reason = str(error).partition(":\n")[0]
            raise LaqError(f"{path}: neither a folder nor a whole .zip or .tar archive ({reason})") from error
        except LaqError as error:
            raise LaqError(f"{path}: {error}") from error
        yield files


def _in_folder(root: Path) -> Files:
    names: list[str] = []
    folders: list[str] = []
    within = root.resolve()
    for current, below, files in os.walk(root, onerror=_raise):
        for name in sorted([*below, *files]):
            path = Path(current, name)
            inside = path.relative_to(root).as_posix()
            if is_hidden(inside):
                continue
            _check_name(inside)
            if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(within)):
                raise LaqError(f"{root}: {inside!r} is a link to elsewhere; copy there what it links to")
            if not (path.is_dir() or path.is_file()):
                raise LaqError(f"{root}: {inside!r} is neither a file nor a folder; remove it")
            (folders if path.is_dir() else names).append(inside)
        below[:] = sorted(name for name in below if not is_hidden(name))
    return Files(tuple(names), tuple(folders), lambda name: _read(lambda: (root / name).open("rb"), name))


def _raise(error: OSError) -> None:
    raise error


def _check_name(name: str) -> None:
    """See that a name can be written, and leads to a place below its folder or archive."""
    if any(unicodedata.category(letter) in _UNWRITABLE for letter in name):
        raise LaqError(f"{name!a} is a name with control characters or not in UTF-8; rename it")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LaqError(f"{name!r} leads outside of the archive; pack the pictures' folder itself")


def _in_tar(archive: tarfile.TarFile) -> Files:
    members, folders = {}, []
    for member in archive.getmembers():
        name = PurePosixPath(member.name).as_posix()
        if is_hidden(name) or name == ".":
            continue
        _check_name(member.name)
        if member.isdir():
            folders.append(name)
        elif member.isreg() or member.islnk():
            members[name] = member
        else:
            raise LaqError(f"{name!r} is a link or no file at all; pack the pictures themselves")
    return Files(
        tuple(members), tuple(folders), lambda name: _read(lambda: archive.extractfile(members[name]), name)
    )


def _in_zip(archive: zipfile.ZipFile) -> Files:
    members, folders = {}, []
    for member in archive.infolist():
        name = PurePosixPath(member.filename).as_posix()
        if is_hidden(name):
            continue
        _check_name(member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise LaqError(f"{name!r} is a link; pack the pictures themselves")
        if member.is_dir():
            folders.append(name)
        else:
            members[name] = member
    return Files(
        tuple(members), tuple(folders), lambda name: _read(lambda: archive.open(members[name]), name)
    )


def _read(opened: Callable[[], IO[bytes] | None], name: str) -> bytes:
    """What the file holds that ``opened`` opens."""
    try:
        with opened() or io.BytesIO() as file:
            content = file.read(_LARGEST + 1)
    except BROKEN as error:
        raise LaqError(f"{name}: cannot be read ({error})") from error
    if len(content) > _LARGEST:
        raise LaqError(f"{name}: larger than {_LARGEST} bytes")
    return content
