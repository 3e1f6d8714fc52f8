"""Sends the runs of one result, so that each run, and each model, is in the store once.

What belongs to a result is found by the keys in its runs' tags. The sender looks at what is there, deletes
what is there twice, sends what is missing, and looks again until there is nothing to do. So it does not
matter whether a process was killed half-way, a request was carried out twice, or another machine sends the
same result at the same time: whoever comes last looks last, and leaves one of each.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient, entities
from mlflow.entities import LoggedModel, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils import get_results_from_paginated_fn
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from laq.progress import progress
from laq.track.models import save_model
from laq.track.runs import ModelSpec, ResultRuns, RunSpec

_KEY: Final = "laq.key"
_RESULT: Final = "laq.root"  # the key of the result's root
_ROOT_RUN: Final = "laq.tree"  # the id of the root run that a run is below
_RUNS_PER_SEARCH: Final = 100
_THREADS: Final = 4  # a server answers several requests at a time; a database file takes one writer


class Sender:
    """Sends a result to an experiment.

    Attributes:
        runs: the result's runs in the store by key.
        models: their models by the key of the run and the model's name.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, result: ResultRuns) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.result = result
        self.runs: dict[str, Run] = {}
        self.models: dict[tuple[str, str], LoggedModel] = {}

    def send(self) -> Iterator[str]:
        """Send what is missing; yields the key of each run that was, as soon as it is sent.

        Raises:
            MlflowException: the store cannot be reached or written, or another machine interferes; what was
                sent until then stays.
        """
        while True:
            deleted = self._look()
            missing = [spec for spec in self.result.runs if not self._is_complete(spec)]
            if missing:
                with progress(None, "track", total=len(missing), unit="run") as bar:
                    for key in self._send_runs(missing):
                        bar.update()
                        yield key
            elif not deleted:
                return

    def _look(self) -> bool:
        """Find the result's runs and models, one of each, and delete all others; returns whether it did.

        The one that was finished first stays: all who look at the same keep the same. After a deletion the
        sender must look again, for two who look at different moments may delete both.
        """
        condition, key = f"tags.`{_RESULT}` = '{self.result.root.key}'", self.result.root.key
        # Deleted runs, too: they may have got models since.
        found = _all_pages(self.client.search_runs, [self.experiment_id], condition, entities.ViewType.ALL)
        found.sort(key=lambda run: (not _is_finished(run), run.info.end_time or 0, run.info.run_id))
        active = [run for run in found if run.info.lifecycle_stage == entities.LifecycleStage.ACTIVE]
        root = next((run for run in active if run.data.tags[_KEY] == key), None)
        self.runs = {key: root} if root else {}
        for run in active:
            if root and run.data.tags.get(_ROOT_RUN) == root.info.run_id:
                self.runs.setdefault(run.data.tags[_KEY], run)
        keys = {run.info.run_id: key for key, run in self.runs.items()}
        self.models, surplus = {}, []
        for model in self._search_models([run.info.run_id for run in found]):
            run_key = keys.get(str(model.source_run_id))
            if not run_key or self.models.setdefault((run_key, str(model.name)), model) is not model:
                surplus.append(model)
        for model in surplus:
            self.client.delete_logged_model(model.model_id)
        for run in (others := [run for run in active if run.info.run_id not in keys]):
            for version in self.client.search_model_versions(f"run_id = '{run.info.run_id}'"):
                self.client.delete_model_version(version.name, version.version)
            self.client.delete_run(run.info.run_id)
        return bool(surplus or others)

    def _search_models(self, run_ids: Sequence[str]) -> list[LoggedModel]:
        """The models of runs; those that are ready first, then the oldest."""
        found = []
        for start in range(0, len(run_ids), _RUNS_PER_SEARCH):
            listed = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + _RUNS_PER_SEARCH])
            condition = f"source_run_id IN ({listed})"
            found += _all_pages(self.client.search_logged_models, [self.experiment_id], condition)
        return sorted(found, key=lambda m: (not _is_ready(m), m.creation_timestamp, m.model_id))

    def _is_complete(self, spec: RunSpec) -> bool:
        """Whether the run is finished, and its models are ready."""
        run, models = self.runs.get(spec.key), [self.models.get((spec.key, m.name)) for m in spec.models]
        return run is not None and _is_finished(run) and all(map(_is_ready, models))

    def _send_runs(self, missing: Sequence[RunSpec]) -> Iterator[str]:
        """Create parents first, and finish the root last, so that it stands for all of the result."""
        parents = {spec.parent for spec in self.result.runs}
        for spec in missing:
            if spec.key in parents and spec.key not in self.runs:
                self.runs[spec.key] = self._create_run(spec)
        with ThreadPoolExecutor(1 if self.client.tracking_uri.startswith("sqlite") else _THREADS) as pool:
            yield from pool.map(self._send_run, [spec for spec in missing if spec.parent])
        yield from map(self._send_run, [spec for spec in missing if not spec.parent])

    def _create_run(self, spec: RunSpec) -> Run:
        """An empty run below its parent."""
        tags, start_time = {**_tags(spec), _RESULT: self.result.root.key}, None
        if spec.parent:
            parent = self.runs[spec.parent].info
            tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
            tags[_ROOT_RUN] = self.runs[self.result.root.key].info.run_id
            # MLflow lists the newest runs first, page by page: a parent comes before its children.
            start_time = parent.start_time - 1
        return self.client.create_run(self.experiment_id, start_time, tags)

    def _send_run(self, spec: RunSpec) -> str:
        """Log everything of a run, then finish its models and the run; returns its key.

        What is there already is logged again as it was: metrics have the time of the run's start.
        """
        run = self.runs.get(spec.key) or self._create_run(spec)
        run_id = run.info.run_id
        models = [self._send_model(run, spec, model) for model in spec.models]
        known = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
        if outputs := [entities.LoggedModelOutput(m.model_id, 0) for m in models if m.model_id not in known]:
            self.client.log_outputs(run_id, outputs)
        if spec.inputs:
            self.client.log_inputs(run_id, list(_datasets(spec)))
        for path, folder in spec.files:
            self.client.log_artifact(run_id, str(path), folder)
        for name, content in spec.documents.items():
            self.client.log_dict(run_id, content, name)
        params = [entities.Param(name, value) for name, value in spec.params.items()]
        tags = [entities.RunTag(name, value) for name, value in _tags(spec).items()]
        self.client.log_batch(run_id, list(_metrics(spec, run, models)), params, tags)
        for model in models:
            if not _is_ready(model):
                self.client.finalize_logged_model(model.model_id, entities.LoggedModelStatus.READY)
        self.client.set_terminated(run_id)
        return spec.key

    def _send_model(self, run: Run, spec: RunSpec, model: ModelSpec) -> LoggedModel:
        """Create a model and upload its files, unless it is there."""
        logged = self.models.get((spec.key, model.name)) or self.client.create_logged_model(
            self.experiment_id, model.name, run.info.run_id, params=dict(model.params), model_type="quantized"
        )
        if not _is_ready(logged):
            with tempfile.TemporaryDirectory() as scratch:
                save_model(Path(scratch) / "model", model, logged)
                # MLflow's client would first ask the server where the model's artifacts are.
                place, uri = logged.artifact_location, self.client.tracking_uri
                get_artifact_repository(place, tracking_uri=uri).log_artifacts(f"{scratch}/model")  # type: ignore[no-untyped-call]
        return logged


