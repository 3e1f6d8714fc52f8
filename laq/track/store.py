"""The MLflow store: where runs and models go, once each, whoever else is writing.

Sending the same tree of results twice makes one tree of runs. A run that a killed process, or a server
that went away, left unfinished is finished the next time.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import mlflow
import pandas as pd
import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from laq.errors import LaqError
from laq.files import project_root
from laq.progress import progress
from laq.track import served
from laq.track.record import Input, Packed, Record, Tree
from laq.track.registry import crown

# `mlflow run` names its run here; starting and ending a run deletes the variable.
OWN_RUN: Final = os.environ.get("MLFLOW_RUN_ID", "")
_KEY: Final = "laq.key"
_ROOT: Final = "laq.root"
_SQLITE: Final = "sqlite:///"
_DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
_METRICS_AT_ONCE: Final = 1000  # MLflow's limit
_PARAMS_AT_ONCE: Final = 100  # likewise
_SIGNATURE: Final = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), served.COLUMN)]),  # type: ignore[no-untyped-call]
    outputs=Schema(
        [
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)
# What loading and serving a model takes; versions are those that wrote it.
_PACKAGES: Final = (
    "laq",
    "mlflow",
    "numba",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "safetensors",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class Delivery:
    """What came of a tree: how many of its runs were sent now, of how many, and their ids by key."""

    sent: int
    runs: dict[str, str]


class Store:
    """The tracking server that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root."""

    def __init__(self) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # a line for every model otherwise
        # Without limits, a server that is gone is asked for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        own = f"{_SQLITE}{project_root() / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        with telling(str(self)), self._alone():
            _reach(self.uri)
            self.client = MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
            self.client.search_experiments(max_results=1)

    def __str__(self) -> str:
        return re.sub(r"(://[^:/@]+):[^@/]+@", r"\1:***@", self.uri)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep this machine's other processes out.

        Two that set up a new sqlite store at once break it for good; two that send the same result
        would both find that it is not there yet.
        """
        if self.uri.startswith(_SQLITE):
            lock = Path(f"{self.uri.removeprefix(_SQLITE)}.lock")
            lock.parent.mkdir(parents=True, exist_ok=True)
        else:
            lock = Path(tempfile.gettempdir()) / f"laq-{sha256(self.uri.encode()).hexdigest()[:16]}.lock"
        with FileLock(lock):
            yield

    def deliver(self, tree: Tree) -> Delivery:
        """Send what the store lacks of a tree.

        Raises:
            LaqError: the store cannot be reached or written; what was sent until then stays.
        """
        with telling(str(self)), self._alone():
            own = self._own_run(tree)
            sender = _Sender(self.client, own.info.experiment_id if own else self._experiment(tree))
            runs = sender.known(tree) | ({tree.root.key: own} if own else {})
            sent = 0
            for record in progress(tree.records, "track", unit="run"):
                run = runs.get(record.key)
                if run is None or run is own or run.info.status != "FINISHED":
                    run = run or sender.create(record, tree, runs)
                    runs[record.key] = sender.fill(run, record)
                    sent += 1
            if tree.registry:
                crown(self.client, tree, sender.models(runs))
            return Delivery(sent, {key: run.info.run_id for key, run in runs.items()})

    def _own_run(self, tree: Tree) -> Run | None:
        """The run that `mlflow run` started for the tree, if this store has it."""
        try:
            return self.client.get_run(tree.own_run) if tree.own_run else None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _experiment(self, tree: Tree) -> str:
        """The id of the tree's experiment, made if need be."""
        found = self.client.get_experiment_by_name(tree.experiment)
        if found is not None:
            return str(found.experiment_id)
        # Artifacts lie beside the database, wherever this process was started.
        beside = Path(self.uri.removeprefix(_SQLITE)).resolve().parent / "mlruns" / tree.experiment
        place = beside.as_uri() if self.uri.startswith(_SQLITE) else None
        return str(self.client.create_experiment(tree.experiment, place))


