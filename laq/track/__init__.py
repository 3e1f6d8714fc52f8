"""Stage ``track``: sends the finished study to MLflow."""

from pathlib import Path

import pandas as pd

from laq.divergence import FOLDER as DIVERGENCE
from laq.files import digest, md5, need, read_json, write_json
from laq.params import Params
from laq.provenance import experiment, in_pipeline
from laq.report import CORRELATIONS, METRICS, TABLE, TEXT, headline, read_summary, title_of
from laq.report import FOLDER as REPORT
from laq.study import FOLDER as STUDY
from laq.study import INPUTS, LAYERS, MEASUREMENTS, SECONDS, read_measurements, weights_file
from laq.subsets import read_subsets
from laq.track.connection import OWN_RUN, telling
from laq.track.notes import root_note
from laq.track.outbox import Outbox
from laq.track.record import Record, Tree
from laq.track.records import (
    check_study,
    flat,
    settings_of,
    tags,
    tree_of,
)
from laq.track.results import Results, row_dicts
from laq.track.store import Store

FILE = Path("data/tracked.json")


def run(params: Params) -> str:
    """Send the study's runs that the store lacks, and what waits; returns in a line what was sent where."""
    check_study(params)
    tree, store = study_tree(params), Store()
    waiting = Outbox().send(store)
    done = store.deliver(tree)
    if in_pipeline():
        # Only the pipeline's own runs: sending the same to another store leaves its outputs alone.
        write_json(FILE, {"mlflow_run": done.runs[tree.root.key]})
    if OWN_RUN:
        _lead_on(store, tree.root.name, done.runs[tree.root.key])
    others = f", and {waiting} that waited" if waiting else ""
    return f"{done.sent} of {len(tree.records)} runs sent to {store}, experiment {tree.experiment}{others}"


def _lead_on(store: Store, name: str, study: str) -> None:
    """Lead from the run that `mlflow run` started to the study's."""
    with telling(str(store)):
        experiment_id = store.client.get_run(study).info.experiment_id
        note = f"Ran the pipeline; its study is [{name}](#/experiments/{experiment_id}/runs/{study})."
        store.client.set_tag(OWN_RUN, "laq.study_run", study)
        store.client.set_tag(OWN_RUN, "mlflow.note.content", note)


def send_waiting() -> str:
    """Send what waits in the outbox; returns in a line what was sent where."""
    store = Store()
    return f"{Outbox().send(store)} runs sent to {store}"


def study_tree(params: Params) -> Tree:
    """The runs of the study in ``data/``."""
    table = read_measurements(REPORT / TABLE).merge(pd.read_csv(need(SECONDS)), "left", "cell")
    layers = pd.read_csv(need(STUDY / LAYERS), dtype={"levels": "Int64"})
    rows = row_dicts(table)
    files = {row["cell"]: weights_file(STUDY, row["cell"]) for row in rows}
    weights = {cell: file for cell, file in files.items() if file.exists()}
    results = Results(params, study_key(params), read_subsets(), rows, row_dicts(layers), weights, REPORT)
    return tree_of(results, _root(results))


def study_key(params: Params) -> str:
    """The name of the study's result: the hash of its parameters, tables and report."""
    files = (STUDY / MEASUREMENTS, STUDY / INPUTS, REPORT / TEXT, REPORT / CORRELATIONS)
    return digest([params.name, settings_of(params), [md5(file) for file in files]])


def _root(results: Results) -> Record:
    """The study's own run: its parameters, numbers, report and pictures."""
    params, title, summary = results.params, title_of(pd.DataFrame(results.rows)), read_summary()
    return Record(
        key=results.key,
        name=f"{experiment() or params.name}, {len(results.subsets)} subsets",
        params={name: str(value) for name, value in flat(settings_of(params))},
        metrics=_metrics(summary),
        tags={**tags(results), "laq.level": "study"},
        inputs=results.origin.inputs,
        files=[
            *((path, "report") for path in sorted(REPORT.iterdir()) if path.is_file()),
            *((path, "divergence") for path in sorted(DIVERGENCE.glob("*.png"))),
            (STUDY / INPUTS, "study"),
        ],
        note=root_note(results, summary, title),
    )


def _metrics(summary: pd.DataFrame) -> dict[str, float]:
    """The report's headline at every bit-width, and its correlations."""
    top1 = headline(summary)
    rho = read_json(need(REPORT / METRICS))["rho"]
    return {**{f"top1/{k}": v for k, v in top1.items()}, **{f"rho/{k}": v for k, v in rho.items()}}
