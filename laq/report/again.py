"""Analyses a published study again with the code of today."""

import shutil
from pathlib import Path
from typing import Any, Final

import pandas as pd

from laq.errors import LaqError
from laq.files import read_json, replacing_folder, write_json
from laq.git import commit
from laq.machine import processor
from laq.paths import SUBSETS
from laq.report import LAYERS, PAGE, TABLE, Source, write_report
from laq.report.divergences import SubsetDivergences, divergences_in, members_of
from laq.report.layers import COLUMNS
from laq.report.page.data import REMEDY, read_classes
from laq.report.unchanged import FILES, PROVENANCE, changed_files, hash_files
from laq.sections.report import Report
from laq.study.tables import read_measurements, read_table
from laq.subsets.subset import read_subsets

DIVERGENCES: Final = "divergences.csv"
_STALE: Final = (
    "correlations.csv",
    "accuracy_vs_bits.png",
    "accuracy_vs_divergence.png",
    "heat_map.png",
)  # what former reports wrote and none does now


def analyse_again(folder: Path, params: Report, divergence: str) -> None:
    """Write the report of a published study again, in its ``folder``; what was measured stays byte for byte.

    ``provenance.json`` keeps the commit of the measurements, and tells that of the analysis as ``analysis``.
    ``divergence`` names the study's own where former reports have left that to the parameters.

    Raises:
        LaqError: a file is missing, is not what a published report has, or was changed since.
    """
    record: dict[str, Any] = read_json(folder / PROVENANCE, remedy=REMEDY)
    if changed := next(changed_files(folder, record), ""):
        raise LaqError(f"{folder}: {changed}; take it back, for example by `git checkout {folder}`")
    measurements = read_measurements(folder / f"{TABLE}.gz", REMEDY)
    subsets = read_subsets(folder / SUBSETS.name, remedy=REMEDY)
    if unknown := sorted(set(measurements.subset) - {subset.name for subset in subsets}):
        raise LaqError(f"{folder / SUBSETS.name}: has no subset {unknown[0]}, which the table has; {REMEDY}")
    members = members_of(subsets)
    if (folder / DIVERGENCES).exists():
        within = SubsetDivergences(_read_divergences(folder / DIVERGENCES), members)
    else:
        within = divergences_in(measurements, members, divergence)
    about = _read_layers(folder / LAYERS), _asked_before(record, params)
    matrix, names, plane = read_classes(folder / PAGE)
    source = Source(measurements, subsets, matrix, names, within, *about, plane=plane)
    with replacing_folder(folder) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_STALE))
        write_report(partial, source, params)
        record |= {"analysis": {**commit(), "processor": processor()}, FILES: hash_files(partial)}
        write_json(partial / PROVENANCE, record)


def _read_layers(path: Path) -> pd.DataFrame:
    """The published table of layers, which former reports have not."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    texts = dict.fromkeys(("network", "method", "bits", "layer"), str)
    return read_table(path, texts | {"relative_error": float}, REMEDY)


def _asked_before(record: Any, params: Report) -> bool:
    """Whether the record of the study's report has the same primary question."""
    try:
        recorded = record["stages"]["report"]["parameters"]["report"]["primary"]
    except (KeyError, TypeError):
        return False
    return bool(recorded == params.primary.model_dump(mode="json"))


def _read_divergences(path: Path) -> pd.DataFrame:
    """The table that ``SubsetDivergences.as_rows`` makes, as ``nats``."""
    rows = read_table(path, {"divergence": str, "statistic": str, "subset": str, "nats": float}, REMEDY)
    columns = pd.MultiIndex.from_frame(rows[["divergence", "statistic"]].drop_duplicates())
    return rows.pivot_table("nats", "subset", ["divergence", "statistic"], sort=False)[columns]
