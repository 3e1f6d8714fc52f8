"""Turns data frames into the columns of the page's tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

HEADS: Final = {
    "top1_sub_percent": "top-1, restricted (%)",
    "top1_all_percent": "top-1, among all (%)",
    "top5_sub_percent": "top-5, restricted (%)",
    "top5_all_percent": "top-5, among all (%)",
    "balanced_top1_sub_percent": "balanced top-1, restricted (%)",
    "balanced_top1_all_percent": "balanced top-1, among all (%)",
    "drop_sub_points": "drop, restricted (points)",
    "drop_all_points": "drop, among all (points)",
    "sparsity_percent": "sparsity (%)",
}


@dataclass(frozen=True)
class Column:
    """A column's heading, the texts of its cells, and the numbers to sort it by (None: it holds texts)."""

    head: str
    shown: list[str]
    values: list[Any] | None = None


def columns_of(table: pd.DataFrame) -> Iterator[Column]:
    """The columns of ``table``: ``x_mean`` ± ``x_std`` become one, and ``x`` (``x_low`` to ``x_high``)."""
    for name in map(str, table.columns):
        stem = name.removesuffix("_mean")
        if name.endswith("_std") and f"{name.removesuffix('_std')}_mean" in table:
            continue
        if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in table:
            continue
        spread = table.get(f"{stem}_std") if stem != name else None
        head = HEADS.get(stem if spread is not None else name) or name.replace("_", " ")
        if pd.api.types.is_numeric_dtype(table[name]):
            values = ["" if pd.isna(value) else value for value in table[name].tolist()]
            ends = [f"{name}_low", f"{name}_high"]
            interval = table[ends] if set(ends) <= set(table) else None
            yield Column(head, _numbers(table[name], spread, interval), values)
        else:
            texts = table[name].map(lambda value: "" if pd.isna(value) else HEADS.get(str(value), str(value)))
            yield Column(head, texts.tolist())


def _numbers(
    values: "pd.Series[float]", deviations: "pd.Series[float] | None", ends: pd.DataFrame | None = None
) -> list[str]:
    """The numbers as texts; the largest decides the digits after the point, whole numbers have none."""
    known = values.dropna().astype(np.float64)
    largest = known.abs().max()
    whole = bool((known == known.round()).all())
    digits = 0 if whole or largest >= 1000 else 2 if largest > 1 else 4
    shown = values.map(lambda value: "" if pd.isna(value) else f"{value:z.{digits}f}")
    if deviations is not None:
        shown += deviations.map(lambda value: "" if pd.isna(value) else f" ± {value:.{digits}f}")
    if ends is not None:
        texts = ends.map(lambda value: f"{value:z.{digits}f}").agg(" to ".join, axis=1)
        shown += (" (" + texts + ")").where(ends.notna().all(axis=1), "")
    return [text.replace("-", "−") for text in shown]
