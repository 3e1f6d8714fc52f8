"""Stage ``track``: sends the finished study to MLflow; ``log`` logs a network of your own."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from laq.files import digest, md5, read_json, write_json
from laq.git import in_pipeline
from laq.params import Params
from laq.paths import DIVERGENCE, REPORT, STUDY, SUBSETS
from laq.provenance import read_records
from laq.report import COMPARISONS, METRICS, TABLE, TEXT, read_summary, title_of
from laq.study.tables import (
    LAYERS,
    MEASUREMENTS,
    read_measurements,
    read_table,
    seconds_file,
    weights_file,
)
from laq.subsets.subset import read_subsets
from laq.track.autolog import log
from laq.track.deliver import deliver, deliver_waiting
from laq.track.descriptions import root_description
from laq.track.find_studies import RECORDS, TABLES, TrackedStudies
from laq.track.measures import PROGRESS, curves, floats
from laq.track.results import Results, row_dicts
from laq.track.run_specs import ResultRuns, RunSpec
from laq.track.specs_of_results import (
    experiment_name,
    result_runs,
    root_tags,
    study_key,
    study_name,
    study_params,
)
from laq.track.store import Store
from laq.track.views import links, where_to_look

__all__ = ["FILE", "log", "run", "send_waiting", "study_runs"]

CONTENT = "laq.content"  # the tag with the hash of what a study's result holds
FILE = Path("data/tracked.json")
_DIGITS = 12  # of a result's key, which tell it from all others


@dataclass(frozen=True)
class _Metrics:
    """What is read of the report's metrics."""

    lost_per_halving: dict[str, float]


def run(params: Params) -> str:
    """Send the study's runs that the store lacks, and those that wait.

    Returns:
        A sentence that says so, and the addresses to look at.

    Raises:
        LaqError: the store cannot be reached or written.
    """
    store = Store()
    result = study_runs(params, _free_key(store, params))
    waiting = sum(len(one.sent) for one in deliver_waiting(store))
    done = deliver(store, result)
    study, name = done.ids[result.root.key], result.root.name
    if in_pipeline():
        # The run's id would be another one in every store; its tag laq.key is not.
        write_json(FILE, {"laq_key": result.root.key[:_DIGITS]})
    link = f"[{name}]({done.page.removeprefix('/')})"
    store.annotate(f"Ran the pipeline; its study is {link}.", {"laq.study_run": study})
    others = f", and {waiting} runs that waited" if waiting else ""
    sentence = (
        f"Sent {len(done.sent)} of {len(result.runs)} runs to {store}, experiment {result.experiment}{others}"
    )
    return f"{sentence}\n{where_to_look(store.uri, {'Study': done.page, **links(done.experiment_id)})}"


def send_waiting() -> str:
    """Send the runs that wait in the outbox; returns a sentence that says how many and to where."""
    store = Store()
    sent = deliver_waiting(store)
    sentence = f"Sent {sum(len(one.sent) for one in sent)} runs to {store}"
    return "\n".join([sentence, *(where_to_look(store.uri, {"Run": one.page}) for one in sent)])


def _free_key(store: Store, params: Params) -> str:
    """The key of the study, or another one where the store has the same study with another outcome.

    The report may have changed since, or another processor may have measured it.
    """
    key = study_key(params)
    studies = TrackedStudies(store, experiment_name(params)).studies
    known = next((s.tags.get(CONTENT) for s in studies if s.tags.get("laq.key") == key), None)
    return key if known in {None, _content()} else digest([key, _content()])


def study_runs(params: Params, key: str) -> ResultRuns:
    """The runs of the study in ``data/``, under a key."""
    table = read_measurements(REPORT / TABLE)
    if seconds_file().exists():  # it does not where results were pulled
        took = read_table(seconds_file(), {"cell": str, "seconds": float}, "remove it")
        table = table.merge(took, "left", "cell")
    layers = read_table(STUDY / LAYERS, {"cell": str, "layer": str, "bits": float, "sparsity_percent": float})
    rows = row_dicts(table)
    files = {row["cell"]: weights_file(STUDY, row["cell"]) for row in rows}
    weights = {cell: file for cell, file in files.items() if file.exists()}
    results = Results(params, key, read_subsets(), rows, row_dicts(layers), weights)
    return result_runs(results, _root(results))


def _content() -> str:
    """The hash of what was measured and of what the report says of it."""
    return digest([md5(file) for file in (STUDY / MEASUREMENTS, REPORT / TEXT, REPORT / COMPARISONS)])


def _root(results: Results) -> RunSpec:
    """The study's own run: its parameters, numbers, report and pictures."""
    params, title, summary = results.params, title_of(pd.DataFrame(results.rows)), read_summary()
    measured: _Metrics = read_json(REPORT / METRICS, _Metrics)
    return RunSpec(
        key=results.key,
        name=study_name(params, len(results.subsets), results.key),
        params=study_params(params),
        metrics={
            PROGRESS: 100.0,
            **floats(summary),
            **{f"lost_per_halving/{name}": value for name, value in measured.lost_per_halving.items()},
        },
        series=curves(summary),
        tags={**root_tags(results.provenance, "study"), CONTENT: _content()},
        inputs=results.provenance.inputs,
        files=[
            *((path, _folder_of(path)) for path in sorted(REPORT.iterdir()) if path.is_file()),
            (SUBSETS, TABLES),
            *((path, "divergence") for path in sorted(DIVERGENCE.glob("*.png"))),
        ],
        documents={RECORDS: read_records("report")},
        description=root_description(results, summary, title),
    )


def _folder_of(path: Path) -> str:
    """Pages, texts and pictures come first, tables and what programs read below them."""
    return TABLES if path.suffix in {".csv", ".json"} else ""