def adopt_own_run(client: MlflowClient, result: ResultRuns) -> str:
    """Make the run that `mlflow run` started the root of the result that it made.

    Returns:
        The id of its experiment; empty if there is no such run in the store.
    """
    if not result.own_run:
        return ""
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(everywhere, f"attributes.run_id = '{result.own_run}'"):
        tags = {_KEY: result.root.key, _RESULT: result.root.key}
        client.log_batch(result.own_run, tags=[entities.RunTag(name, value) for name, value in tags.items()])
        return str(run.info.experiment_id)
    return ""


def _all_pages(search: Callable[..., Any], *condition: Any) -> list[Any]:
    """Everything that a search of MLflow's client finds."""
    found: list[Any] = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
        lambda most, token: search(*condition, max_results=most, page_token=token), 1000
    )
    return found


def _is_finished(run: Run) -> bool:
    return bool(run.info.status == "FINISHED")


def _is_ready(model: LoggedModel | None) -> bool:
    return model is not None and model.status == entities.LoggedModelStatus.READY


def _tags(spec: RunSpec) -> dict[str, str]:
    description = {MLFLOW_RUN_NOTE: spec.description} if spec.description else {}
    return {**spec.tags, MLFLOW_RUN_NAME: spec.name, _KEY: spec.key, **description}


def _metrics(spec: RunSpec, run: Run, models: Sequence[LoggedModel]) -> Iterator[entities.Metric]:
    """The metrics of the run, of its layers by step, and of its models."""
    now = run.info.start_time
    for name, value in spec.metrics.items():
        yield entities.Metric(name, float(value), now, 0)
    for name, values in spec.series.items():
        yield from (entities.Metric(name, float(value), now, step) for step, value in enumerate(values))
    # Two models of the same size would be the same metric twice, which takes MLflow long to find out.
    for later, (model, logged) in enumerate(zip(spec.models, models, strict=True), now):
        for name, value in model.metrics.items():
            place = {"model_id": logged.model_id, "run_id": run.info.run_id}
            yield entities.Metric(f"model/{name}", float(value), later, 0, **place)


def _datasets(spec: RunSpec) -> Iterator[entities.DatasetInput]:
    for data in spec.inputs:
        source = json.dumps({"uri": data.source, "dvc_md5": data.digest})
        dataset = entities.Dataset(data.name, data.digest, "dvc", source)
        yield entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", data.context)])
