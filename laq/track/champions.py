"""Registers the best network of each subset in MLflow: its versions, the best with the alias ``champion``."""

from collections.abc import Mapping
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from laq.files import digest
from laq.study.tables import CHOOSING
from laq.track.run_specs import ResultRuns, rank

CHAMPION: Final = "champion"
_TASK: Final = "laq.task_sha256"
_CHOSEN_BY: Final = f"laq.{CHOOSING}"


def register_champions(
    client: MlflowClient, result: ResultRuns, models: Mapping[tuple[str, str], LoggedModel]
) -> None:
    """Register the best network of each subset, unless a version as good is there.

    Versions stay. The alias goes to the best of all versions for the same classes and images of
    ``champion_bytes`` at most, so that it does not depend on who comes first. Half of the test images choose
    (``run_specs.rank``); models and versions that these have not ranked do not compete. ``models`` are those
    in MLflow, by the key of their run and their name.
    """
    most_bytes = result.champion_bytes or 0.0
    ranked = [(spec, m) for spec in result.runs for m in spec.models if CHOOSING in m.ranking]
    fitting = [(spec, model) for spec, model in ranked if model.ranking["size_bytes"] <= most_bytes]
    fitting.sort(key=lambda candidate: rank(candidate[1].ranking))
    best = {model.params["subset"]: (spec, model) for spec, model in fitting}
    for subset, (spec, model) in best.items():
        images = [data.digest for data in spec.inputs if data.context == "images"]
        classes = ", ".join(model.classes.values())
        tags = {"classes": classes, **model.params, **model.ranking}
        logged = models[spec.key, model.name]
        version = {
            "name": f"{result.experiment}-{subset}",
            "source": logged.artifact_location,
            "run_id": logged.source_run_id,
            "model_id": logged.model_id,
            "description": f"{spec.name} ({model.name.replace('_', ' + ')}), for: {classes}",
            "tags": {
                _TASK: digest([images, sorted(model.classes.values())]),
                **{f"laq.{name}": str(value) for name, value in tags.items()},
            },
        }
        _register(client, version, most_bytes)


def _register(client: MlflowClient, new: Mapping[str, Any], most_bytes: float) -> None:
    """Add a version unless one as good is there, and give the alias to the best; look again after each step.

    If two machines add theirs at once, a version goes that an earlier one is as good and as small as.
    """
    name = new["name"]
    while True:
        found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))
        ranks: dict[str, tuple[float, float]] = {}
        for version in (v for v in found if v.tags.get(_TASK) == new["tags"][_TASK] and _CHOSEN_BY in v.tags):
            score, size = _rank(version.tags)
            if any(score <= earlier[0] and size <= earlier[1] for earlier in ranks.values()):
                client.delete_model_version(name, version.version)
            else:
                ranks[str(version.version)] = score, size
        fitting = [number for number, (_, size) in ranks.items() if -size <= most_bytes]
        best = max(fitting, key=lambda number: ranks[number], default="")
        if not best or ranks[best] < _rank(new["tags"]):
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name, description=f"Tells apart: {new['tags']['laq.classes']}")
            client.create_model_version(**new)
        elif str(client.get_registered_model(name).aliases.get(CHAMPION)) != best:
            client.set_registered_model_alias(name, CHAMPION, best)
        else:
            return


def _rank(tags: Mapping[str, str]) -> tuple[float, float]:
    return float(tags[_CHOSEN_BY]), -float(tags["laq.size_bytes"])
