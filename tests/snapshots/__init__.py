"""Texts that code makes, kept as files here, so that a reviewer sees in a diff what a reader will see.

Numbers stand as 0: other tests check them, and their last digits differ between processors.
"""

import os
import re
from pathlib import Path

_FOLDER = Path(__file__).parent


def check_snapshot(name: str, text: str) -> None:
    """The ``text`` is that of the file; with LAQ_SNAPSHOTS=write in the environment, the file is written."""
    masked = re.sub(r"[+−-]?\d+(\.\d+)?", "0", re.sub(" +", " ", text)).rstrip() + "\n"
    path = _FOLDER / name
    if os.environ.get("LAQ_SNAPSHOTS") == "write":
        path.write_text(masked, encoding="utf-8")
    kept = path.read_text(encoding="utf-8")
    assert masked.splitlines() == kept.splitlines(), "LAQ_SNAPSHOTS=write lets pytest write it"