class _Sender:
    """Sends runs to one experiment."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self.client = client
        self.experiment = experiment

    def known(self, tree: Tree) -> dict[str, Run]:
        """The tree's runs that are there, by key."""
        asked, token, found = f"tags.`{_ROOT}` = '{tree.root.key}'", None, dict[str, Run]()
        while token is None or token:
            page = self.client.search_runs([self.experiment], asked, page_token=token)
            found |= {run.data.tags[_KEY]: run for run in page if run.info.status != "FAILED"}
            token = page.token or ""
        return found

    def models(self, runs: Mapping[str, Run]) -> dict[tuple[str, str], str]:
        """The ids of the runs' models, by the run's key and the model's name."""
        keys = {run.info.run_id: key for key, run in runs.items()}
        token, found = None, dict[tuple[str, str], str]()
        while token is None or token:
            page = self.client.search_logged_models([self.experiment], page_token=token)
            found |= {(keys[m.source_run_id], m.name): m.model_id for m in page if m.source_run_id in keys}
            token = page.token or ""
        return found

    def create(self, record: Record, tree: Tree, runs: dict[str, Run]) -> Run:
        """An empty run under its parent."""
        tags = {_KEY: record.key, _ROOT: tree.root.key, MLFLOW_RUN_NAME: record.name}
        if record.parent:
            tags[MLFLOW_PARENT_RUN_ID] = runs[record.parent].info.run_id
        return self.client.create_run(self.experiment, tags=tags)

    def fill(self, run: Run, record: Record) -> Run:
        """Log everything of a record and finish its run, unless `mlflow run` will.

        What is there already is written again as it was: metrics carry the time of the run's start.
        """
        run_id = run.info.run_id
        models = {packed.name: self._model(run, packed) for packed in record.networks}
        if record.inputs:
            self.client.log_inputs(run_id, [_input(data) for data in record.inputs])
        self._log_numbers(run, record, models)
        for path, folder in record.files:
            self.client.log_artifact(run_id, str(path), folder or None)
        for name, content in record.documents.items():
            self.client.log_text(run_id, json.dumps(content, indent=2), name)
        if run_id != OWN_RUN:
            self.client.set_terminated(run_id, "FINISHED")
        return run

    def _log_numbers(self, run: Run, record: Record, models: dict[str, str]) -> None:
        """Metrics, parameters and tags, in as few calls as MLflow allows."""
        tags = {**record.tags, MLFLOW_RUN_NAME: record.name, _KEY: record.key}
        if record.note:
            tags[MLFLOW_RUN_NOTE] = record.note
        batches = zip_longest(
            _slices(list(_metrics(run, record, models)), _METRICS_AT_ONCE),
            _slices(
                [Param(k, v) for k, v in record.params.items() if k not in run.data.params], _PARAMS_AT_ONCE
            ),
            [[RunTag(name, value) for name, value in tags.items()]],
            fillvalue=(),
        )
        for metrics, params, some_tags in batches:
            self.client.log_batch(run.info.run_id, metrics, params, some_tags)

    def _model(self, run: Run, packed: Packed) -> str:
        """The id of the run's model of that name, logged unless it is there whole."""
        for output in run.outputs.model_outputs if run.outputs else ():
            found = self.client.get_logged_model(output.model_id)
            if found.name == packed.name:
                if found.status == LoggedModelStatus.READY:
                    return found.model_id
                self.client.delete_logged_model(found.model_id)
        model = self.client.create_logged_model(
            self.experiment, packed.name, run.info.run_id, params=dict(packed.params), model_type="quantized"
        )
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            _save_model(folder, packed, model)
            self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)


def _metrics(run: Run, record: Record, models: dict[str, str]) -> Iterator[Metric]:
    """A record's metrics: of the run, of its layers by step, and of its models."""
    now = run.info.start_time
    for name, value in record.metrics.items():
        yield Metric(name, float(value), now, 0)
    for name, values in record.series.items():
        yield from (Metric(name, float(value), now, step) for step, value in enumerate(values))
    for packed in record.networks:
        place = {"model_id": models[packed.name], "run_id": run.info.run_id}
        yield from (Metric(name, float(value), now, 0, **place) for name, value in packed.metrics.items())


def _slices(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _input(data: Input) -> DatasetInput:
    source = json.dumps({"uri": data.source, "dvc_md5": data.digest})
    dataset = Dataset(data.name, data.digest, "dvc", source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])


def _save_model(folder: Path, packed: Packed, model: LoggedModel) -> None:
    """Write the folder that `mlflow models serve` and ``mlflow.pyfunc.load_model`` take."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        served.write_model(data, packed)
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=served.__name__,
            data_path=str(data),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=model.source_run_id,
                model_id=model.model_id,
            ),
            signature=_SIGNATURE,
            input_example=pd.DataFrame({served.COLUMN: list(packed.examples)}),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES],
        )


def _reach(uri: str) -> None:
    """Connect to a database once: MLflow itself tries ten times, for minutes and with many words."""
    if uri.startswith(_DATABASES):
        engine = sqlalchemy.create_engine(uri)
        sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()


@contextmanager
def telling(store: str) -> Iterator[None]:
    """Turn what MLflow and the stores below it raise into one line that names the store."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise LaqError(
            f"MLflow at {store}: {reason}; nothing measured is lost: see to the store "
            "(MLFLOW_TRACKING_URI), then `laq track` sends what it lacks"
        ) from error
