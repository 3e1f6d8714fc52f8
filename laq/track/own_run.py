"""The run that `mlflow run` started, if it started this process."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from laq.track.descriptions import shortened
from laq.track.store import Store

# Starting and ending a run deletes the variable, so it is read at import.
OWN_RUN: Final = os.environ.get("MLFLOW_RUN_ID", "")


def annotate(store: Store, description: str, tags: Mapping[str, str], files: Sequence[Path] = ()) -> None:
    """Add a description, tags and artifacts to the run, if there is one.

    Raises:
        LaqError: the store cannot be reached or written.
    """
    if OWN_RUN:
        with store.one_line_errors():
            for path in files:
                store.client.log_artifact(OWN_RUN, str(path))
            for name, value in {**tags, "mlflow.note.content": shortened(description)}.items():
                store.client.set_tag(OWN_RUN, name, value)
