"""What lies on disk, as the runs that it makes: a study's, and one per subset and bit-width."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from laq.dataset import FOLDER as DATASET
from laq.dataset import read_manifest
from laq.divergence import FOLDER as DIVERGENCE
from laq.errors import LaqError
from laq.files import digest, md5, need, read_json
from laq.params import Params
from laq.provenance import commit
from laq.report import CORRELATIONS, METRICS, TEXT
from laq.report import FOLDER as REPORT
from laq.study import FOLDER as STUDY
from laq.study import INPUTS, LAYERS, MEASUREMENTS, read_measurements, weights_file
from laq.subsets import Subset, read_subsets
from laq.tracking.store import Record

Row = Mapping[str, Any]


def experiment_name(params: Params) -> str:
    """An experiment for each study: results on different data never stand in one table."""
    return f"laq-{params.name}"


def study_record(params: Params) -> Record:
    """The parent run: the whole study's parameters, numbers, report and pictures."""
    rows = _rows(read_measurements())
    settings = params.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    return Record(
        key=study_key(params),
        name=f"{params.name}: {rows[0]['network']}, {len(read_subsets())} subsets",
        params=dict(_flat(settings)),
        metrics={k: v for k, v in _flat(read_json(need(REPORT / METRICS))) if v is not None},
        tags=tags(params.name, rows[0]),
        files=[
            *((path, "report") for path in sorted(REPORT.iterdir())),
            *((path, "divergence") for path in sorted(DIVERGENCE.glob("*.png"))),
            (STUDY / INPUTS, "study"),
        ],
        note=need(REPORT / TEXT).read_text(encoding="utf-8"),
    )


def study_key(params: Params) -> str:
    """The name of the study's result: the hash of its parameters, table and report."""
    files = (STUDY / MEASUREMENTS, STUDY / INPUTS, REPORT / TEXT, REPORT / CORRELATIONS)
    return digest([params.model_dump(), [md5(file) for file in files]])


def check_study(params: Params) -> None:
    """See that what lies in ``data/`` is the study that ``params`` describe.

    Raises:
        LaqError: it is another one's.
    """
    made_from = read_json(STUDY / INPUTS)["params"]
    check_dataset(params)
    if made_from != params.study.model_dump(mode="json"):
        raise LaqError(f"{STUDY}: made with other parameters than params.yaml has now; run `dvc repro`")


def check_dataset(params: Params) -> None:
    """See that the images in ``data/`` are the study's.

    Raises:
        LaqError: they are another one's.
    """
    found = read_manifest(DATASET)["name"]
    if found != params.dataset.name:
        raise LaqError(
            f"{DATASET}: holds {found}, the study {params.name} in params.yaml is on "
            f"{params.dataset.name}; run `dvc repro`"
        )


def cell_records(params: Params) -> Iterator[Record]:
    """A run per subset and bit-width, with every variant and method in it."""
    rows = _rows(read_measurements())
    layers = _rows(pd.read_csv(need(STUDY / LAYERS), dtype={"levels": "Int64"}))
    for subset in read_subsets():
        own = [row for row in rows if row["subset"] == subset.name]
        for bits in params.study.bits:
            chosen = [row for row in own if row["method"] == "float" or row["bits"] == str(bits)]
            names = {
                row["cell"]: weights_file(STUDY, row["cell"]) for row in chosen if row["method"] != "float"
            }
            outcome = Outcome(subset, chosen, [r for r in layers if r["cell"] in names], names)
            key = digest([study_key(params), subset.name, bits])
            yield replace(cell_record(params, outcome), key=key)


@dataclass(frozen=True)
class Outcome:
    """One subset at one bit-width: rows of the study's tables, and the quantized weights by cell."""

    subset: Subset
    rows: Sequence[Row]
    layers: Sequence[Row]
    weights: Mapping[str, Path]


def cell_record(params: Params, outcome: Outcome) -> Record:
    """The run of one subset at one bit-width."""
    subset, first, last = outcome.subset, outcome.rows[0], outcome.rows[-1]
    settings = params.study.model_dump(mode="json", exclude={"bits", "methods"})
    return Record(
        name=f"{subset.name}, {last['bits']} bits",
        params={
            "bits": last["bits"],
            "subset": subset.name,
            "levels": "" if pd.isna(last["levels"]) else last["levels"],
            "classes": ", ".join(subset.class_names),
            "network": first["network"],
            "dataset": first["dataset"],
            **settings,
        },
        metrics={**_scores(outcome.rows), **_divergences(subset)},
        tags=tags(params.name, first),
        files=[(path, f"networks/{cell}") for cell, path in outcome.weights.items()],
        documents={"layers.json": _by_cell(outcome.layers), "subset.json": vars(subset)},
    )


def describe(outcome: Outcome) -> str:
    """The outcome as a small table: a line per variant and method."""
    head = f"{outcome.subset.name}: {', '.join(outcome.subset.class_names)}"
    width = max(len(str(row["bits"])) for row in outcome.rows)
    lines = [
        f"  {row['variant']:<20} {row['method']:<7} {row['bits']!s:>{width}} bits   top-1 "
        f"{row['top1_sub_percent']:6.2f} % of the subset, {row['top1_all_percent']:6.2f} % of all classes"
        for row in outcome.rows
    ]
    return "\n".join([head, *lines])


def tags(study: str, row: Row) -> dict[str, str]:
    """What places a run: study, data and code."""
    found = {"study": study, "dataset": row["dataset"], "network": row["network"], **commit()}
    return {f"laq.{name}": str(value) for name, value in found.items()}


def _scores(rows: Sequence[Row]) -> dict[str, float]:
    """Metrics named ``variant/score``, or ``method/variant/score`` when quantized."""
    return {
        f"{'' if row['method'] == 'float' else row['method'] + '/'}{row['variant']}/{name}": value
        for row in rows
        for name, value in row.items()
        if name.endswith("_percent") or name.startswith("relative_error") or name == "mean_bits"
        if not pd.isna(value)
    }


def _divergences(subset: Subset) -> dict[str, float]:
    return {f"divergence/{name}": v for name, v in vars(subset).items() if name.endswith("_divergence")}


def _by_cell(layers: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Layers, with their bits and levels, under ``method/variant``."""
    result: dict[str, list[dict[str, Any]]] = {}
    for row in layers:
        place = f"{row['method']}/{row['variant']}"
        shown = {k: v for k, v in row.items() if k not in {"cell", "subset", "variant", "method"}}
        result.setdefault(place, []).append(shown)
    return result


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
