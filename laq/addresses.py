"""Where MLflow's store is, how its address is shown, and where results wait for it."""

import os
import re
from pathlib import Path

from laq.files import project_root


def tracking_uri() -> str:
    """The store that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or usual_uri()


def usual_uri() -> str:
    """The store where none is named, which MLflow's commands take, too: sqlite at the project's root."""
    return f"sqlite:///{project_root() / 'mlflow.db'}"


def outbox() -> Path:
    """The folder of results that wait until a store has them, each a file named by its root's key."""
    return project_root() / ".laq" / "outbox"


def without_password(text: str) -> str:
    """The text with stars for the passwords of the addresses in it."""
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text))
