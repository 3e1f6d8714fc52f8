"""Stage ``study``: measures every subset, bit-width and method, on the original and fine-tuned networks."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laq.dataset.images import read_manifest
from laq.files import replacing_file, replacing_folder
from laq.network.weights import read_design
from laq.parallel import Workers
from laq.paths import DATASET, WEIGHTS
from laq.paths import STUDY as FOLDER
from laq.sections.study import Study
from laq.study.cells import Cell, plan
from laq.study.inputs import StudyInputs, study_code
from laq.study.measure import measure_all
from laq.study.results import layer_rows, read_measurement, read_predictions, read_seconds
from laq.study.tables import (
    IMAGES_OF,
    LAYERS,
    MEASUREMENTS,
    NO_IMAGES,
    PREDICTIONS,
    read_measurements,
    seconds_file,
    weights_file,
)
from laq.subsets.subset import read_subsets

__all__ = [
    "FOLDER",
    "IMAGES_OF",
    "LAYERS",
    "MEASUREMENTS",
    "NO_IMAGES",
    "Cell",
    "StudyInputs",
    "layer_rows",
    "measure_all",
    "measurement_row",
    "plan",
    "read_measurement",
    "read_measurements",
    "read_seconds",
    "run",
    "seconds_file",
    "study_code",
    "weights_file",
]


def run(params: Study, workers: Workers = Workers()) -> None:  # noqa: B008 (frozen)
    """Write ``measurements.csv`` (a row per cell), ``layers.csv``, ``predictions.npz`` and networks' weights.

    ``predictions.npz`` has an array by the name of each cell: what is kept of each test image of its subset,
    in the order of the dataset (``outcomes.KEPT``).

    The seconds that quantization took are no result and go to ``seconds_file``. Each cell is kept as soon as
    it is done, so that a killed run continues where it stopped.

    Raises:
        LaqError: the bits are out of range, an earlier stage's output is missing, or cells failed.
    """
    inputs = StudyInputs(params)
    folders = measure_all(plan(read_subsets(), params), inputs, workers)
    with replacing_folder(FOLDER) as folder:
        _write_table(folder / MEASUREMENTS, (measurement_row(*done) for done in folders.items()))
        _write_table(folder / LAYERS, (r for done in folders.items() for r in layer_rows(*done)))
        kept = {cell.name: read_predictions(source) for cell, source in folders.items()}
        np.savez(folder / PREDICTIONS, **kept)  # type: ignore[arg-type]  # it takes arrays of any kind by name
        for cell, source in folders.items():
            if (source / WEIGHTS).exists():
                weights_file(folder, cell.name).parent.mkdir(parents=True)
                shutil.copyfile(source / WEIGHTS, weights_file(folder, cell.name))
    with replacing_file(seconds_file()) as partial:
        rows = [{"cell": cell.name, "seconds": read_seconds(done)} for cell, done in folders.items()]
        pd.DataFrame(rows).dropna().to_csv(partial, index=False)


def measurement_row(cell: Cell, source: Path) -> dict[str, Any]:
    """The cell's row of the table: its setting, then its measurements.

    Balanced accuracies are among these where the dataset has more test images of one class than of another.
    """
    s, dataset, measured = cell.subset, read_manifest(DATASET), read_measurement(source)
    if dataset.is_balanced:
        measured = {name: value for name, value in measured.items() if not name.startswith("balanced")}
    return {
        "dataset": dataset.name,
        "network": read_design().architecture,
        "cell": cell.name,
        "subset": s.name,
        "variant": cell.variant,
        "method": cell.method,
        "bits": str(cell.bits),
        "calibration": cell.calibration or NO_IMAGES,
        "seed": cell.seed,
        "kind": s.kind,
        "subset_size_classes": len(s.classes),
        "median_divergence_nats": s.median_divergence,
        "mean_divergence_nats": s.mean_divergence,
        "min_divergence_nats": s.min_divergence,
        "max_divergence_nats": s.max_divergence,
        **measured,
    }


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    table = pd.DataFrame(list(rows))
    whole = {name: "Int64" for name in ("levels", "weights", "seed") if name in table}
    table.astype(whole).round(6).to_csv(path, index=False)
