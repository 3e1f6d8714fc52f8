"""Delivers the runs of results to MLflow, so that each run, and each model, is in the store once.

What belongs to a result is found by its key in the tags of runs and models. A delivery looks at what is
there, deletes what is there twice, sends what is missing, and looks again until there is nothing to do. So
it does not matter whether a process was killed half-way, a request was carried out twice, or another machine
sends the same result at the same time: whoever comes last looks last, and leaves one of each.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock
from mlflow import entities
from mlflow.entities import LoggedModel, Run
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils import get_results_from_paginated_fn
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random

from laq.addresses import outbox
from laq.errors import LaqError
from laq.progress import progress
from laq.track.champions import register_champions
from laq.track.models import save_model, upload
from laq.track.run_specs import Input, ModelSpec, ResultRuns, RunSpec
from laq.track.store import Store
from laq.track.views import save_views

KEY: Final = "laq.key"
RESULT: Final = "laq.root"  # the key of the result's root
_THREADS: Final = 4  # a server answers several requests at a time; a database file takes one writer
_READY: Final = entities.LoggedModelStatus.READY
# What errors say of something that another machine has just deleted or created.
_INTERFERENCE: Final = re.compile("NOT_EXIST|ALREADY_EXISTS|INVALID_|IntegrityError|UniqueViolation")


def deliver(store: Store, result: ResultRuns) -> "Delivery":
    """Send the runs and models of a result that the store lacks, and register the best models.

    Raises:
        LaqError: the store cannot be reached or written; what was sent until then stays.
    """
    delivery = Delivery(store, result)
    with store.one_line_errors(), store.lock:  # alone where the store is a sqlite file
        delivery.send_missing()
    return delivery


def deliver_waiting(store: Store) -> list["Delivery"]:
    """Deliver the results that wait, and delete each once it is sent.

    Raises:
        LaqError: the store cannot be reached or written, or a network that is to be sent is gone.
    """
    folder, sent = outbox(), list[Delivery]()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # what another process is sending is gone when it is done
        for path in sorted(folder.glob("*.json")):
            result = ResultRuns.load(path)
            for weights in [model.weights for spec in result.runs for model in spec.models]:
                if not weights.exists():
                    raise LaqError(f"{path}: waits to be sent, but {weights} is gone; remove the former")
            sent.append(deliver(store, result))
            path.unlink()
    return sent


class Delivery:
    """A result on its way to a store.

    Attributes:
        sent: the keys of the runs that the store lacked.
        runs: the result's runs in the store by key.
        finished: the keys of those that hold all that they are to hold.
        models: their models by the key of the run and the model's name.
    """

    def __init__(self, store: Store, result: ResultRuns) -> None:
        self.store, self.client, self.result = store, store.client, result
        self.specs, self.sent = {spec.key: spec for spec in result.runs}, set[str]()

    @property
    def ids(self) -> dict[str, str]:
        """The ids of all runs by key, the root's first."""
        return {key: self.runs[key].info.run_id for key in self.specs}

    @property
    def page(self) -> str:
        """The page of the root below a server's address."""
        return f"/#/experiments/{self.experiment_id}/runs/{self.ids[self.result.root.key]}"

    @retry(
        retry=retry_if_exception(
            lambda error: bool(_INTERFERENCE.search(f"{getattr(error, 'error_code', '')} {error}"))
        ),
        stop=stop_after_attempt(8),
        wait=wait_random(0, 0.5),
        reraise=True,
    )
    def send_missing(self) -> None:
        """Send what is missing until nothing is, the root last: it stands for the whole.

        While the result is measured, runs that others are below are not finished.
        """
        self.experiment_id = self._find_experiment()
        save_views(self.client, self.client.get_experiment(self.experiment_id))
        self._look()
        root, parents = self.result.root, {spec.parent for spec in self.result.runs}
        if not self.result.whole and root.key not in self.finished:
            self._send(root, finish=False)
        ends = [s for s in self.result.runs if self.result.whole or s.key not in {root.key, *parents}]
        while missing := [spec for spec in ends if not self._has(spec)]:
            for spec in missing:
                if spec.parent:
                    self._run(self.specs[spec.parent])
            below, above = [s for s in missing if s.parent], [s for s in missing if not s.parent]
            with ThreadPoolExecutor(1 if self.store.uri.startswith("sqlite") else _THREADS) as pool:
                sent = chain(pool.map(self._send, below), map(self._send, above))
                self.sent.update(
                    progress(sent, "track", total=len(missing), unit="run", disable=not self.result.whole)
                )
            self._look()
        if self.result.whole:
            register_champions(self.client, self.result, self.models)

    def _find_experiment(self) -> str:
        """That of the run which `mlflow run` started, which becomes the root; else the result's own."""
        if own := self.result.own_run:
            everywhere = [experiment.experiment_id for experiment in self.client.search_experiments()]
            for run in self.client.search_runs(everywhere, f"attributes.run_id = '{own}'"):
                for name in (KEY, RESULT):
                    self.client.set_tag(own, name, self.result.root.key)
                return str(run.info.experiment_id)
        found = self.store.experiment(self.result.experiment)
        return str(found.experiment_id) if found else self.store.create_experiment(self.result.experiment)

    def _look(self) -> None:
        """Find the result's runs and models, one of each, and delete all others.

        The one that was finished first stays: all who look at the same keep the same, and what was below
        another goes below it. After a deletion it looks again, for two who look at different moments may
        delete both.
        """
        runs: list[Run] = self._all(self.client.search_runs)
        runs.sort(key=lambda run: (run.info.status != "FINISHED", run.info.end_time or 0, run.info.run_id))
        models: list[LoggedModel] = self._all(self.client.search_logged_models)
        models.sort(key=lambda model: (model.status != _READY, model.creation_timestamp, model.model_id))
        self.runs = {run.data.tags[KEY]: run for run in reversed(runs)}
        self.finished = {key for key, run in self.runs.items() if run.info.status == "FINISHED"}
        for spec in self.result.runs:
            if spec.key in self.runs and spec.parent in self.runs:
                run, parent = self.runs[spec.key], self.runs[spec.parent].info.run_id
                if run.data.tags.get(MLFLOW_PARENT_RUN_ID) != parent:
                    self.client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, parent)
        keys = {run.info.run_id: key for key, run in self.runs.items()}
        of_kept = [model for model in reversed(models) if model.source_run_id in keys]
        self.models = {(keys[str(model.source_run_id)], model.name): model for model in of_kept}
        kept = {*keys, *(model.model_id for model in self.models.values())}
        surplus = [model for model in models if model.model_id not in kept]
        for model in surplus:
            self.client.delete_logged_model(model.model_id)
        others = [run.info.run_id for run in runs if run.info.run_id not in kept]
        for run_id in others:
            for version in self.client.search_model_versions(f"run_id = '{run_id}'"):
                self.client.delete_model_version(version.name, version.version)
            self.client.delete_run(run_id)
        if surplus or others:
            self._look()

    def _all(self, search: Callable[..., Any]) -> list[Any]:
        """Everything of the result that a search of MLflow's client finds, which gives it by pages."""
        of_result = [self.experiment_id], f"tags.`{RESULT}` = '{self.result.root.key}'"
        found: list[Any] = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
            lambda most, token: search(*of_result, max_results=most, page_token=token), 1000
        )
        return found

    def _has(self, spec: RunSpec) -> bool:
        models = [self.models.get((spec.key, model.name)) for model in spec.models]
        return spec.key in self.finished and all(map(_is_there, models))

    def _run(self, spec: RunSpec) -> Run:
        """The run of a spec: the one that is there, or an empty one below its parent's."""
        if spec.key not in self.runs:
            tags, start_time = {KEY: spec.key, RESULT: self.result.root.key}, None
            if spec.parent:
                parent = self._run(self.specs[spec.parent]).info
                tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
                # MLflow lists the newest runs first, page by page: a parent comes before its children.
                start_time = parent.start_time - 1
            self.runs[spec.key] = self.client.create_run(self.experiment_id, start_time, tags, spec.name)
        run: Run = self.runs[spec.key]
        return run

    def _send(self, spec: RunSpec, *, finish: bool = True) -> str:
        """Log all that a run is to hold, and finish it unless more is to come; returns its key.

        What is there already is logged again as it was: metrics have the time of the run's start.
        """
        run = self._run(spec)
        run_id = run.info.run_id
        models = [self._send_model(spec, model, run_id) for model in spec.models]
        known = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
        if outputs := [entities.LoggedModelOutput(m.model_id, 0) for m in models if m.model_id not in known]:
            self.client.log_outputs(run_id, outputs)
        if spec.inputs:
            self.client.log_inputs(run_id, [_dataset(data) for data in spec.inputs])
        for path, folder in spec.files:
            self.client.log_artifact(run_id, str(path), folder)
        for name, content in spec.documents.items():
            self.client.log_dict(run_id, content, name)
        # What `mlflow run` was given it has logged itself, in a shell's quotes, and it cannot be changed.
        given = run.data.params
        params = [entities.Param(name, value) for name, value in spec.params.items() if name not in given]
        tags = {**spec.tags, MLFLOW_RUN_NAME: spec.name, MLFLOW_RUN_NOTE: spec.description}.items()
        metrics = list(_metrics(spec, run, models))
        self.client.log_batch(run_id, metrics, params, [entities.RunTag(*tag) for tag in tags])
        if finish:
            self.client.set_terminated(run_id)
        return spec.key

    def _send_model(self, spec: RunSpec, model: ModelSpec, run_id: str) -> LoggedModel:
        """Create a model of a run and upload its files, unless it is there."""
        tags = {RESULT: self.result.root.key}
        logged = self.models.get((spec.key, model.name)) or self.client.create_logged_model(
            self.experiment_id, model.name, run_id, tags, dict(model.params), "quantized"
        )
        if _is_there(logged):
            return logged
        with tempfile.TemporaryDirectory() as scratch:
            save_model(Path(scratch) / "model", model, logged)
            return upload(self.client, logged, Path(scratch) / "model")


