"""MLflow's registry of models: the best network of each subset, under the alias ``champion``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from laq.files import digest
from laq.track.runs import ModelSpec, ResultRuns, RunSpec, rank

CHAMPION: Final = "champion"
_SCORE: Final = "laq.top1_sub_percent"
_SIZE: Final = "laq.size_bytes"
_TASK: Final = "laq.task_sha256"


@dataclass(frozen=True)
class _Candidate:
    """A network of a run, and the task it solves: to tell these classes apart on these images."""

    record: RunSpec
    packed: ModelSpec
    task: str

    @property
    def rank(self) -> tuple[float, float]:
        """The higher, the better."""
        return rank(self.packed.metrics)


def register_champions(client: MlflowClient, tree: ResultRuns, runs: Mapping[str, Run]) -> list[str]:
    """Register the best network of each subset unless one as good is there; returns the names of new ones.

    ``runs`` are the tree's, by key. A version stays what it is; the alias goes to the best of all
    versions for the same classes and images within the budget, so that whoever comes last, the same
    one has it.
    """
    assert tree.champion_bytes is not None
    most, new = tree.champion_bytes, []
    for subset, candidate in _best(tree, most).items():
        name = f"{tree.experiment}-{subset}"
        before = _versions(client, name, candidate.task, most)
        if not before or _rank(before[0]) < candidate.rank:
            version = _register(client, name, candidate, runs[candidate.record.key])
            if not _withdraw_if_second(client, version, candidate, most):
                new.append(name)
        _point_at_best(client, name, candidate.task, most)
    return new


def delete_versions(client: MlflowClient, run: Run) -> None:
    """Delete what was registered of a run's models."""
    for version in client.search_model_versions(f"run_id = '{run.info.run_id}'"):
        with if_it_exists():
            client.delete_model_version(version.name, version.version)


@contextmanager
def if_it_exists() -> Iterator[None]:
    """Do nothing about what is not there, or no longer: somebody else may have deleted it."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _best(tree: ResultRuns, most_bytes: float) -> dict[str, _Candidate]:
    found: dict[str, _Candidate] = {}
    for candidate in _candidates(tree, most_bytes):
        subset = candidate.packed.params["subset"]
        if subset not in found or found[subset].rank < candidate.rank:
            found[subset] = candidate
    return found


def _candidates(tree: ResultRuns, most_bytes: float) -> Iterator[_Candidate]:
    for record in tree.runs:
        for packed in record.models:
            if packed.metrics["size_bytes"] <= most_bytes:
                images = [data.digest for data in record.inputs if data.context == "images"]
                yield _Candidate(record, packed, digest([images, sorted(packed.classes.values())]))


def _versions(client: MlflowClient, name: str, task: str, most_bytes: float) -> list[ModelVersion]:
    """The versions for the same task within the budget, the best first, then the oldest."""
    versions = [
        v
        for v in client.search_model_versions(f"name = '{name}'")
        if v.tags.get(_TASK) == task and float(v.tags[_SIZE]) <= most_bytes
    ]
    return sorted(versions, key=lambda v: (*(-part for part in _rank(v)), int(v.version)))


def _rank(version: ModelVersion) -> tuple[float, float]:
    return float(version.tags[_SCORE]), -float(version.tags[_SIZE])


def _register(client: MlflowClient, name: str, candidate: _Candidate, run: Run) -> ModelVersion:
    packed = candidate.packed
    classes = ", ".join(packed.classes.values())
    try:
        client.create_registered_model(name, description=f"Tells apart: {classes}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    logged = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    model = next(model for model in logged if model.name == packed.name)
    tags = {
        _SCORE: str(packed.metrics["top1_sub_percent"]),
        _SIZE: str(packed.metrics["size_bytes"]),
        _TASK: candidate.task,
        "laq.classes": classes,
        **{f"laq.{key}": value for key, value in packed.params.items()},
    }
    return client.create_model_version(
        name,
        model.artifact_location,
        run.info.run_id,
        tags,
        description=f"{candidate.record.name} ({packed.name.replace('_', ' + ')}), for: {classes}",
        model_id=model.model_id,
    )


def _withdraw_if_second(
    client: MlflowClient, version: ModelVersion, candidate: _Candidate, most_bytes: float
) -> bool:
    """Delete the version if one as good came before it: another machine's, or of the same request twice."""
    others = _versions(client, version.name, candidate.task, most_bytes)
    second = any(int(v.version) < int(version.version) and _rank(v) >= candidate.rank for v in others)
    if second:
        client.delete_model_version(version.name, version.version)
    return second


def _point_at_best(client: MlflowClient, name: str, task: str, most_bytes: float) -> None:
    """Give the alias to the best version; looks again after that, for another machine may have been at it."""
    while versions := _versions(client, name, task, most_bytes):
        best, aliases = versions[0], client.get_registered_model(name).aliases
        if str(aliases.get(CHAMPION)) == str(best.version):
            return
        client.set_registered_model_alias(name, CHAMPION, best.version)
