"""Matches the cells of two studies, and summarises the pairs and the cells without a partner."""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from laq.quantization.methods.registry import label_of, sort_methods
from laq.report.plotted import in_order
from laq.report.tables import BASE_OF
from laq.study.tables import NO_IMAGES
from laq.track.find_studies import TrackedStudy

SIDES: Final = ("first", "second")
# Two cells match if they agree in these columns; `nth` numbers the subsets of the same classes.
_CELL: Final = ["variant", "method", "bits", "calibration", "classes", "nth"]
_GROUP: Final = ["variant", "method", "bits", "calibration"]
_VARIANTS: Final = [variant for pair in BASE_OF.items() for variant in reversed(pair)]
# Matching cells are measured on these inputs, whatever other subsets their studies have.
INPUTS: Final = ("images", "network")


@dataclass(frozen=True)
class Comparison:
    """The two studies to compare."""

    first: TrackedStudy
    second: TrackedStudy

    @property
    def title(self) -> str:
        """The heading: the networks, the dataset and the labels of both studies."""
        networks = dict.fromkeys(s.tags.get("laq.network", "a network") for s in (self.first, self.second))
        on = self.first.tags.get("laq.dataset", "")
        return f"{' and '.join(networks)} on {on}: {self.first.label} and {self.second.label}"

    def differences(self) -> list[tuple[str, str, str]]:
        """The parameters, and then the commit, that differ: name, value in the first, value in the second."""
        ours, theirs = (
            {**study.params, "commit": study.tags.get("laq.commit", "")}
            for study in (self.first, self.second)
        )
        found = [(name, ours.get(name, ""), theirs.get(name, "")) for name in {**ours, **theirs}]
        return [row for row in found if row[1] != row[2]]


def match(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The cells of both studies, joined: a row per cell with each study's measurements, averaged over seeds.

    Column ``found`` says which study has the cell: both, first or second. ``difference_points`` is
    second − first in points of restricted top-1.
    """
    sides = _comparable(first, second)
    table = sides[0].merge(
        sides[1], "outer", _CELL, suffixes=("_first", "_second"), indicator="found", validate="1:1"
    )
    names = {"left_only": "first", "right_only": "second", "both": "both"}
    return _sorted(
        table.assign(
            found=table.found.astype(str).map(names),
            mean_bits=table[["mean_bits_first", "mean_bits_second"]].mean(axis=1),
            difference_points=(table.top1_sub_percent_second - table.top1_sub_percent_first).round(6),
        )
    )


def _comparable(first: pd.DataFrame, second: pd.DataFrame) -> list[pd.DataFrame]:
    """Both tables averaged over seeds, with ``nth`` numbering the subsets of the same classes.

    If each study has one calibration only, that column is emptied: two studies that were calibrated on
    different images then still match cell by cell, and the comparison shows the effect of the calibration.
    """
    sides = [first, second]
    if all(side.calibration[side.calibration != NO_IMAGES].nunique() < 2 for side in sides):
        sides = [side.assign(calibration="") for side in sides]
    keys = ["subset", *_CELL[:-1]]
    means = [side.drop(columns="seed").groupby(keys, sort=False).mean().reset_index() for side in sides]
    return [side.assign(nth=side.groupby(_CELL[:-1]).cumcount()) for side in means]


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of network, bits and method; of the methods, round-to-nearest is first."""
    bits, methods = in_order(table), ["float", *sort_methods(table.method)]
    places = {"variant": _VARIANTS, "bits": bits, "method": methods}
    ranks = {f"_{name}": table[name].map(values.index) for name, values in places.items()}
    in_place = table.assign(**ranks).sort_values([*ranks, "classes", "nth"], kind="stable")
    return in_place.drop(columns=list(ranks)).reset_index(drop=True)


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """The matching cells summarised, a row per variant, method, bits and calibration.

    The columns are the number n of cells, both means and sizes, and the mean and standard deviation of the
    difference.
    """
    grouped = table[table.found == "both"].groupby(_GROUP, sort=False)
    return grouped.agg(
        n=("nth", "size"),
        mean_first=("top1_sub_percent_first", "mean"),
        mean_second=("top1_sub_percent_second", "mean"),
        difference_mean=("difference_points", "mean"),
        difference_std=("difference_points", "std"),
        bytes_first=("size_bytes_first", "mean"),
        bytes_second=("size_bytes_second", "mean"),
    ).reset_index()


def each(table: pd.DataFrame) -> pd.DataFrame:
    """Each study summarised by itself, a row per variant, method, bits and calibration.

    The columns are each study's number of cells, mean, standard deviation and mean size.
    """
    measures = {
        f"{name}_{side}": (f"{column}_{side}", how)
        for side in SIDES
        for name, column, how in (
            ("n", "top1_sub_percent", "count"),
            ("mean", "top1_sub_percent", "mean"),
            ("std", "top1_sub_percent", "std"),
            ("bytes", "size_bytes", "mean"),
        )
    }
    return table.groupby(_GROUP, sort=False).agg(**measures).reset_index()


def alone(table: pd.DataFrame) -> dict[str, int]:
    """The number of quantized cells without a partner, by what is missing in the other study."""
    quantized = table[table.method != "float"]
    counts: Counter[str] = Counter()
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        there = quantized[quantized.found.isin([other, "both"])]
        for row in quantized[quantized.found == side].to_dict("records"):
            counts[f"{_lacking(row, row[f'subset_{side}'], there)} in the {side}"] += 1
    return dict(counts)


def _lacking(row: Mapping[Hashable, Any], subset: str, there: pd.DataFrame) -> str:
    """The part of the cell's setting that no cell of the other study (``there``) has."""
    if row["bits"] not in set(there.bits):
        return f"bits {row['bits']}"
    if row["method"] not in set(there.method):
        return f"method {label_of(row['method'])}"
    if row["classes"] not in set(there.classes):
        return f"the classes of {subset}"
    return f"{subset} by {label_of(row['method'])} at {row['bits']} bits"
