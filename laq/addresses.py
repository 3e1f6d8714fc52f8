"""Where MLflow's store is, and how its address is shown."""

import os
import re

from laq.files import project_root


def tracking_uri() -> str:
    """The store that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def without_password(text: str) -> str:
    """The text with stars for the passwords of the addresses in it."""
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text))
