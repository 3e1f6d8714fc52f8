"""Sends the runs of one result, so that each run, and each model, is in the store once.

What belongs to a result is found by its key in the tags of runs and models. The sender looks at what is
there, deletes what is there twice, sends what is missing, and looks again until there is nothing to do. So
it does not matter whether a process was killed half-way, a request was carried out twice, or another machine
sends the same result at the same time: whoever comes last looks last, and leaves one of each.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient, entities
from mlflow.entities import LoggedModel, Run
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils import get_results_from_paginated_fn
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from laq.progress import progress
from laq.track.models import save_model, upload
from laq.track.runs import ModelSpec, ResultRuns, RunSpec

KEY: Final = "laq.key"
RESULT: Final = "laq.root"  # the key of the result's root
CONTENT: Final = "laq.content"  # the hash of what a study's result holds
_READY: Final = entities.LoggedModelStatus.READY
_THREADS: Final = 4  # a server answers several requests at a time; a database file takes one writer


@dataclass
class Sender:
    """Sends a result to an experiment.

    Attributes:
        runs: the result's runs in the store by key.
        models: their models by the key of the run and the model's name.
    """

    client: MlflowClient
    experiment_id: str
    result: ResultRuns
    runs: dict[str, Run] = field(default_factory=dict)
    models: dict[tuple[str, str], LoggedModel] = field(default_factory=dict)

    def send(self) -> Iterator[str]:
        """Send what is missing; yields the key of each run that was, as soon as it is sent.

        Raises:
            MlflowException: the store cannot be reached or written, or another machine interferes; what was
                sent until then stays.
        """
        while missing := self.look():
            parents = {spec.parent for spec in missing}
            for spec in missing:
                if spec.key in parents and spec.key not in self.runs:
                    self.runs[spec.key] = self._create_run(spec)
            # The root is finished last, so that it stands for all of the result.
            below, root = [s for s in missing if s.parent], [s for s in missing if not s.parent]
            with ThreadPoolExecutor(1 if self.client.tracking_uri.startswith("sqlite") else _THREADS) as pool:
                sent = chain(pool.map(self.send_run, below), map(self.send_run, root))
                yield from progress(sent, "track", total=len(missing), unit="run")

    def look(self) -> list[RunSpec]:
        """Find the result's runs and models, one of each, and delete all others; returns what is missing.

        The one that was finished first stays: all who look at the same keep the same. After a deletion it
        looks again, for two who look at different moments may delete both.
        """
        root_key = self.result.root.key
        of_result = [self.experiment_id], f"tags.`{RESULT}` = '{root_key}'"
        runs: list[Run] = _all_pages(self.client.search_runs, *of_result)
        runs.sort(key=lambda run: (run.info.status != "FINISHED", run.info.end_time or 0, run.info.run_id))
        first = {(run.data.tags[KEY], run.data.tags.get(MLFLOW_PARENT_RUN_ID)): run for run in reversed(runs)}
        # The root may be below a run of the user's, all others are below the kept one of their parent.
        self.runs = {key: run for run in reversed(runs) if (key := run.data.tags[KEY]) == root_key}
        for spec in self.result.runs[1:]:
            parent = self.runs.get(spec.parent)
            if parent and (run := first.get((spec.key, parent.info.run_id))):
                self.runs[spec.key] = run
        keys = {run.info.run_id: key for key, run in self.runs.items()}
        models: list[LoggedModel] = _all_pages(self.client.search_logged_models, *of_result)
        models.sort(key=lambda model: (model.status != _READY, model.creation_timestamp, model.model_id))
        places = {(keys.get(model.source_run_id), model.name): model for model in reversed(models)}
        self.models = {(key, name): model for (key, name), model in places.items() if key}
        if self._delete_others(runs, models):
            return self.look()
        finished = {key for key, run in self.runs.items() if run.info.status == "FINISHED"}
        ready = {place for place, model in self.models.items() if _is_there(model)}
        return [
            spec
            for spec in self.result.runs
            if spec.key not in finished or not ready.issuperset((spec.key, m.name) for m in spec.models)
        ]

    def _delete_others(self, runs: Sequence[Run], models: Sequence[LoggedModel]) -> bool:
        """Delete runs and models that are not kept, and versions of them; returns whether there were any."""
        kept = {run.info.run_id for run in self.runs.values()}
        kept |= {model.model_id for model in self.models.values()}
        surplus = [model for model in models if model.model_id not in kept]
        for model in surplus:
            self.client.delete_logged_model(model.model_id)
        others = [run for run in runs if run.info.run_id not in kept]
        for run in others:
            for version in self.client.search_model_versions(f"run_id = '{run.info.run_id}'"):
                self.client.delete_model_version(version.name, version.version)
            self.client.delete_run(run.info.run_id)
        return bool(surplus or others)

    def begin(self, spec: RunSpec) -> None:
        """Create a run, if it is not there, and say what it is, before there is anything to show."""
        run = self.runs.get(spec.key) or self._create_run(spec)
        self.runs[spec.key] = run
        params = [entities.Param(name, value) for name, value in spec.params.items()]
        tags = [entities.RunTag(name, value) for name, value in spec.tags.items()]
        self.client.log_batch(run.info.run_id, params=params, tags=tags)

    def _create_run(self, spec: RunSpec) -> Run:
        """An empty run below its parent."""
        tags, start_time = {KEY: spec.key, RESULT: self.result.root.key}, None
        if spec.parent:
            parent = self.runs[spec.parent].info
            tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
            # MLflow lists the newest runs first, page by page: a parent comes before its children.
            start_time = parent.start_time - 1
        return self.client.create_run(self.experiment_id, start_time, tags, spec.name)

    def send_run(self, spec: RunSpec) -> str:
        """Log everything of a run, then finish it; returns its key.

        What is there already is logged again as it was: metrics have the time of the run's start.
        """
        if spec.parent and spec.parent not in self.runs:
            above = next(one for one in self.result.runs if one.key == spec.parent)
            self.runs[spec.parent] = self._create_run(above)
        run = self.runs.get(spec.key) or self._create_run(spec)
        run_id = run.info.run_id
        models = [self._send_model(run, spec, model) for model in spec.models]
        known = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
        if outputs := [entities.LoggedModelOutput(m.model_id, 0) for m in models if m.model_id not in known]:
            self.client.log_outputs(run_id, outputs)
        datasets = []
        for data in spec.inputs:
            source = json.dumps({"uri": data.source, "dvc_md5": data.digest})
            dataset = entities.Dataset(data.name, data.digest, "dvc", source)
            use = entities.InputTag("mlflow.data.context", data.context)
            datasets.append(entities.DatasetInput(dataset, [use]))
        if datasets:
            self.client.log_inputs(run_id, datasets)
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
        self.client.set_terminated(run_id)
        return spec.key

    def _send_model(self, run: Run, spec: RunSpec, model: ModelSpec) -> LoggedModel:
        """Create a model and upload its files, unless it is there."""
        tags = {RESULT: self.result.root.key}
        logged = self.models.get((spec.key, model.name)) or self.client.create_logged_model(
            self.experiment_id, model.name, run.info.run_id, tags, dict(model.params), "quantized"
        )
        if _is_there(logged):
            return logged
        with tempfile.TemporaryDirectory() as scratch:
            save_model(Path(scratch) / "model", model, logged)
            return upload(self.client, logged, Path(scratch) / "model")


def _is_there(model: LoggedModel) -> bool:
    """Whether a model has been uploaded and, if its files lie on this machine, they still do.

    Asking a server for them would take as many requests as there are models.
    """
    place = urlsplit(model.artifact_location)
    return model.status == _READY and (
        place.scheme != "file" or (Path(url2pathname(place.path)) / MLMODEL_FILE_NAME).exists()
    )


def _all_pages(search: Callable[..., Any], *condition: Any) -> list[Any]:
    """Everything that a search of MLflow's client finds."""
    found: list[Any] = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
        lambda most, token: search(*condition, max_results=most, page_token=token), 1000
    )
    return found


def _metrics(spec: RunSpec, run: Run, models: Sequence[LoggedModel]) -> Iterator[entities.Metric]:
    """The metrics of the run, those with a value per step, and those of its models.

    A model's have the names of the run's, and an earlier time, so that the run shows its own.
    """
    now, run_id = run.info.start_time, run.info.run_id
    if not spec.parent:  # later than what was said of it while it was measured
        now = int(time.time() * 1000)
    for earlier, (model, logged) in enumerate(zip(spec.models, models, strict=True), 1):
        place = {"model_id": logged.model_id, "run_id": run_id}
        for name, value in model.metrics.items():
            yield entities.Metric(name, float(value), now - earlier, 0, **place)
    for name, values in [*((name, {0: value}) for name, value in spec.metrics.items()), *spec.series.items()]:
        yield from (entities.Metric(name, float(value), now, step) for step, value in values.items())
