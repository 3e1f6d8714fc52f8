"""A cache of results by the hash of all that they depend on: a killed or extended run redoes nothing.

It lies in ``.laq/`` at the project's root, outside of DVC's outputs (which DVC empties before a
stage runs), and can be deleted at any time. A result is never replaced: whoever makes it first renames it
into its place, and whoever made the same at the same time takes that one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from laq.files import TAKEN, digest, partial_folder, project_root, remove_left, write_json

_FOLDER = ".laq"


def place_of(kind: str, inputs: dict[str, Any]) -> Path:
    """The folder where a result lies, or will once it is made."""
    return project_root() / _FOLDER / kind / digest(inputs)


def cached(kind: str, inputs: dict[str, Any], fill: Callable[[Path], None]) -> Path:
    """The folder that ``fill`` filled for these ``inputs``, now or in an earlier run.

    ``inputs`` must name everything the result depends on (``laq.imports.code_digest`` for the code).
    """
    folder = place_of(kind, inputs)
    if not folder.exists():
        # Beside all kinds: what a killed process has left is found without a look through the results.
        with partial_folder(folder.parents[1], folder) as partial:
            fill(partial)
            write_json(partial / "inputs.json", inputs)
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
