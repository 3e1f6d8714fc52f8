"""Stage ``report``: analyses the study and writes its numbers, tables, figures and page."""

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laq.charts import class_map
from laq.charts.divergence_matrix import of_classes
from laq.charts.files import write
from laq.charts.registry import CHARTS
from laq.charts.theme import Caption
from laq.dataset.images import read_images, read_manifest
from laq.dataset.layout import MANIFEST
from laq.dataset.registry import DATASETS
from laq.errors import LaqError
from laq.files import need, replacing_folder, write_json
from laq.git import commit
from laq.machine import processor
from laq.network.published import publish_weights
from laq.paths import DATASET, DESIGN, NETWORK, SUBSETS, WEIGHTS
from laq.paths import REPORT as FOLDER
from laq.provenance import read_records
from laq.quantization.methods.registry import BASELINE
from laq.report.analysis import Analysis, analyse, title_of
from laq.report.answers import verdicts
from laq.report.dependence import NEARNESS
from laq.report.divergences import SubsetDivergences, read_divergences, read_plane
from laq.report.layers import layer_means, read_layers
from laq.report.markdown import answers_text, markdown, note
from laq.report.page import write_page
from laq.report.page.contents import Floats, PageContents
from laq.report.page.examples import example_pictures, without_examples
from laq.report.plotted import effects, plotted
from laq.report.tables import main_rows
from laq.report.unchanged import FILES, PROVENANCE, hash_files
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
# The rows that the charts and DVC's plots show.
PLOTTED = "plotted.csv"
LAYERS = "layers.csv"
IMAGES = "dataset.json"  # the manifest of the images, in what is published
# This is not published: the table of measurements has these rows, too.
_UNPUBLISHED = (PLOTTED,)


@dataclass(frozen=True)
class Source:
    """What a report is made from: the cells, the subsets, and the divergences of classes and within subsets.

    ``matrix`` (C, C) is in nats; ``class_names`` name its rows. ``layers`` is the table of
    ``layers.layer_means``, without rows where nothing is known of layers. ``examples`` is the address of the
    classes' pictures, empty where these are not at hand. ``asked_before`` is whether the primary question was
    fixed before the study ran. ``plane`` (C, 5) is where the classes lie in a plane, which former reports did
    not keep.
    """

    measurements: pd.DataFrame
    subsets: list[Subset]
    matrix: Matrix
    class_names: list[str]
    divergences: SubsetDivergences
    layers: pd.DataFrame
    asked_before: bool = True
    examples: str = ""
    plane: Floats | None = None


def run(params: Report) -> None:
    """Write ``metrics.json``, ``report.md``, the tables, the figures and ``page.html``.

    Raises:
        LaqError: an earlier stage's output is missing or belongs to another study.
    """
    measurements, subsets = read_measurements(), read_subsets()
    if unknown := sorted(set(measurements.subset) - {subset.name for subset in subsets}):
        raise LaqError(f"{SUBSETS}: has no subset {unknown[0]}, which the study measured; run `dvc repro`")
    layers = layer_means(read_layers(), measurements)
    examples = example_pictures(read_images(DATASET, "train"))
    within = read_divergences(subsets)
    matrix, names = read_divergence()
    plane = read_plane(len(names))
    source = Source(measurements, subsets, matrix, names, within, layers, examples=examples, plane=plane)
    with replacing_folder(FOLDER) as folder:
        found = write_report(folder, source, params)
        found.table.to_csv(folder / TABLE, index=False)
        _plotted(found).to_csv(folder / PLOTTED, index=False)