def _is_there(model: LoggedModel | None) -> bool:
    """Whether a model has been uploaded and, if its files lie on this machine, they still do.

    Asking a server for them would take as many requests as there are models.
    """
    if model is None or model.status != _READY:
        return False
    place = urlsplit(model.artifact_location)
    return place.scheme != "file" or Path(url2pathname(place.path), MLMODEL_FILE_NAME).exists()


def _dataset(data: Input) -> entities.DatasetInput:
    source = json.dumps({"uri": data.source, "dvc_md5": data.digest})
    use = entities.InputTag("mlflow.data.context", data.context)
    return entities.DatasetInput(entities.Dataset(data.name, data.digest, "dvc", source), [use])


def _metrics(spec: RunSpec, run: Run, models: Sequence[LoggedModel]) -> Iterator[entities.Metric]:
    """The metrics of the run, those with a value per step, and those of its models.

    A model's have the names of the run's, and an earlier time, so that the run shows its own.
    """
    now, run_id = run.info.start_time, run.info.run_id
    for earlier, (model, logged) in enumerate(zip(spec.models, models, strict=True), 1):
        place = {"model_id": logged.model_id, "run_id": run_id}
        for name, value in model.metrics.items():
            yield entities.Metric(name, float(value), now - earlier, 0, **place)
    for name, values in [*((name, {0: value}) for name, value in spec.metrics.items()), *spec.series.items()]:
        yield from (entities.Metric(name, float(value), now, step) for step, value in values.items())
