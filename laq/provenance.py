"""Which code made a result."""

import os
import subprocess
from typing import Any

_CODE = ("laq", "dvc.yaml", "requirements.txt")


def commit() -> dict[str, Any]:
    """The git commit that the code is at, and whether code or pipeline differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--", *_CODE)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(dirty)}


def in_git() -> bool:
    """Whether the current folder is in a git checkout."""
    try:
        return _git("rev-parse", "--is-inside-work-tree") == "true"
    except (OSError, subprocess.CalledProcessError):
        return False


def experiment() -> str | None:
    """The name of the DVC experiment that this process is part of."""
    return os.environ.get("DVC_EXP_NAME")


def in_pipeline() -> bool:
    """Whether DVC runs this process as a stage."""
    return "DVC_STAGE" in os.environ


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()
