"""Stage ``report``: analyses the study and writes its numbers, tables, figures and page."""

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laq.dataset.layout import MANIFEST
from laq.errors import LaqError
from laq.files import need, replacing_folder, write_json
from laq.git import commit
from laq.machine import processor
from laq.network.published import publish_weights
from laq.paths import DATASET, DESIGN, DIVERGENCE, NETWORK, SUBSETS, WEIGHTS
from laq.paths import REPORT as FOLDER
from laq.provenance import read_records
from laq.quantization.methods.registry import BASELINE
from laq.report.analysis import Analysis, analyse, title_of
from laq.report.dependence import NEARNESS
from laq.report.divergences import SubsetDivergences, read_divergences
from laq.report.figures import draw_against_bits, draw_against_divergence
from laq.report.loss_figure import draw_points_lost
from laq.report.markdown import answers_text, findings, markdown
from laq.report.page import PageContents, write_page
from laq.report.tables import main_rows
from laq.sections.base import FILE as PARAMS
from laq.sections.network import Network
from laq.sections.report import Report
from laq.study.tables import read_measurements, read_table
from laq.subsets.matrix import read_divergence
from laq.subsets.subset import Matrix, Subset, read_subsets

__all__ = [
    "COMPARISONS",
    "FOLDER",
    "METRICS",
    "PAGE",
    "PARAMS",
    "PROVENANCE",
    "TABLE",
    "TEXT",
    "Source",
    "metrics",
    "publish",
    "read_summary",
    "run",
    "subset_picture",
    "title_of",
    "write_report",
]

METRICS = "metrics.json"
PAGE = "page.html"
SUMMARY = "summary.csv"
TABLE = "measurements.csv"
TEXT = "report.md"
COMPARISONS = "comparisons.csv"
DEPENDENCE = "dependence.csv"
# The rows that the figures and DVC's plots show: one calibration, means over seeds.
PLOTTED = "plotted.csv"
PROVENANCE = "provenance.json"
IMAGES = "dataset.json"  # the manifest of the images, in what is published
# These are not published: the figure of each subset, and rows that the table of measurements repeats.
_UNPUBLISHED = ("subsets", PLOTTED)


@dataclass(frozen=True)
class Source:
    """What a report is made from: the cells, the subsets, and the divergences of classes and within subsets.

    ``matrix`` (C, C) is in nats; ``class_names`` name its rows. ``asked_before`` is whether the primary
    question was fixed before the study ran.
    """

    measurements: pd.DataFrame
    subsets: list[Subset]
    matrix: Matrix
    class_names: list[str]
    divergences: SubsetDivergences
    asked_before: bool = True


def run(params: Report) -> None:
    """Write ``metrics.json``, ``report.md``, the tables, the figures and ``page.html``.

    Raises:
        LaqError: an earlier stage's output is missing or belongs to another study.
    """
    measurements, subsets = read_measurements(), read_subsets()
    if unknown := sorted(set(measurements.subset) - {subset.name for subset in subsets}):
        raise LaqError(f"{SUBSETS}: has no subset {unknown[0]}, which the study measured; run `dvc repro`")
    source = Source(measurements, subsets, *read_divergence(), read_divergences(subsets))
    with replacing_folder(FOLDER) as folder:
        found = write_report(folder, source, params)
        found.table.to_csv(folder / TABLE, index=False)
        shown = main_rows(found.cells)
        shown.to_csv(folder / PLOTTED, index=False)
        _draw_subsets(folder, shown)


def write_report(folder: Path, source: Source, params: Report) -> Analysis:
    """Write the report to ``folder``, but for the table of measurements and the figures of single subsets."""
    found = analyse(source.measurements, source.divergences, params)
    for name, table in found.tables().items():
        table.to_csv(folder / name, index=False)
    write_json(folder / METRICS, metrics(found.summary, found.dependence))
    answered = answers_text(found, params, asked_before=source.asked_before)
    (folder / TEXT).write_text(markdown(found, answered), encoding="utf-8")
    contents = PageContents(
        title=found.title,
        table=found.table,
        subsets=source.subsets,
        matrix=source.matrix,
        class_names=source.class_names,
        tables=_page_tables(found),
        text=findings(found.summary),
        answers=answered,
    )
    write_page(folder / PAGE, contents)
    shown = main_rows(found.cells)
    draw_against_divergence(folder / "accuracy_vs_divergence.png", shown, found.title)
    draw_against_bits(folder / "accuracy_vs_bits.png", shown, found.title)
    draw_points_lost(folder / "points_lost.png", shown, main_rows(found.comparisons), found.title)
    return found


