"""The MLflow store: where runs and models go, once each, whoever else is writing.

A result is a tree of runs, named by its root's key; the root is finished last, so that a finished root
stands for a whole tree. This machine's processes take turns, and go on with what one of them left
unfinished when it was killed or its server went away. Another machine cannot be waited for: should two
send the same result at the same moment, the tree that was finished first stays, and the other one goes.
"""

import os
import platform
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from laq.errors import LaqError
from laq.files import digest, project_root
from laq.track.connection import (
    DATABASES,
    OWN_RUN,
    SQLITE,
    configure_mlflow,
    connected,
    database_file,
    one_line_errors,
    without_password,
)
from laq.track.descriptions import shortened
from laq.track.registry import if_it_exists, register_champions
from laq.track.runs import ResultRuns
from laq.track.sending import Sender


@dataclass(frozen=True)
class Sent:
    """How many of a result's runs were sent now, and the ids of all of its runs by key."""

    count: int
    ids: dict[str, str]
    experiment_id: str


class Store:
    """The tracking server that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root."""

    def __init__(self) -> None:
        configure_mlflow()
        own = f"{SQLITE}{project_root() / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        if re.search("://.*@.*@", self.uri):
            raise LaqError(
                f"MLflow at {self}: more than one @ in MLFLOW_TRACKING_URI; write %40 for one in a password"
            )
        with one_line_errors(str(self)), self._alone(), connected(self.uri):
            self.client = MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
            self.client.search_experiments(max_results=1)

    def __str__(self) -> str:
        return without_password(self.uri)

    @property
    def _lock(self) -> Path:
        """The file that this machine's processes take turns by: a database file's lies beside it."""
        if self.uri.startswith(SQLITE):
            file = database_file(self.uri)
            return file.with_name(f"{file.name}.lock")
        name = digest([os.getuid(), self.uri])[:16]
        return Path(tempfile.gettempdir()) / f"laq-{name}.lock"

    @property
    def _writer(self) -> str:
        """Names all that take turns: what one of them left unfinished, no other is at work on."""
        if self.uri.startswith(SQLITE):
            return "this database's"
        return digest([platform.node(), uuid.getnode(), str(self._lock)])[:16]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep this machine's other processes out.

        Two that set up a new sqlite store at once break it for good; two that send the same result
        would both find that it is not there yet.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock):
            yield

    def send(self, tree: ResultRuns) -> Sent:
        """Send what the store lacks of a tree.

        Raises:
            LaqError: the store cannot be reached or written; what was sent until then stays.
        """
        with one_line_errors(str(self)), self._alone():
            own = self._own_run(tree)
            experiment = own.info.experiment_id if own else self._experiment(tree)
            sent, runs = Sender(self.client, experiment, tree, self._writer).send(own)
            if tree.champion_bytes is not None:
                register_champions(self.client, tree, runs)
            return Sent(sent, {key: run.info.run_id for key, run in runs.items()}, experiment)

    def annotate_own_run(self, description: str, tags: Mapping[str, str], files: Sequence[Path] = ()) -> None:
        """Add a description, tags and artifacts to the run that `mlflow run` started, if it did.

        Raises:
            LaqError: the store cannot be reached or written.
        """
        if OWN_RUN:
            with one_line_errors(str(self)):
                for path in files:
                    self.client.log_artifact(OWN_RUN, str(path))
                for name, value in {**tags, MLFLOW_RUN_NOTE: shortened(description)}.items():
                    self.client.set_tag(OWN_RUN, name, value)

    def _own_run(self, tree: ResultRuns) -> Run | None:
        """The run that `mlflow run` started for the tree, if this store has it."""
        if tree.own_run:
            with if_it_exists():
                run = self.client.get_run(tree.own_run)
                return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None
        return None

    def _experiment(self, tree: ResultRuns) -> str:
        """The id of the tree's experiment, made if need be."""
        found = self.client.get_experiment_by_name(tree.experiment)
        if found is None:
            try:
                return str(self.client.create_experiment(tree.experiment, self._artifacts(tree.experiment)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # Another machine was faster.
            found = self.client.get_experiment_by_name(tree.experiment)
        assert found is not None
        return str(found.experiment_id)

    def _artifacts(self, experiment: str) -> str | None:
        """Where artifacts lie, wherever this process was started; a server has a place of its own."""
        if not self.uri.startswith(DATABASES):
            return None
        local = self.uri.startswith(SQLITE)
        beside = database_file(self.uri).parent if local else project_root()
        return (beside / "mlruns" / experiment).as_uri()
