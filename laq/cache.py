"""A cache of results by the hash of all that they depend on: a killed or extended run redoes nothing.

It lies in ``.laq/`` at the project's root, outside of DVC's outputs (which DVC empties before a
stage runs), and can be deleted at any time.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from laq.files import digest, folder_digest, md5, project_root, replacing_folder, write_json

_PACKAGE = Path(__file__).parent


def place_of(kind: str, inputs: dict[str, Any]) -> Path:
    """The folder where a result lies, or will once it is made."""
    return project_root() / ".laq" / kind / digest(inputs)


def cached(kind: str, inputs: dict[str, Any], fill: Callable[[Path], None]) -> Path:
    """The folder that ``fill`` filled for these ``inputs``, now or in an earlier run.

    ``inputs`` must name everything the result depends on (``code_digest`` for the code).
    """
    folder = place_of(kind, inputs)
    if not folder.exists():
        with replacing_folder(folder) as partial:
            fill(partial)
            write_json(partial / "inputs.json", inputs)
    return folder


@cache
def code_digest(*rooms: str) -> str:
    """The hash of the source of these rooms (folders, or modules by their name) and torch's version."""
    folders = [_PACKAGE / room for room in rooms if (_PACKAGE / room).is_dir()]
    modules = [md5(_PACKAGE / f"{room}.py") for room in rooms if not (_PACKAGE / room).is_dir()]
    return digest([folder_digest(*folders), modules, version("torch")])
