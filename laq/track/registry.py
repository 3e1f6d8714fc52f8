"""MLflow's model registry: a registered model per subset, whose best version has the alias ``champion``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion

from laq.files import digest
from laq.track.runs import ModelSpec, ResultRuns, RunSpec, rank

CHAMPION: Final = "champion"
_SCORE: Final = "laq.top1_sub_percent"
_SIZE: Final = "laq.size_bytes"
_TASK: Final = "laq.task_sha256"


def register_champions(
    client: MlflowClient, result: ResultRuns, models: Mapping[tuple[str, str], LoggedModel]
) -> None:
    """Register the best network of each subset, unless a version as good is there.

    Versions stay. The alias goes to the best of all versions for the same classes and images of
    ``champion_bytes`` at most, so that it does not depend on who comes first. ``models`` are those in
    MLflow, by the key of their run and their name.
    """
    most_bytes = result.champion_bytes or 0.0
    every = [(run, model) for run in result.runs for model in run.models]
    every = [(run, model) for run, model in every if model.metrics["size_bytes"] <= most_bytes]
    for subset in dict.fromkeys(model.params["subset"] for _, model in every):
        of_subset = [(run, model) for run, model in every if model.params["subset"] == subset]
        run, model = max(of_subset, key=lambda candidate: rank(candidate[1].metrics))
        images = [data.digest for data in run.inputs if data.context == "images"]
        task = digest([images, sorted(model.classes.values())])
        registered = _RegisteredModel(client, f"{result.experiment}-{subset}", task, most_bytes)
        registered.add(models[run.key, model.name], run, model)
        registered.point_at_best()


@dataclass(frozen=True)
class _RegisteredModel:
    """The versions of a registered model for one task (classes and images) and up to one size."""

    client: MlflowClient
    name: str
    task: str
    most_bytes: float

    def versions(self) -> list[ModelVersion]:
        """The versions, the best first, then the oldest."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        same_task = [version for version in found if version.tags.get(_TASK) == self.task]
        small = [version for version in same_task if float(version.tags[_SIZE]) <= self.most_bytes]
        return sorted(small, key=lambda v: (*(-part for part in _rank(v)), int(v.version)))

    def add(self, logged: LoggedModel, run: RunSpec, model: ModelSpec) -> None:
        """Add a version, unless one as good is there; delete it if another machine's came first."""
        if any(_rank(version) >= rank(model.metrics) for version in self.versions()):
            return
        classes = ", ".join(model.classes.values())
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name, description=f"Tells apart: {classes}")
        made = self.client.create_model_version(
            self.name,
            logged.artifact_location,
            logged.source_run_id,
            tags={
                _SCORE: str(model.metrics["top1_sub_percent"]),
                _SIZE: str(model.metrics["size_bytes"]),
                _TASK: self.task,
                "laq.classes": classes,
                **{f"laq.{name}": value for name, value in model.params.items()},
            },
            description=f"{run.name} ({model.name.replace('_', ' + ')}), for: {classes}",
            model_id=logged.model_id,
        )
        earlier = [v for v in self.versions() if int(v.version) < int(made.version)]
        if any(_rank(version) >= rank(model.metrics) for version in earlier):
            self.client.delete_model_version(self.name, made.version)

    def point_at_best(self) -> None:
        """Give the alias to the best version, and look again: another machine may have added one."""
        while versions := self.versions():
            best, aliases = str(versions[0].version), self.client.get_registered_model(self.name).aliases
            if str(aliases.get(CHAMPION)) == best:
                return
            self.client.set_registered_model_alias(self.name, CHAMPION, best)


def _rank(version: ModelVersion) -> tuple[float, float]:
    return float(version.tags[_SCORE]), -float(version.tags[_SIZE])
