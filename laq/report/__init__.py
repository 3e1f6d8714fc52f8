"""Stage ``report``: the study's findings as numbers, tables and pictures."""

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
from laq.report.figures import draw_against_bits, draw_against_divergence
from laq.report.page import read_contents, write_page
from laq.report.statistics import correlate, summarise, with_drops
from laq.report.text import findings, markdown
from laq.study import FOLDER as STUDY
from laq.study import INPUTS, LAYERS, read_measurements, study_code

FOLDER = Path("data/report")
METRICS = "metrics.json"
PAGE = "page.html"
SUMMARY = "summary.csv"
TABLE = "measurements.csv"
TEXT = "report.md"
CORRELATIONS = "correlations.csv"
PROVENANCE = "provenance.json"


def run(params: Report) -> None:
    """Write ``metrics.json``, ``report.md``, the tables, the pictures and ``page.html``."""
    table = with_drops(read_measurements())
    summary, correlations, title = summarise(table), correlate(table, params), title_of(table)
    with replacing_folder(FOLDER) as folder:
        table.to_csv(folder / TABLE, index=False)
        summary.to_csv(folder / SUMMARY, index=False)
        correlations.to_csv(folder / CORRELATIONS, index=False)
        write_json(folder / METRICS, metrics(summary, correlations))
        (folder / TEXT).write_text(markdown(summary, correlations, title), encoding="utf-8")
        draw_against_divergence(folder / "accuracy_vs_divergence.png", table, title)
        draw_against_bits(folder / "accuracy_vs_bits.png", table, title)
        _draw_subsets(folder, table)
        tables = {"Summary": summary, "Correlations": correlations}
        write_page(folder / PAGE, read_contents(title, table, tables, findings(summary)))


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

    Those of the fewest bits, where methods differ most: ``bits``; ``top1``, the mean restricted top-1 in
    percent, in float and by method; ``rho``, the rank correlation of its drop with the divergence, for
    every method but round-to-nearest.
    """
    quantized = summary[summary.variant == "quantized"]
    bits = quantized.sort_values("mean_bits", kind="stable").bits.iloc[0]
    shown = quantized[quantized.bits == bits]
    asked = (correlations["drop"] == "drop_sub_points") & (correlations.variant == "quantized")
    rho = correlations[asked & (correlations.bits == bits) & (correlations.method != "rtn")]
    original = summary[summary.variant == "original"].top1_sub_percent_mean
    return {
        "bits": bits,
        "top1": {
            "float": float(original.iloc[0]),
            **dict(zip(shown.method, shown.top1_sub_percent_mean, strict=True)),
        },
        "rho": {row["method"]: row["rho"] for row in rho.to_dict("records") if not pd.isna(row["rho"])},
    }


def headline(summary: pd.DataFrame) -> dict[str, float]:
    """Mean restricted top-1 in percent of the original network, float and by method and bits."""
    rows = summary[summary.variant.isin(["original", "quantized"])].to_dict("records")
    return {
        "float" if row["method"] == "float" else f"{row['method']}-{bits_name(row['bits'])}": row[
            "top1_sub_percent_mean"
        ]
        for row in rows
    }


def publish(target: Path) -> None:
    """Copy the report to ``target`` with all that it takes to place it: parameters, hashes, commit.

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
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
        for file in (STUDY / LAYERS, PARAMS, DIVERGENCE / "heat_map.png"):
            shutil.copyfile(need(file), folder / file.name)
        write_json(folder / PROVENANCE, {**commit(), "inputs": inputs})


def read_summary() -> pd.DataFrame:
    """The table of means that the stage wrote."""
    types: dict[Any, Any] = {"bits": str, "levels": "Int64"}
    return pd.read_csv(need(FOLDER / SUMMARY), dtype=types)


def title_of(table: pd.DataFrame) -> str:
    """Network, dataset, and the subsets' number and sizes."""
    first = table.iloc[0]
    sizes = "/".join(str(s) for s in sorted(table.subset_size_classes.unique()))
    return f"{first.network} on {first.dataset}: {table.subset.nunique()} subsets of {sizes} classes"