def write_report(folder: Path, source: Source, params: Report) -> Analysis:
    """Write the report to ``folder``, but for the table of measurements and what charts show of it."""
    found = analyse(source.measurements, source.divergences, params)
    for name, table in found.tables().items():
        table.to_csv(folder / name, index=False)
    if len(source.layers):
        source.layers.to_csv(folder / LAYERS, index=False)
    write_json(folder / METRICS, metrics(found.summary, found.dependence))
    answered = answers_text(found, params, asked_before=source.asked_before)
    (folder / TEXT).write_text(markdown(found, answered), encoding="utf-8")
    contents = PageContents(
        study=_caption(found, params),
        table=found.table,
        subsets=source.subsets,
        matrix=source.matrix,
        class_names=source.class_names,
        tables=_page_tables(found),
        verdicts=verdicts(found, params),
        note=note(found, params, asked_before=source.asked_before),
        effects=effects(found.comparisons, found.dependence),
        examples=source.examples,
        plane=source.plane,
    )
    write_page(folder / PAGE, contents)
    _draw(folder, {"plotted": _plotted(found), "layers": source.layers}, _caption(found, params))
    write(folder / "divergence_matrix.png", of_classes(source.matrix, source.class_names))
    if source.plane is not None:
        write(folder / "class_map.png", class_map.picture(source.plane, source.class_names))
    return found


def _plotted(found: Analysis) -> pd.DataFrame:
    return plotted(found.cells, main_rows(found.comparisons), main_rows(found.dependence))


def _caption(found: Analysis, params: Report) -> Caption:
    return Caption(found.title, params.confidence, params.primary.method, str(params.primary.bits))


def _draw(folder: Path, tables: Mapping[str, pd.DataFrame], study: Caption) -> None:
    """Draw all charts that the study has the numbers for; one of networks in float alone has none."""
    for name, chart in CHARTS.items():
        rows = tables[chart.table]
        if rows[chart.shows].notna().any():
            write(folder / f"{name}.png", chart.picture(rows, study))


def _page_tables(found: Analysis) -> dict[str, pd.DataFrame]:
    """The tables of the page by their headings; what was found stands where no screen cuts it off."""
    cell = ["variant", "method", "bits", "calibration"]
    lost = ["drop_sub_points_mean", "drop_sub_points_std", "top1_sub_percent_mean", "top1_sub_percent_std"]
    effect = ["effect", "effect_low", "effect_high", "p_value", "n"]
    named = {"low": "effect_low", "high": "effect_high"}
    asked, pairs = found.dependence.rename(columns=named), found.comparisons.rename(columns=named)
    return {
        "Means over subsets": found.summary[[*cell, *lost, "n"]],
        "Effects of the divergence and of the accuracy before quantization": asked[
            ["variant", "method", "bits", "variable", "beside", *effect, "score", "calibration"]
        ],
        "Paired comparisons": pairs[["question", "first", "second", *effect, *cell, "score"]],
    }


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

    These are the parameters, the records of all stages, the commit, the processor, the hashes of the images
    and of every published file, the subsets, and the weights that the network's source does not give. The
    table of measurements is compressed: it belongs in git and is large. The page keeps its example pictures
    only if the dataset's entry says that these may be given away.

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
        if not ((source := DATASETS.get(read_manifest(DATASET).name)) and source.free):
            page = (folder / PAGE).read_text(encoding="utf-8")
            (folder / PAGE).write_text(without_examples(page), encoding="utf-8", newline="\n")
        network = [need(NETWORK / DESIGN), *(f for f in NETWORK.iterdir() if f.name not in {DESIGN, WEIGHTS})]
        for file in (PARAMS, SUBSETS, *network):
            shutil.copyfile(need(file), folder / file.name)
        shutil.copyfile(need(DATASET / MANIFEST), folder / IMAGES)
        publish_weights(folder, params)
        record = {**commit(), "processor": processor(), "stages": read_records("report")}
        write_json(folder / PROVENANCE, {**record, FILES: hash_files(folder)})


def read_summary() -> pd.DataFrame:
    """The table of means that the stage wrote.

    Raises:
        LaqError: the file is missing or damaged.
    """
    texts = ("variant", "method", "bits", "calibration")
    return read_table(FOLDER / SUMMARY, dict.fromkeys(texts, str) | {"top1_sub_percent_mean": float})
