"""The hash of a folder outside of the pipeline, of which only the files that have changed are read again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from laq.errors import LaqError
from laq.files import folder_md5, is_hidden, md5, project_root, read_json, write_json

_FILE: Final = Path(".laq/states.json")


def state_md5(path: Path) -> str:
    """The hash that DVC gives a file, or a folder without its hidden files.

    A file is read when its size or times of change are others than when it was read last; whoever sets back
    the time of its content cannot set back that of its inode.
    """
    kept = project_root() / _FILE
    before = _read(kept)
    states: dict[str, list[Any]] = {}
    for file in _files(path):
        about = file.stat()
        state = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
        known = before.get(str(file), [])
        states[str(file)] = known if known[:-1] == state else [*state, md5(file)]
    if any(before.get(name) != state for name, state in states.items()):
        write_json(kept, before | states)
    if path.is_file():
        return str(states[str(path)][-1])
    return folder_md5({Path(name).relative_to(path).as_posix(): state[-1] for name, state in states.items()})


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and not is_hidden(file.relative_to(path).as_posix()):
            yield file


def _read(path: Path) -> dict[str, list[Any]]:
    """What is known; nothing, where that cannot be read, for it is but a shortcut."""
    try:
        content = read_json(path)
    except LaqError:
        return {}
    whole = isinstance(content, dict) and all(isinstance(s, list) and len(s) == 5 for s in content.values())
    return content if whole else {}
