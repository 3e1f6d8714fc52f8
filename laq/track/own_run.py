"""The run that `mlflow run` started, if it started this process."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from laq.track.descriptions import shortened
from laq.track.store import Store


def own_run() -> str:
    """The run's id; empty if this process was started in another way."""
    return os.environ.get("MLFLOW_RUN_ID", "")


def annotate(store: Store, description: str, tags: Mapping[str, str], files: Sequence[Path] = ()) -> None:
    """Add a description, tags and artifacts to the run, if there is one.

    Raises:
        LaqError: the store cannot be reached or written.
    """
    if own := own_run():
        with store.one_line_errors():
            for path in files:
                store.client.log_artifact(own, str(path))
            for name, value in {**tags, "mlflow.note.content": shortened(description)}.items():
                store.client.set_tag(own, name, value)
