"""One tree of runs and its experiment: what is missing is sent, what is there twice is deleted."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

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
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from laq.progress import progress
from laq.track.connection import OWN_RUN, SQLITE
from laq.track.models import save_model
from laq.track.registry import delete_versions, if_it_exists
from laq.track.runs import Input, ModelSpec, ResultRuns, RunSpec

_KEY: Final = "laq.key"
_ROOT: Final = "laq.root"  # the key of the result that a run is part of
# The id of the run that its tree begins with: a result may be there twice for a while.
_TREE: Final = "laq.tree"
_WRITER: Final = "laq.writer"
_RUNS_AT_ONCE: Final = 100  # named in one search
_THREADS: Final = 4  # a server answers several requests at a time
_ATTEMPTS: Final = 5
_TWICE: Final = ("IntegrityError", "UniqueViolation")  # what databases say of a second one
# How MLflow tells that a run or a model has been deleted.
_GONE: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")


class Sender:
    """Sends one tree to one experiment."""

    def __init__(self, client: MlflowClient, experiment: str, tree: ResultRuns, writer: str) -> None:
        self.client = client
        self.experiment = experiment
        self.tree = tree
        self.writer = writer
        self.parents = {record.parent for record in tree.runs}
        self.threads = 1 if client.tracking_uri.startswith(SQLITE) else _THREADS
        self.new: set[str] = set()  # runs made here, which need not be looked through for what they have

    def send(self, own: Run | None) -> tuple[int, dict[str, Run]]:
        """Send what is missing below ``own``, if given; returns how many runs that were, and all by key."""
        roots = [own] if own else self._roots()
        root = next((r for r in roots if r is own or self._goes_on(r)), None)
        root = root or self._create(self.tree.root, {})
        try:
            sent = self._complete(root)
        except MlflowException as error:
            if error.error_code not in _GONE or self._only(root).info.run_id == root.info.run_id:
                raise
            # Another machine sent the same result, was faster, and has deleted what was half done here.
            self._drop(root)
            sent = 0
        first = self._only(root)
        return sent if first.info.run_id == root.info.run_id else 0, self._below(first)

    def _goes_on(self, root: Run) -> bool:
        """Whether to go on with a tree: a whole one, or one that nobody is at work on."""
        return _finished(root) or root.data.tags.get(_WRITER) == self.writer

    def _complete(self, root: Run) -> int:
        """Send what is missing of a tree; returns how many runs that were."""
        runs = self._below(root)
        missing = [r for r in self.tree.runs if r.key not in runs or not _finished(runs[r.key])]
        if not missing:
            return 0
        with progress(None, "track", total=len(missing), unit="run") as bar:
            # Parents are made first, the root is finished last, so that it stands for all of it.
            for record in missing:
                if record.key in self.parents and record.key not in runs:
                    runs[record.key] = self._create(record, runs)
            for some in ([r for r in missing if r.parent], [r for r in missing if not r.parent]):
                for _ in self._at_once(lambda record: self._send_run(record, runs), some):
                    bar.update()
        self._drop_stray_models(self._below(self.client.get_run(root.info.run_id)))
        return len(missing)

    def _at_once(self, send: Callable[[RunSpec], None], records: Sequence[RunSpec]) -> Iterator[None]:
        """Send several runs at a time, but for a database file, which takes one."""
        pool = ThreadPoolExecutor(self.threads)
        try:
            yield from pool.map(send, records)
        finally:
            pool.shutdown(cancel_futures=True)

    def _send_run(self, record: RunSpec, runs: dict[str, Run]) -> None:
        self._fill(runs.get(record.key) or self._create(record, runs), record)

    def _only(self, root: Run) -> Run:
        """The tree of this result that was finished first; all others are deleted.

        Whoever comes last sees all, and everybody deletes the same ones: in the end one is left.
        """
        roots = self._roots()
        if not roots or not _finished(roots[0]):
            return root  # `mlflow run` finishes its own
        for other in roots[1:]:
            self._drop(other)
        return roots[0]

    def _roots(self) -> list[Run]:
        """The trees of this result, whole ones first."""
        return sorted(self._search(f"tags.`{_KEY}` = '{self.tree.root.key}'"), key=_age)

    def _below(self, root: Run) -> dict[str, Run]:
        """A tree's runs by key; if a request was carried out twice, the second run is deleted."""
        found = {self.tree.root.key: root}
        for run in sorted(self._search(f"tags.`{_TREE}` = '{root.info.run_id}'"), key=_age):
            if found.setdefault(run.data.tags[_KEY], run) is not run:
                self._delete(run)
        return found

    def _search(self, condition: str, lifecycle: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
        token = None
        while token is None or token:
            page = self.client.search_runs([self.experiment], condition, lifecycle, page_token=token)
            yield from page
            token = page.token or ""

    def _models(self, runs: Iterable[Run]) -> Iterator[LoggedModel]:
        """The models of runs."""
        for some in _slices([run.info.run_id for run in runs], _RUNS_AT_ONCE):
            listed, token = ", ".join(f"'{run_id}'" for run_id in some), None
            while token is None or token:
                page = self.client.search_logged_models(
                    [self.experiment], f"source_run_id IN ({listed})", page_token=token
                )
                yield from page
                token = page.token or ""

    def _drop(self, root: Run) -> None:
        """Delete a tree with its models and what was registered of them; the root last.

        Runs that are deleted already may have got models since.
        """
        below = self._search(f"tags.`{_TREE}` = '{root.info.run_id}'", ViewType.ALL)
        for run in [*below, root]:
            self._delete(run)

    def _delete(self, run: Run) -> None:
        for model in list(self._models([run])):
            with if_it_exists():
                self.client.delete_logged_model(model.model_id)
        delete_versions(self.client, run)
        self.client.delete_run(run.info.run_id)

    def _drop_stray_models(self, runs: Mapping[str, Run]) -> None:
        """Delete models that a request made which was carried out twice."""
        for model in list(self._models(runs.values())):
            run = next(run for run in runs.values() if run.info.run_id == model.source_run_id)
            if model.model_id not in _outputs(run):
                self.client.delete_logged_model(model.model_id)

    def _create(self, record: RunSpec, runs: Mapping[str, Run]) -> Run:
        """An empty run under its parent."""
        tags, began = {**_tags(record), _ROOT: self.tree.root.key}, None
        if record.parent:
            parent = runs[record.parent].info
            tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
            tags[_TREE] = runs[self.tree.root.key].info.run_id
            # MLflow lists the newest runs first, page by page: a parent comes before its children.
            began = parent.start_time - 1
        else:
            tags[_WRITER] = self.writer
        run = self.client.create_run(self.experiment, began, tags)
        self.new.add(run.info.run_id)
        return run

    def _fill(self, run: Run, record: RunSpec) -> None:
        """Log everything of a record and finish its run, unless `mlflow run` will.

        What is there already is written again as it was: metrics carry the time of the run's start.
        """
        run_id = run.info.run_id
        models = self._log_models(run, record)
        self._log_inputs(run_id, [_input(data) for data in record.inputs])
        params = [Param(name, value) for name, value in record.params.items() if name not in run.data.params]
        tags = [RunTag(k, v) for k, v in _tags(record).items() if run.data.tags.get(k) != v]
        self.client.log_batch(run_id, list(_metrics(run, record, models)), params, tags)
        self._log_files(run, record)
        if run_id != OWN_RUN:
            self.client.set_terminated(run_id, "FINISHED")

    def _log_files(self, run: Run, record: RunSpec) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for path, folder in record.files:
                (Path(scratch) / folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(scratch) / folder / path.name)
            for name, content in record.documents.items():
                (Path(scratch) / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
            if record.files or record.documents:
                self._upload(run.info.artifact_uri, scratch)

    def _upload(self, place: str, folder: str) -> None:
        """Send a folder's files; MLflow's client would first ask where the place is."""
        get_artifact_repository(place, tracking_uri=self.client.tracking_uri).log_artifacts(folder)  # type: ignore[no-untyped-call]

    def _log_inputs(self, run_id: str, inputs: list[DatasetInput]) -> None:
        """Tell of a run's data. New data that two tell of at once MLflow takes from one of them alone."""
        for attempts_left in reversed(range(_ATTEMPTS if inputs else 0)):
            try:
                self.client.log_inputs(run_id, inputs)
                return
            except MlflowException as error:
                if not attempts_left or not any(word in str(error) for word in _TWICE):
                    raise

    def _log_models(self, run: Run, record: RunSpec) -> dict[str, str]:
        """The ids of the run's models by name, each logged unless it is there whole."""
        if not record.models:
            return {}
        known: dict[str, str] = {}
        for model in [] if run.info.run_id in self.new else list(self._models([run])):
            if model.status != LoggedModelStatus.READY or model.name in known:
                self.client.delete_logged_model(model.model_id)
            else:
                known[model.name] = model.model_id
        models = {p.name: known.get(p.name) or self._log_model(run, p) for p in record.models}
        if missing := [LoggedModelOutput(m, 0) for m in models.values() if m not in _outputs(run)]:
            self.client.log_outputs(run.info.run_id, missing)
        return models

    def _log_model(self, run: Run, packed: ModelSpec) -> str:
        model = self.client.create_logged_model(
            self.experiment, packed.name, run.info.run_id, params=dict(packed.params), model_type="quantized"
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_model(folder, packed, model)
            self._upload(model.artifact_location, str(folder))
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)


def _finished(run: Run) -> bool:
    return bool(run.info.status == "FINISHED")


def _age(run: Run) -> tuple[bool, int, str]:
    """Orders runs: finished ones, the first of them first, then the others; alike for all who look."""
    return not _finished(run), run.info.end_time or 0, run.info.run_id


def _outputs(run: Run) -> set[str]:
    """The ids of the models that the run is known to have made."""
    return {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()


def _tags(record: RunSpec) -> dict[str, str]:
    note = {MLFLOW_RUN_NOTE: record.description} if record.description else {}
    return {**record.tags, MLFLOW_RUN_NAME: record.name, _KEY: record.key, **note}


def _metrics(run: Run, record: RunSpec, models: dict[str, str]) -> Iterator[Metric]:
    """A record's metrics: of the run, of its layers by step, and of its models."""
    now = run.info.start_time
    for name, value in record.metrics.items():
        yield Metric(name, float(value), now, 0)
    for name, values in record.series.items():
        yield from (Metric(name, float(value), now, step) for step, value in enumerate(values))
    for later, packed in enumerate(record.models):
        # Two networks of the same size would be the same metric twice, which takes MLflow long to find out.
        place = {"model_id": models[packed.name], "run_id": run.info.run_id}
        yield from (
            Metric(f"model/{k}", float(v), now + later, 0, **place) for k, v in packed.metrics.items()
        )


def _slices(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _input(data: Input) -> DatasetInput:
    source = json.dumps({"uri": data.source, "dvc_md5": data.digest})
    dataset = Dataset(data.name, data.digest, "dvc", source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])
