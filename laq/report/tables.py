"""The study's tables: drops in accuracy, means over seeds, and means over subsets."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.errors import LaqError
from laq.study.outcomes import OUTCOMES
from laq.study.tables import NO_IMAGES

Floats = NDArray[np.float64]
BASE_OF: Final = {"quantized": "original", "finetuned_quantized": "finetuned"}
SCORES: Final = ("top1_all_percent", "top1_sub_percent", "top5_all_percent", "top5_sub_percent")
# Only in tables of datasets that have more test images of one class than of another.
BALANCED: Final = ("balanced_top1_all_percent", "balanced_top1_sub_percent")
DROPS: Final = {"top1_all_percent": "drop_all_points", "top1_sub_percent": "drop_sub_points"}
GROUP: Final = [
    "variant",
    "method",
    "bits",
    "calibration",
]  # cells of one group differ in subset and seed only
SEED_SPREAD: Final = "top1_sub_seed_sd"
ERRORS_GAINED: Final = "errors_gained_log"
_CORRECTION: Final = (
    0.05  # points added to both rates of errors, half an image of 1000, so that the ratio is finite
)
_MEASURED: Final = [
    *SCORES, *BALANCED, *DROPS.values(), ERRORS_GAINED,
    *(name for name in OUTCOMES if name not in (ERRORS_GAINED, *DROPS.values())),
    "sparsity_percent", "relative_error_mean", "relative_error_logits", "relative_error_held_back",
    "tuned", "held_back_before_nats", "held_back_after_nats", "codes_moved_percent",
]  # fmt: skip


def with_drops(measurements: pd.DataFrame) -> pd.DataFrame:
    """Add the points of top-1 that each quantized network lost against the same network in float.

    ``errors_gained_log`` is the logarithm of its restricted errors divided by those of the float network;
    where the study has measured it on the images themselves, that is kept.

    Raises:
        LaqError: a float network is missing.
    """
    floats = measurements[measurements.method == "float"]
    bases = floats.set_index(["subset", "variant"])[list(DROPS)]
    keys = [(s, BASE_OF.get(v, v)) for s, v in zip(measurements.subset, measurements.variant, strict=True)]
    if missing := sorted(set(keys).difference(bases.index)):
        subset, variant = missing[0]
        raise LaqError(f"measurements: {subset} has no cell of the {variant} network; run `dvc repro`")
    losses = bases.loc[keys].to_numpy() - measurements[list(DROPS)].to_numpy()
    drops = pd.DataFrame(losses, index=measurements.index, columns=list(DROPS.values()))
    if ERRORS_GAINED not in measurements:
        errors = 100 + _CORRECTION - measurements.top1_sub_percent
        drops[ERRORS_GAINED] = np.log(errors / (errors - drops[DROPS["top1_sub_percent"]]))
    rest = measurements.drop(columns=list(DROPS.values()), errors="ignore")
    return pd.concat([rest, drops.round(6)], axis=1)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, a row per subset, variant, method, bits and calibration.

    Seeds are averaged before any statistics because they are repeated measurements of one subset. ``seeds``
    is their number, ``top1_sub_seed_sd`` the standard deviation of restricted top-1 over them in points,
    which is missing if there is only one.
    """
    grouped = table.groupby(["subset", *GROUP], sort=False)
    means = grouped[[c for c in table.select_dtypes("number") if c not in {"levels", "seed"}]].mean()
    others = grouped[[c for c in table if c not in {*means.columns, *means.index.names, "seed"}]].first()
    if "levels" in table:
        others["levels"] = grouped.levels.agg(_common)
    spread = grouped.top1_sub_percent.std().rename(SEED_SPREAD)
    return pd.concat([others, means.round(6), spread, grouped.size().rename("seeds")], axis=1).reset_index()


def summarise(table: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Mean and standard deviation over n subsets, a row per variant, method, bits and calibration.

    Each subset's seeds are averaged first; ``top1_sub_seed_sd`` is the mean over subsets of the standard
    deviation over seeds. ``by`` names further columns to group by, such as ``subset_size_classes``.
    """
    grouped = over_seeds(table).groupby([*by, *GROUP], sort=False)
    numbers = grouped[[name for name in _MEASURED if name in table]].agg(["mean", "std"])
    numbers.columns = [f"{column[0]}_{column[1]}" for column in numbers.columns]
    sizes = grouped.agg(
        levels=("levels", _common),
        mean_bits=("mean_bits", "mean"),
        n=("subset", "size"),
        seeds=("seeds", "max"),
        **{SEED_SPREAD: (SEED_SPREAD, "mean")},
    )
    return sizes.join(numbers).reset_index().round(4)


def by_seed(rows: pd.DataFrame, value: str, subsets: "pd.Index[str]") -> Floats:
    """The values (seeds, subsets) of one cell's ``rows`` by seed, for seeds that all subsets have.

    It is empty (0, subsets) where images of the subset calibrate: then each subset has a network of its own
    for each seed, and what seeds change is part of how subsets differ. With images of all classes one network
    serves all subsets, and the mean over subsets moves with the seed.
    """
    calibrations = rows.filter(regex="^calibration").iloc[0]
    if "all" not in set(calibrations) or rows.seed.isna().all():
        return np.zeros((0, len(subsets)))
    # Rows are unique, so that nothing needs a mean, which takes ten times as long.
    wide = rows.set_index(["seed", "subset"])[value].unstack().reindex(columns=subsets)  # noqa: PD010
    return np.asarray(wide.dropna().to_numpy(dtype=np.float64))


def complete(wide: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Split a table (subsets, cells) into tables without gaps, by the subsets that cells were measured on."""
    there = wide.notna().T.apply(tuple, axis=1)
    for _, columns in wide.T.groupby(there, sort=False):
        yield columns.T.dropna()


def _common(values: "pd.Series[int]") -> object:
    """The value that all rows share; missing if they differ, as levels may between subsets."""
    found = values.unique()
    return found[0] if len(found) == 1 else pd.NA


def main_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a study's first calibration, and those that use no calibration images.

    The first calibration is on images of the subset, or on images of all classes if the study has no other.
    """
    used = set(rows.calibration) - {NO_IMAGES}
    first = {NO_IMAGES, "subset"} if "subset" in used else {NO_IMAGES, *used}
    return rows[rows.calibration.isin(first)]
