"""The study's tables: drops in accuracy, means over seeds, and means over subsets."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.study import NO_IMAGES

Floats = NDArray[np.float64]
BASE_OF: Final = {"quantized": "original", "finetuned_quantized": "finetuned"}
SCORES: Final = ("top1_all_percent", "top1_sub_percent", "top5_all_percent", "top5_sub_percent")
DROPS: Final = {"top1_all_percent": "drop_all_points", "top1_sub_percent": "drop_sub_points"}
GROUP: Final = ["variant", "method", "bits", "calibration"]  # cells that differ by subset and seed alone
SEED_SPREAD: Final = "top1_sub_seed_sd"
_MEASURED: Final = [
    *SCORES, *DROPS.values(), "sparsity_percent", "relative_error_mean", "relative_error_logits",
]  # fmt: skip


def with_drops(measurements: pd.DataFrame) -> pd.DataFrame:
    """Add the percentage points of top-1 that each quantized row lost against its own base."""
    floats = measurements[measurements.method == "float"]
    bases = floats.set_index(["subset", "variant"])[list(DROPS)]
    keys = [(s, BASE_OF.get(v, v)) for s, v in zip(measurements.subset, measurements.variant, strict=True)]
    losses = bases.loc[keys].to_numpy() - measurements[list(DROPS)].to_numpy()
    drops = pd.DataFrame(losses, index=measurements.index, columns=list(DROPS.values()))
    return pd.concat([measurements, drops.round(6)], axis=1)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A row per subset, variant, method, bits and calibration: means over the seeds, which are no subjects.

    ``seeds`` says how many there were, ``top1_sub_seed_sd`` is the standard deviation of the restricted
    top-1 over them, in points; missing where there is one.
    """
    grouped = table.groupby(["subset", *GROUP], sort=False)
    means = grouped[[c for c in table.select_dtypes("number") if c not in {"levels", "seed"}]].mean()
    others = grouped[[c for c in table if c not in {*means.columns, *means.index.names, "seed"}]].first()
    if "levels" in table:
        others["levels"] = grouped.levels.agg(_common)
    spread = grouped.top1_sub_percent.std().rename(SEED_SPREAD)
    return pd.concat([others, means, spread, grouped.size().rename("seeds")], axis=1).reset_index()


def summarise(table: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Per variant, method, bits and calibration: mean and standard deviation over n subsets.

    Each subset's seeds are averaged first; ``top1_sub_seed_sd`` is the mean over subsets of the standard
    deviation over seeds. ``by`` names columns to tell subsets apart by, such as ``subset_size_classes``.
    """
    grouped = over_seeds(table).groupby([*by, *GROUP], sort=False)
    numbers = grouped[_MEASURED].agg(["mean", "std"])
    numbers.columns = [f"{column[0]}_{column[1]}" for column in numbers.columns]
    sizes = grouped.agg(
        levels=("levels", _common),
        mean_bits=("mean_bits", "mean"),
        n=("subset", "size"),
        seeds=("seeds", "max"),
        **{SEED_SPREAD: (SEED_SPREAD, "mean")},
    )
    return sizes.join(numbers).reset_index().round(4)


def complete(wide: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The columns of a table (subsets, cells) by the subsets that they have, each time without the others."""
    there = wide.notna().T.apply(tuple, axis=1)
    for _, columns in wide.T.groupby(there, sort=False):
        yield columns.T.dropna()


def _common(values: "pd.Series[int]") -> object:
    """The value that all rows have; none where one has none, as bits that differ by subset may do."""
    found = values.unique()
    return found[0] if len(found) == 1 else pd.NA


def main_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a study's first calibration, by their column ``calibration``.

    What used images of the subset, or of all classes where a study has nothing else; and what used none.
    """
    used = set(rows.calibration) - {NO_IMAGES}
    first = {NO_IMAGES, "subset"} if "subset" in used else {NO_IMAGES, *used}
    return rows[rows.calibration.isin(first)]


def log_curve(x: Floats, y: Floats) -> tuple[float, float]:
    """The least-squares a and c of y = a ln x + c.

    The predecessor's a ln(b x) + c is the same family: b only moves c.
    """
    slope, intercept = np.polyfit(np.log(x), y, 1)
    return float(slope), float(intercept)
