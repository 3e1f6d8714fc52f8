"""Results in MLflow: the finished study (``track``), or one bit-width right away (``quantize``)."""

from pathlib import Path

from laq.files import write_json
from laq.params import Params
from laq.progress import progress
from laq.tracking.quantizing import Order, quantize
from laq.tracking.records import (
    Outcome,
    cell_records,
    check_study,
    describe,
    experiment_name,
    study_key,
    study_record,
)
from laq.tracking.store import Store

__all__ = ["Order", "Outcome", "describe", "quantize", "run"]

FILE = Path("data/tracked.json")


def run(params: Params) -> str:
    """Send the study's runs that the store lacks; returns in a line what was sent where."""
    check_study(params)
    store, name = Store(), experiment_name(params)
    experiment = store.experiment(name)
    parent, new = store.send(experiment, study_record(params))
    records = list(cell_records(params))
    sent = int(new) + sum(
        store.send(experiment, record, parent)[1] for record in progress(records, "track", unit="run")
    )
    # Without ids or places, which differ from store to store: the same study, the same bytes.
    write_json(FILE, {"experiment": name, "study": study_key(params), "runs": 1 + len(records)})
    return f"{sent} of {1 + len(records)} runs sent to {store.uri}, experiment {name}; the others were there"
