"""The numbers that a run shows, by names that readers compare: the table's columns stay in an artifact."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from laq.report.tables import main_rows, summarise
from laq.sections.study import bits_name
from laq.study.tables import CHOOSING, REPORTING

# A network's numbers, and the columns of the study's table that give them.
SHOWN: Final = {
    "top1": "top1_sub_percent",
    "top1_balanced": "balanced_top1_sub_percent",
    "points_lost": "drop_sub_points",
    "size_kib": "size_kib",
    "mean_bits": "mean_bits",
    "top1_all_classes": "top1_all_percent",
    "relative_error": "relative_error_logits",
    "relative_error_held_back": "relative_error_held_back",
}
PROGRESS: Final = "progress_percent"  # of a study's cells that are measured
FINETUNED: Final = "finetuned"  # the prefix of what is measured after fine-tuning
_OF_FINETUNED: Final = ("top1", "top1_balanced", "points_lost")  # which a run shows beside the other network
# The champion is chosen by these, and reported by the one that did not choose it.
RANKING: Final = (CHOOSING, REPORTING, "size_bytes")
_CURVES: Final = {"top1": "top1_sub_percent_mean", "points_lost": "drop_sub_points_mean"}


def shown(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one network, by their short names."""
    found = {**row, "size_kib": round(row["size_bytes"] / 1024, 2)}
    return {name: found[column] for name, column in SHOWN.items() if not pd.isna(found.get(column))}


def scores(quantized: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of a run that has a network made of the original one, or of the fine-tuned one, or both."""
    by_base = {row["variant"]: shown(row) for row in quantized}
    tuned = by_base.get("finetuned_quantized", {})
    found = {f"{FINETUNED}/{name}": tuned[name] for name in _OF_FINETUNED if name in tuned}
    return {**by_base.get("quantized", tuned), **found}


def curves(summary: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Restricted top-1 and the points of it that are lost, by method: values by step, which is the bits.

    They are means over the subsets of ``summary`` for the study's first calibration. Bits that differ by
    layer are no step: they have a number of their own beside the curves.
    """
    found: dict[str, dict[int, float]] = {}
    rows = main_rows(summary[summary.method != "float"])
    for row in rows.to_dict("records"):
        base = "" if row["variant"] == "quantized" else f"_{FINETUNED}"
        bits = str(row["bits"])
        for name, column in _CURVES.items():
            if bits.isdigit():
                found.setdefault(f"{name}{base}/{row['method']}", {})[int(bits)] = row[column]
            else:
                by_layer = f"{name}{base}_by_layer/{row['method']}-{bits_name(bits)}"
                found[by_layer] = {0: row[column]}
    return found


def floats(summary: pd.DataFrame) -> dict[str, float]:
    """Restricted top-1 of the networks as they are."""
    rows = summary[summary.method == "float"].drop_duplicates("variant")
    names = {"original": "top1_float", "finetuned": f"top1_{FINETUNED}_float"}
    return {
        names[variant]: float(score)
        for variant, score in zip(rows.variant, rows.top1_sub_percent_mean, strict=True)
    }


def summary_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The means of some rows, which the report has of all."""
    return summarise(pd.DataFrame(rows))
