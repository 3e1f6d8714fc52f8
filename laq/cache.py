"""A cache of results by the hash of all that they depend on: a killed or extended run redoes nothing.

It lies in ``.laq/`` at the project's root, outside of DVC's outputs (which DVC empties before a
stage runs), and can be deleted at any time. A result is never replaced while it is whole, which is while its
files have the hashes that it was made with: whoever makes it first renames it into its place, and whoever
made the same at the same time takes that one.
"""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

from laq.errors import LaqError
from laq.files import TAKEN, digest, md5, partial_folder, project_root, read_json, remove_left, write_json

_FOLDER: Final = ".laq"
_FILES: Final = "files.json"  # of a result: the hash of each of its files


def place_of(kind: str, inputs: dict[str, Any]) -> Path:
    """The folder where a result lies, or will once it is made."""
    return project_root() / _FOLDER / kind / digest(inputs)


def is_whole(folder: Path) -> bool:
    """Whether a result is there, and as it was made."""
    try:
        hashes: dict[str, str] = read_json(folder / _FILES, dict[str, str])
        return all(md5(folder / name) == known for name, known in hashes.items())
    except (LaqError, OSError):
        return False


def cached(
    kind: str, inputs: dict[str, Any], fill: Callable[[Path], None], aside: Collection[str] = ()
) -> Path:
    """The folder that ``fill`` filled for these ``inputs``, now or in an earlier run.

    ``inputs`` must name everything the result depends on (``laq.imports.code_digest`` for the code). What has
    changed since it was made is made again, but for files ``aside``, which are no part of the result.
    """
    folder = place_of(kind, inputs)
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        # Beside all kinds: what a killed process has left is found without a look through the results.
        with partial_folder(folder.parents[1], folder) as partial:
            fill(partial)
            write_json(partial / "inputs.json", inputs)
            files = (path for path in sorted(partial.rglob("*")) if path.is_file() and path.name not in aside)
            write_json(partial / _FILES, {path.relative_to(partial).as_posix(): md5(path) for path in files})
            folder.parent.mkdir(exist_ok=True)
            try:
                partial.rename(folder)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
    return folder


def remove_unfinished() -> None:
    """Remove results that killed processes were at."""
    remove_left(project_root() / _FOLDER)
