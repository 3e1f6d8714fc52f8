"""The MLflow store: where runs go, once each, whoever else is writing.

The only module that imports mlflow. Sending the same result
twice makes one run.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mlflow
import numpy as np
import torch
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from torch import nn

from laq.errors import LaqError
from laq.files import project_root

# `mlflow run` names its run here; starting and ending a run deletes the variable.
_RUN_ID: Final = os.environ.get("MLFLOW_RUN_ID")
_KEY: Final = "laq.key"


@dataclass(frozen=True)
class Record:
    """A run to be: ``files`` go into artifact folders, ``documents`` become JSON artifacts.

    ``key`` names the result, so that it is sent once; without one it is sent as often as asked.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    files: Sequence[tuple[Path, str]] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    key: str = ""


class Store:
    """The tracking server that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root."""

    def __init__(self) -> None:
        self.local = "MLFLOW_TRACKING_URI" not in os.environ
        if self.local:
            mlflow.set_tracking_uri(f"sqlite:///{project_root() / 'mlflow.db'}")
        # Without a limit, an unreachable server is asked for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self.uri = mlflow.get_tracking_uri()
        with _telling(self.uri), _first_connection(self.uri):
            self.client = MlflowClient()
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """The id of the experiment ``name``, made if need be."""
        with _telling(self.uri), _first_connection(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            # Beside the default store, wherever this process was started.
            place = (project_root() / "mlruns" / name).as_uri() if self.local else None
            return str(self.client.create_experiment(name, place))

    def send(self, experiment: str, record: Record, parent: str | None = None) -> tuple[str, bool]:
        """The id of the record's run, and whether it had to be sent now."""
        with _telling(self.uri):
            known = self.client.search_runs([experiment], f"tags.`{_KEY}` = '{record.key}'", max_results=1)
            if known and known[0].info.status == "FINISHED":
                return known[0].info.run_id, False
            # A run that a killed process left unfinished is finished now.
            run_id = known[0].info.run_id if known else self._create(experiment, record, parent)
            self.fill(run_id, record)
            self.client.set_terminated(run_id)
            return run_id, True

    def _create(self, experiment: str, record: Record, parent: str | None) -> str:
        tags = {_KEY: record.key, MLFLOW_RUN_NAME: record.name, MLFLOW_PARENT_RUN_ID: parent}
        tags = {name: value for name, value in tags.items() if value}
        return str(self.client.create_run(experiment, tags=tags).info.run_id)

    def fill(self, run_id: str, record: Record) -> None:
        """Log everything of ``record`` to a run; parameters that it has already stay as they are."""
        with _telling(self.uri):
            known = self.client.get_run(run_id).data.params
            now = int(1000 * time.time())
            metrics = [Metric(k, float(v), now, 0) for k, v in record.metrics.items()]
            params = [Param(k, str(v)) for k, v in record.params.items() if k not in known]
            tags = {**record.tags, **({MLFLOW_RUN_NOTE: record.note} if record.note else {})}
            self.client.log_batch(run_id, metrics, params, [RunTag(k, v) for k, v in tags.items()])
            for path, folder in record.files:
                self.client.log_artifact(run_id, str(path), folder or None)
            for name, content in record.documents.items():
                self.client.log_text(run_id, json.dumps(content, indent=2), name)

    @contextmanager
    def running(self, experiment: str, record: Record, parent: str | None = None) -> Iterator[str]:
        """A run filled with ``record``: without a parent, the one that `mlflow run` started, if it did."""
        own = _RUN_ID is not None and parent is None
        with _telling(self.uri):
            run_id = str(_RUN_ID) if own else self._create(experiment, record, parent)
            status = "FAILED"
            try:
                self.fill(run_id, record)
                yield run_id
                status = "FINISHED"
            finally:
                if not own:  # the launcher ends its own
                    self.client.set_terminated(run_id, status)

    def experiment_of_own_run(self, name: str) -> str:
        """The experiment of the run that `mlflow run` started, or else the one called ``name``."""
        if _RUN_ID is None:
            return self.experiment(name)
        with _telling(self.uri):
            return str(self.client.get_run(_RUN_ID).info.experiment_id)

    def log_network(self, run_id: str, network: nn.Module, pixels: torch.Tensor) -> str:
        """Log ``network`` as the run's model ``network``; ``pixels`` are an example (b, 3, h, w), b > 1.

        Returns:
            The URI that ``mlflow.pytorch.load_model`` takes.
        """
        example = pixels.numpy().astype(np.float32)
        requirements = [f"{package.__name__}=={package.__version__.split('+')[0]}" for package in (torch, np)]
        # Exporting weights in channels-last memory warns that they look like parts of larger tensors.
        plain = network.eval().to(memory_format=torch.contiguous_format)
        with _telling(self.uri), mlflow.start_run(run_id=run_id):
            info = mlflow.pytorch.log_model(
                plain, name="network", input_example=example, pip_requirements=requirements
            )
        return str(info.model_uri)


@contextmanager
def _first_connection(uri: str) -> Iterator[None]:
    """Keep other processes out while a new sqlite store is set up: two at once break it for good."""
    if not uri.startswith("sqlite"):
        yield
        return
    lock = project_root() / ".laq" / "mlflow.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        yield


@contextmanager
def _telling(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into one line that names the store."""
    try:
        yield
    except (MlflowException, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise LaqError(
            f"MLflow at {uri}: {reason}; nothing measured is lost: see to the store (MLFLOW_TRACKING_URI) "
            "and run the command again"
        ) from error
