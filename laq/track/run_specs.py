"""What the runs of one result hold before they are sent to MLflow; saved as JSON where they wait for that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from laq.errors import LaqError
from laq.files import need, write_json
from laq.study.tables import CHOOSING


@dataclass(frozen=True)
class Input:
    """Data that a result was made from, by DVC's hash of it.

    ``source`` is its path in the project, ``context`` what it was used for.
    """

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True)
class ModelSpec:
    """A packed network that becomes a logged model of its run.

    Attributes:
        weights: the packed file.
        design: the network's (``network.NetworkDesign`` as JSON).
        classes: the numbers and names of the classes that the network is for.
        examples: images in Base64, an example of what the model takes.
        params: shown in MLflow's list of models; ``subset`` names the registered model.
        metrics: shown there too, and on the run.
        ranking: ``top1_choosing_percent`` and ``size_bytes`` decide which model is registered.
    """

    name: str
    weights: Path
    design: Mapping[str, Any]
    classes: Mapping[int, str]
    examples: Sequence[str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    ranking: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """Everything that MLflow is to hold of one run.

    Attributes:
        key: hash of what the run is of; the run is sent once for each key.
        parent: the key of the parent run; empty for the root.
        series: metrics with a value per step, such as bits or the places of layers.
        files: paths, each with the folder of artifacts that it goes into.
        documents: become artifacts in JSON, by their file names.
        description: Markdown that MLflow shows on the run's page.
    """

    key: str
    name: str
    parent: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    files: Sequence[tuple[Path, str]] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[ModelSpec] = ()
    description: str = ""


@dataclass(frozen=True)
class ResultRuns:
    """All runs of one result: the root, its child runs, and theirs; each after its parent.

    Attributes:
        experiment: name of the experiment that the runs go to.
        own_run: id of the run that `mlflow run` started, which becomes the root; empty without one.
        champion_bytes: size in bytes up to which a model may be registered as its subset's champion;
            None to register no model.
        whole: whether all is measured; until then runs with others below them are not finished.
    """

    experiment: str
    runs: Sequence[RunSpec]
    own_run: str = ""
    champion_bytes: float | None = None
    whole: bool = True

    @property
    def root(self) -> RunSpec:
        """The run that all others are below."""
        return self.runs[0]

    def save(self, path: Path) -> None:
        """Write the runs as JSON, to be sent later."""
        write_json(path, json.loads(json.dumps(asdict(self), default=str)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            LaqError: the file is something else, damaged, or of another version of laq.
        """
        try:
            return TypeAdapter(cls).validate_json(need(path).read_bytes())
        except ValidationError as error:
            raise LaqError(f"{path}: not a result that waits to be sent; remove it") from error


def rank(measured: Mapping[str, Any]) -> tuple[float, float]:
    """Orders networks, the best last: by restricted top-1 on the images that choose, then the smaller file.

    These images are not those on which the chosen one is reported (``study.selection``). A network without
    such images comes before all others.
    """
    top1 = measured.get(CHOOSING)
    return -inf if top1 is None or isnan(top1) else top1, -measured["size_bytes"]
