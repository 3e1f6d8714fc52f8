"""What git and DVC say of the folder and the process that results are made in."""

import os
import subprocess
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

_PARAMS: Final = "params.yaml"
# What results depend on; their data are told by their hashes.
_SOURCES: Final = ("laq", "dvc.yaml", _PARAMS, "requirements.txt")


def commit() -> dict[str, Any]:
    """The commit that the current folder is at, and the files that results depend on that differ from it.

    Of ``params.yaml``, what the study that runs holds counts: which one runs, other studies and comments do
    not. All are None outside of git, and before its first commit.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--", *_SOURCES
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None, "uncommitted": None}
    files = sorted(entry[3:] for entry in changed.split("\0") if entry)
    files = [file for file in files if Path(file).name != _PARAMS or not _is_study_committed()]
    return {"commit": head, "dirty": bool(files), "uncommitted": files}


def _is_study_committed() -> bool:
    """Whether the study that runs stands in the commit as it does in the folder."""
    yaml = YAML(typ="safe", pure=True)
    try:
        used = yaml.load(Path(_PARAMS).read_text(encoding="utf-8"))
        committed = yaml.load(_git("show", f"HEAD:./{_PARAMS}"))
        return bool(used[used["study"]] == committed[used["study"]])
    except (OSError, ValueError, subprocess.CalledProcessError, YAMLError, KeyError, TypeError):
        return False  # such as a block that is new, or a file that is


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
    return done.stdout.strip("\n")
