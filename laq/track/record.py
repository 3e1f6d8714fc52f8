"""A run to be: everything that MLflow is told of one result, and where it stands among others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from laq.errors import LaqError
from laq.files import need, write_json


@dataclass(frozen=True)
class Input:
    """Data that a result was made from, by DVC's hash of it.

    ``source`` says where it lies, ``context`` what it was used for.
    """

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True)
class Packed:
    """A packed network that becomes a model of its run.

    ``design`` is the network's (``network.Design``), ``classes`` are the numbers and the names of those
    it is for, ``examples`` pictures in Base64, ``params`` and ``metrics`` what the list of models shows.
    """

    name: str
    weights: Path
    design: Mapping[str, Any]
    classes: Mapping[int, str]
    examples: Sequence[str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def rank(measured: Mapping[str, Any]) -> tuple[float, float]:
    """What makes a network better than another: its restricted top-1, then how small it is."""
    return measured["top1_sub_percent"], -measured["size_bytes"]


@dataclass(frozen=True)
class Record:
    """A run to be.

    Attributes:
        key: names the result, so that it is sent once.
        parent: the key of the run that it stands under; empty at the root.
        series: metrics with a value per step, which here are a network's layers.
        files: go into folders of artifacts.
        documents: become artifacts in JSON.
        note: Markdown that stands on the run's page.
    """

    key: str
    name: str
    parent: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    files: Sequence[tuple[Path, str]] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    networks: Sequence[Packed] = ()
    note: str = ""


@dataclass(frozen=True)
class Tree:
    """Records of one result, each after its parent: the root, subsets, cells.

    Attributes:
        experiment: that the runs go to.
        own_run: the run that `mlflow run` started, which becomes the root; empty without one.
        registry: where the best network of each subset is registered; nowhere without it.
    """

    experiment: str
    records: Sequence[Record]
    own_run: str = ""
    registry: "Budget | None" = None

    @property
    def root(self) -> Record:
        """The record that all others stand under."""
        return self.records[0]

    def save(self, path: Path) -> None:
        """Write the tree as JSON, to be sent later."""
        write_json(path, json.loads(json.dumps(asdict(self), default=str)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            LaqError: the file is something else, or damaged.
        """
        try:
            return TypeAdapter(cls).validate_json(need(path).read_bytes())
        except ValidationError as error:
            raise LaqError(f"{path}: not a result that waits to be sent; remove it") from error


@dataclass(frozen=True)
class Budget:
    """Whose best networks are registered: names start with ``prefix``, files have ``most_bytes`` at most."""

    prefix: str
    most_bytes: float
