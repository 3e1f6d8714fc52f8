"""What a store holds of earlier studies: found by their names, read from the tables of their runs."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from laq.errors import LaqError
from laq.files import read_json
from laq.paths import SUBSETS
from laq.study.tables import MEASUREMENTS, read_measurements
from laq.subsets.subset import read_subsets
from laq.track.store import Store

# By what they are called, and how far they lie back.
AGES: Final = {"latest": 0, "previous": 1}
COLUMNS: Final = (
    "subset", "classes", "variant", "method", "bits", "calibration", "seed",
    "mean_bits", "top1_sub_percent", "size_bytes",
)  # fmt: skip
_RUN_ID: Final = re.compile("[0-9a-f]{4,32}")
_MOST_NAMED: Final = 6
TABLES: Final = "tables"  # the folder of a study's run with these
RECORDS: Final = f"{TABLES}/provenance.json"  # of all stages that made them
_FILES: Final = (f"{TABLES}/{MEASUREMENTS}", f"{TABLES}/{SUBSETS.name}")


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


@dataclass(frozen=True)
class StageRecord:
    """What a stage of a study was given, the hashes of what it wrote, and the versions that it ran with."""

    parameters: dict[str, Any]
    outputs: dict[str, str]
    versions: dict[str, str]


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
            LaqError: the study's run lacks its tables, or they are damaged.
        """
        client, remedy = self.store.client, "delete the run, then run `laq track`"
        with tempfile.TemporaryDirectory() as folder, self.store.one_line_errors():
            kept = {artifact.path for artifact in client.list_artifacts(study.run, TABLES)}
            if missing := [path for path in _FILES if path not in kept]:
                raise LaqError(f"study {study.label} in {self}: its run has no {missing[0]}; {remedy}")
            files = [Path(client.download_artifacts(study.run, path, folder)) for path in _FILES]
            table = read_measurements(files[0], remedy)
            classes = {s.name: ", ".join(sorted(s.class_names)) for s in read_subsets(files[1])}
        table["classes"] = table.subset.map(classes)
        table["seed"] = table.seed.astype("string").fillna("")
        return table[list(COLUMNS)]

    def records(self, study: TrackedStudy) -> dict[str, StageRecord]:
        """What made the study, by stage (``laq.provenance``); nothing where its run does not tell.

        Raises:
            LaqError: the file is damaged, or the store cannot be reached.
        """
        client, remedy = self.store.client, "delete the run, then run `laq track`"
        with tempfile.TemporaryDirectory() as folder, self.store.one_line_errors():
            if RECORDS not in {artifact.path for artifact in client.list_artifacts(study.run, TABLES)}:
                return {}
            file = Path(client.download_artifacts(study.run, RECORDS, folder))
            records: dict[str, StageRecord] = read_json(file, dict[str, StageRecord], remedy)
            return records

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