def _page_tables(found: Analysis) -> dict[str, pd.DataFrame]:
    """The tables of the page by their headings."""
    hidden = ["question", "divergence", "statistic"]
    return {
        "Means over subsets": found.summary,
        "Effects of the divergence and of the accuracy before quantization": found.dependence.drop(
            columns=hidden
        ),
        "Paired comparisons": found.comparisons,
    }


def subset_picture(subset: str) -> Path:
    """The file in the report's folder with the figure of one subset's accuracies against bits."""
    return Path("subsets") / f"{subset}.png"


def _draw_subsets(folder: Path, table: pd.DataFrame) -> None:
    for name, rows in table.groupby("subset"):
        picture = folder / subset_picture(str(name))
        picture.parent.mkdir(exist_ok=True)
        draw_against_bits(picture, rows, f"{rows.iloc[0].network} on {rows.iloc[0].dataset}: {name}")


def metrics(summary: pd.DataFrame, dependence: pd.DataFrame) -> dict[str, Any]:
    """The few numbers of the original network that people compare between experiments.

    They are taken at the fewest bits, where methods differ most, and for the study's first calibration
    (``main_rows``). ``bits`` names these bits. ``top1`` is the mean restricted top-1 in percent, of the float
    network and by method. ``lost_per_halving`` is the points of restricted top-1 that are lost more for each
    halving of the divergence, for every method but round-to-nearest.
    """
    quantized = main_rows(summary[summary.variant == "quantized"])
    bits = quantized.sort_values("mean_bits", kind="stable").bits.iloc[0]
    shown = quantized[quantized.bits == bits]
    asked = {
        "score": "drop_sub_points",
        "variable": NEARNESS,
        "beside": "",
        "variant": "quantized",
        "bits": bits,
    }
    found = dependence[(dependence[list(asked)] == pd.Series(asked)).all(axis=1)]
    found = main_rows(found[(found.method != BASELINE) & found.effect.notna()])
    original = summary[summary.variant == "original"].top1_sub_percent_mean
    return {
        "bits": bits,
        "top1": {
            "float": float(original.iloc[0]),
            **dict(zip(shown.method, shown.top1_sub_percent_mean, strict=True)),
        },
        "lost_per_halving": {m: round(e, 4) for m, e in zip(found.method, found.effect, strict=True)},
    }


def publish(target: Path, params: Network) -> None:
    """Copy the report to ``target`` with all that it takes to place it and to measure it again.

    These are the parameters, the records of all stages, the commit, the processor, the hashes of the images,
    the subsets, and the weights that the network's source does not give. The table of measurements is
    compressed: it belongs in git and is large.

    Raises:
        LaqError: ``target`` holds something else than a published report.
    """
    if target.exists() and not (target / PROVENANCE).is_file():
        raise LaqError(
            f"--publish {target}: holds something else than a published report; name another folder"
        )
    with replacing_folder(target) as folder:
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_UNPUBLISHED))
        # The same bytes whenever it is made; pandas reads it as it is.
        compressed = gzip.compress((folder / TABLE).read_bytes(), mtime=0)
        (folder / f"{TABLE}.gz").write_bytes(compressed)
        (folder / TABLE).unlink()
        network = [need(NETWORK / DESIGN), *(f for f in NETWORK.iterdir() if f.name not in {DESIGN, WEIGHTS})]
        for file in (PARAMS, DIVERGENCE / "heat_map.png", SUBSETS, *network):
            shutil.copyfile(need(file), folder / file.name)
        shutil.copyfile(need(DATASET / MANIFEST), folder / IMAGES)
        publish_weights(folder, params)
        record = {**commit(), "processor": processor(), "stages": read_records("report")}
        write_json(folder / PROVENANCE, record)


def read_summary() -> pd.DataFrame:
    """The table of means that the stage wrote.

    Raises:
        LaqError: the file is missing or damaged.
    """
    texts = ("variant", "method", "bits", "calibration")
    return read_table(FOLDER / SUMMARY, dict.fromkeys(texts, str) | {"top1_sub_percent_mean": float})
