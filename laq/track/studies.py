"""What a store holds of earlier studies: found by their names, read cell by cell."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Final

import pandas as pd

from laq.errors import LaqError
from laq.report.tables import BASE_OF
from laq.study.cells import FLOAT_BITS
from laq.study.tables import NO_IMAGES
from laq.track.store import Store

# By what they are called, and how far they lie back.
AGES: Final = {"latest": 0, "previous": 1}
COLUMNS: Final = (
    "subset", "classes", "variant", "method", "bits", "calibration", "seed",
    "mean_bits", "top1_sub_percent", "size_bytes",
)  # fmt: skip
_RUN_ID: Final = re.compile("[0-9a-f]{4,32}")
_MOST_NAMED: Final = 6
_PARAMS: Final = ("subset", "classes", "method", "bits", "calibration", "calibration_seed")  # of a cell's run


@dataclass(frozen=True)
class TrackedStudy:
    """A study in the store: its run's id and what that says; ``inputs`` are DVC's hashes by their use."""

    run: str
    started: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    inputs: Mapping[str, str]

    @property
    def experiment(self) -> str | None:
        """The name of the DVC experiment that it was."""
        return self.tags.get("laq.dvc_experiment")

    @property
    def label(self) -> str:
        """What people call it: the DVC experiment, or else the start of the run's id."""
        return self.experiment or self.run[:8]


class TrackedStudies:
    """The finished studies of one experiment, the newest first."""

    def __init__(self, store: Store, experiment: str) -> None:
        self.store = store
        self.experiment = experiment
        found = store.experiment(experiment)
        self._ids = [str(found.experiment_id)] if found else []
        self.studies: list[TrackedStudy] = []
        with store.one_line_errors():
            for run in self._runs("tags.`laq.level` = 'study'"):
                data, info = run.inputs.dataset_inputs if run.inputs else [], run.info
                uses = {
                    t.value: d.dataset.digest for d in data for t in d.tags if t.key == "mlflow.data.context"
                }
                study = TrackedStudy(info.run_id, info.start_time, run.data.params, run.data.tags, uses)
                self.studies.append(study)

    def find(self, name: str) -> TrackedStudy:
        """The study that ``name`` means: latest, previous, a DVC experiment, the start of a run's id or key.

        Raises:
            LaqError: none is called so, several are, or it is something else than a study.
        """
        if name in AGES:
            return self._by_age(name)
        found = [s for s in self.studies if name in {s.run, s.experiment}]
        if not found and _RUN_ID.fullmatch(name):  # DVC's experiments show the start of the result's key
            found = [
                s
                for s in self.studies
                if s.run.startswith(name) or s.tags.get("laq.key", "").startswith(name)
            ]
        if len(found) == 1:
            return found[0]
        if found:
            raise LaqError(f"{name!r} may be any of {_named(found)}; give more of the run's id")
        self._check_other_runs(name)
        raise LaqError(
            f"study {name!r} is unknown; known in {self}: {', '.join(AGES)}, {_named(self.studies)}"
        )

    def cells(self, study: TrackedStudy) -> pd.DataFrame:
        """What was measured: a row per subset, variant, method, bits as asked for, calibration and seed.

        Raises:
            LaqError: the store has none of the study's cells, or one was not sent by laq.
        """
        asked = f"tags.`laq.root` = '{study.tags.get('laq.key')}' and tags.`laq.level` = 'cell'"
        with self.store.one_line_errors():
            rows = [row for run in self._runs(asked) for row in _rows(run)]
        if not rows:
            raise LaqError(f"study {study.label}: {self} has none of its cells; `laq track` sends them")
        # Every cell of a subset tells of the networks as they are.
        return pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(list(COLUMNS[:7]), ignore_index=True)

    def __str__(self) -> str:
        return f"experiment {self.experiment} at {self.store}"

    def _by_age(self, name: str) -> TrackedStudy:
        if len(self.studies) <= AGES[name]:
            there = f"only {_named(self.studies)}" if self.studies else "no study"
            raise LaqError(f"no study is the {name} one: {self} has {there}; `dvc exp run` adds one")
        return self.studies[AGES[name]]

    def _check_other_runs(self, name: str) -> None:
        """See that ``name`` is not that of a run beside the finished studies, in any experiment."""
        if not _RUN_ID.fullmatch(name):
            return
        client = self.store.client
        with self.store.one_line_errors():
            everywhere = [e.experiment_id for e in client.search_experiments()]
            found = client.search_runs(everywhere, f"attributes.run_id LIKE '{name}%'", max_results=2)
            if len(found) == 1:
                there = client.get_experiment(found[0].info.experiment_id).name
                raise LaqError(self._what_it_is(found[0], there))

    def _what_it_is(self, run: Any, experiment: str) -> str:
        level, title = run.data.tags.get("laq.level", "foreign"), run.data.tags.get("mlflow.runName", "")
        told = f"run {run.info.run_id} ({title}) is"
        if level != "study":
            return f"{told} not a study but a {level} run; known studies: {_named(self.studies)}"
        if experiment != self.experiment:
            return f"{told} a study of experiment {experiment}; asked for is {self.experiment} (params.yaml)"
        return f"{told} a study that is not sent whole; `laq track` sends the rest"

    def _runs(self, condition: str) -> Iterator[Any]:
        """The experiment's finished runs of a kind, the newest first."""
        order, token = ["attributes.start_time DESC", "attributes.run_id"], None if self._ids else ""
        while token is None or token:
            page = self.store.client.search_runs(self._ids, condition, order_by=order, page_token=token)
            yield from (run for run in page if run.info.status == "FINISHED")
            token = page.token or ""


def _named(studies: Sequence[TrackedStudy]) -> str:
    """Studies by their runs and experiments, of many the newest."""
    names = [f"{s.run[:8]} ({s.experiment})" if s.experiment else s.run[:8] for s in studies]
    more = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], *([f"{more} older ones"] if more > 0 else [])]) or "none"


def _rows(run: Any) -> Iterator[dict[str, Any]]:
    """A cell's variants as rows; classes in the order of their names, whatever they were chosen in."""
    params, metrics = run.data.params, run.data.metrics
    if missing := [name for name in _PARAMS if name not in params]:
        raise LaqError(
            f"run {run.info.run_id} has no parameter {missing[0]}; delete it, then run `laq track`"
        )
    classes = ", ".join(sorted(params["classes"].split(", ")))
    place = {"subset": params["subset"], "classes": classes}
    recipe = (params["method"], params["bits"], params["calibration"], params["calibration_seed"])
    for variant, base in BASE_OF.items():
        for name, made in ((base, ("float", str(FLOAT_BITS), NO_IMAGES, "")), (variant, recipe)):
            if f"{name}/top1_sub_percent" in metrics:
                yield {
                    **place,
                    "variant": name,
                    **dict(zip(("method", "bits", "calibration", "seed"), made, strict=True)),
                    "mean_bits": metrics.get(f"{name}/mean_bits", float(FLOAT_BITS)),
                    "top1_sub_percent": metrics[f"{name}/top1_sub_percent"],
                    "size_bytes": metrics.get(f"{name}/size_bytes", nan),
                }
