"""Stage ``report``: the study's findings as numbers, tables and figures."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from laq.divergence import FOLDER as DIVERGENCE
from laq.errors import LaqError
from laq.files import need, read_json, replacing_folder, write_json
from laq.params import FILE as PARAMS
from laq.params import Report, bits_name, load_params
from laq.provenance import commit
from laq.quantization.methods.registry import BASELINE
from laq.report.analysis import Analysis, analyse, title_of
from laq.report.answers import answers
from laq.report.correlations import DEPENDENCE
from laq.report.divergences import read_divergences
from laq.report.figures import draw_against_bits, draw_against_divergence
from laq.report.markdown import answers_text, findings, markdown
from laq.report.page import read_contents, write_page
from laq.report.tables import main_rows
from laq.study import FOLDER as STUDY
from laq.study import INPUTS, read_measurements, study_code
from laq.subsets import FILE as SUBSETS
from laq.subsets import read_subsets

__all__ = [
    "CORRELATIONS",
    "FOLDER",
    "METRICS",
    "TABLE",
    "TEXT",
    "headline",
    "metrics",
    "publish",
    "read_summary",
    "run",
    "subset_picture",
    "title_of",
]

FOLDER = Path("data/report")
METRICS = "metrics.json"
PAGE = "page.html"
SUMMARY = "summary.csv"
TABLE = "measurements.csv"
TEXT = "report.md"
CORRELATIONS = "correlations.csv"
# What the figures and DVC's plots show: one calibration, means over seeds.
PLOTTED = "plotted.csv"
PROVENANCE = "provenance.json"
# Not published: a figure for each subset, and rows that the table has, too.
_UNPUBLISHED = ("subsets", PLOTTED)


def run(params: Report) -> None:
    """Write ``metrics.json``, ``report.md``, the tables, the pictures and ``page.html``."""
    measurements, subsets = read_measurements(), read_subsets()
    if unknown := sorted(set(measurements.subset) - {subset.name for subset in subsets}):
        raise LaqError(f"{SUBSETS}: has no subset {unknown[0]}, which the study measured; run `dvc repro`")
    found = analyse(measurements, read_divergences(subsets, params.seed), params)
    with replacing_folder(FOLDER) as folder:
        _write(folder, found, params)
        shown = main_rows(found.cells)
        shown.to_csv(folder / PLOTTED, index=False)
        draw_against_divergence(folder / "accuracy_vs_divergence.png", shown, found.title)
        draw_against_bits(folder / "accuracy_vs_bits.png", shown, found.title)
        _draw_subsets(folder, shown)


def _write(folder: Path, found: Analysis, params: Report) -> None:
    """Write the tables, the metrics, the text and the page."""
    answered = answers_text(answers(found, params), params)
    for name, table in found.tables().items():
        table.to_csv(folder / name, index=False)
    write_json(folder / METRICS, metrics(found.summary, found.correlations))
    (folder / TEXT).write_text(markdown(found, answered), encoding="utf-8")
    texts = findings(found.summary), answered
    write_page(folder / PAGE, read_contents(found.title, found.table, _on_page(found), *texts))


def _on_page(found: Analysis) -> dict[str, pd.DataFrame]:
    """The tables to read there; correlations only of the restricted drop, to keep them few."""
    rho = found.correlations
    asked = rho[(rho.question == DEPENDENCE) & (rho.score == "drop_sub_points")] if len(rho) else rho
    return {
        "Means over subsets": found.summary,
        "Divergence and drop": asked.dropna(axis=1, how="all"),
        "In pairs": found.comparisons,
    }


def subset_picture(subset: str) -> Path:
    """Where in the report one subset's accuracies against bits are drawn."""
    return Path("subsets") / f"{subset}.png"


def _draw_subsets(folder: Path, table: pd.DataFrame) -> None:
    for name, rows in table.groupby("subset"):
        picture = folder / subset_picture(str(name))
        picture.parent.mkdir(exist_ok=True)
        draw_against_bits(picture, rows, f"{rows.iloc[0].network} on {rows.iloc[0].dataset}: {name}")


def metrics(summary: pd.DataFrame, correlations: pd.DataFrame) -> dict[str, Any]:
    """The few numbers that a person compares between experiments, of the original network.

    Those of the fewest bits, where methods differ most, and of the study's first calibration (``main_rows``):
    ``bits``; ``top1``, the mean restricted top-1 in percent, in float and by method; ``rho``, the rank
    correlation of its drop with the divergence, for every method but round-to-nearest.
    """
    quantized = main_rows(summary[summary.variant == "quantized"])
    bits = quantized.sort_values("mean_bits", kind="stable").bits.iloc[0]
    shown = quantized[quantized.bits == bits]
    asked = {"question": DEPENDENCE, "measure": "rho", "score": "drop_sub_points", "variant": "quantized"}
    rho = correlations[(correlations[list(asked)] == pd.Series(asked)).all(axis=1)]
    rho = main_rows(rho[(rho.bits == bits) & (rho.method != BASELINE)])
    original = summary[summary.variant == "original"].top1_sub_percent_mean
    return {
        "bits": bits,
        "top1": {
            "float": float(original.iloc[0]),
            **dict(zip(shown.method, shown.top1_sub_percent_mean, strict=True)),
        },
        "rho": {m: round(r, 4) for m, r in zip(rho.method, rho.effect, strict=True) if not pd.isna(r)},
    }


def headline(summary: pd.DataFrame) -> dict[str, float]:
    """Mean restricted top-1 in percent of the original network, float and by method and bits.

    Names of another calibration than the study's first one (``main_rows``) end in its name.
    """
    shown = summary[summary.variant.isin(["original", "quantized"])]
    first = set(main_rows(shown).calibration)
    found = {}
    for row in shown.to_dict("records"):
        other = "" if row["calibration"] in first else f"-{row['calibration']}"
        name = "float" if row["method"] == "float" else f"{row['method']}-{bits_name(row['bits'])}{other}"
        found[name] = float(row["top1_sub_percent_mean"])
    return found


def publish(target: Path) -> None:
    """Copy the report to ``target`` with all that it takes to place it: parameters, hashes, commit.

    The table of measurements is compressed: it belongs in git and is large.

    Raises:
        LaqError: ``target`` holds something else, or the study was made by other code or parameters.
    """
    if target.exists() and not (target / PROVENANCE).is_file():
        raise LaqError(
            f"--publish {target}: holds something else than a published report; name another folder"
        )
    inputs = read_json(STUDY / INPUTS)
    need(FOLDER / METRICS)
    if inputs != {**inputs, "code": study_code(), "params": load_params().study.model_dump(mode="json")}:
        raise LaqError(f"{STUDY}: made by other code or parameters than are here now; run `dvc repro`")
    with replacing_folder(target) as folder:
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_UNPUBLISHED))
        # The same bytes whenever it is made; pandas reads it as it is.
        compressed = gzip.compress((folder / TABLE).read_bytes(), mtime=0)
        (folder / f"{TABLE}.gz").write_bytes(compressed)
        (folder / TABLE).unlink()
        for file in (PARAMS, DIVERGENCE / "heat_map.png"):
            shutil.copyfile(need(file), folder / file.name)
        write_json(folder / PROVENANCE, {**commit(), "inputs": inputs})


def read_summary() -> pd.DataFrame:
    """The table of means that the stage wrote."""
    types: dict[Any, Any] = {"bits": str, "levels": "Int64"}
    return pd.read_csv(need(FOLDER / SUMMARY), dtype=types)
