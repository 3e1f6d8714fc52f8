"""The table that charts show: a row per cell of a study, with the intervals and fits that belong to it."""

from typing import Final

import numpy as np
import pandas as pd

from laq.quantization.methods.registry import places
from laq.report.comparisons import LOSS
from laq.report.dependence import NEARNESS
from laq.report.tables import BASE_OF, DROPS, GROUP, main_rows

_LOST: Final = DROPS["top1_sub_percent"]
NETWORKS: Final = {"original": "original network", "finetuned": "fine-tuned on the subset first"}
# Shares of the test images, of the table of outcomes; older published studies lack them.
FLIPS: Final = ("flips_lost_percent", "flips_gained_percent")
COLUMNS: Final = [
    "network", "method", "method_place", "bits", "bits_place", "calibration", "subset", "kind", "classes",
    "nats", "float_percent", "percent", "lost_points", "mean_low", "mean_high", "fit", "fit_low", "fit_high",
    "kib", *FLIPS,
]  # fmt: skip


def plotted(cells: pd.DataFrame, comparisons: pd.DataFrame, dependence: pd.DataFrame) -> pd.DataFrame:
    """A row per subset and quantized cell of the study's first calibration, sorted.

    ``mean_low`` and ``mean_high`` are the interval of the mean of ``lost_points`` over subsets. ``fit`` is
    what a subset of that size and divergence loses by the model of ``dependence``; ``fit_low`` and
    ``fit_high`` are the same for the ends of the slope's interval, about the mean of the size's subsets.
    ``bits_place`` orders the bits: those that differ from layer to layer come last, as they are no number.

    Args:
        cells: a row per subset and cell, with ``drop_sub_points`` (``tables.over_seeds``).
        comparisons: ``comparisons.comparisons``, which has the means' intervals.
        dependence: ``dependence.dependence``, which has the slopes.
    """
    shown = main_rows(cells[cells.method != "float"])
    bits = in_order(shown)
    rows = pd.DataFrame(
        {
            "network": shown.variant.map(BASE_OF).map(NETWORKS),
            "method_place": shown.method.map(places()),
            "bits_place": shown.bits.map({name: place for place, name in enumerate(bits)}),
            "classes": shown.subset_size_classes.astype(int),
            "nats": shown.median_divergence_nats,
            "float_percent": shown.top1_sub_percent + shown[_LOST],
            "percent": shown.top1_sub_percent,
            "lost_points": shown[_LOST],
            "kib": shown.size_bytes / 1024 if "size_bytes" in shown else np.nan,
            **{name: shown.get(name, np.nan) for name in FLIPS},
            **{name: shown[name] for name in ("variant", "method", "bits", "calibration", "subset", "kind")},
        }
    )
    rows = rows.merge(effects(comparisons, dependence), how="left", on=GROUP)
    fitted = [_fitted(group) for _, group in rows.groupby(GROUP, sort=False)]
    table = pd.concat(fitted) if fitted else rows.reindex(columns=COLUMNS)
    order = ["network", "bits_place", "method_place", "subset"]
    return table[COLUMNS].sort_values(order, ascending=[False, True, True, True], kind="stable").round(4)


def in_order(quantized: pd.DataFrame) -> list[str]:
    """The bits of the table from few to many, those that differ from layer to layer last."""
    bits = quantized.groupby("bits").mean_bits.mean().sort_values(kind="stable").index
    return sorted(map(str, bits), key=lambda width: not width.isdecimal())


def effects(comparisons: pd.DataFrame, dependence: pd.DataFrame) -> pd.DataFrame:
    """A row per cell, by ``GROUP``: the interval of its mean loss, and the points lost more for each halving.

    ``mean_low`` and ``mean_high`` are the interval, ``slope``, ``slope_low`` and ``slope_high`` the effect of
    half the divergence; they are missing where nothing is known.
    """
    lost = comparisons[(comparisons.question == LOSS) & (comparisons.score == _LOST)]
    lost = lost.assign(variant=lost["first"])[[*GROUP, "low", "high"]]
    asked = (dependence.score == _LOST) & (dependence.variable == NEARNESS) & (dependence.beside == "")
    slopes = dependence[asked].drop_duplicates(GROUP)[[*GROUP, "effect", "low", "high"]]
    means = lost.rename(columns={"low": "mean_low", "high": "mean_high"})
    named = {"effect": "slope", "low": "slope_low", "high": "slope_high"}
    return means.merge(slopes.rename(columns=named), how="outer", on=GROUP, sort=False)


def _fitted(group: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cell with the fit, whose line goes through the mean of the subsets of each size."""
    slope = group.iloc[0]
    if pd.isna(slope.slope_low) or (group.nats <= 0).any():
        return group.assign(fit=np.nan, fit_low=np.nan, fit_high=np.nan)
    halvings = -np.log2(group.nats)
    sizes = group.classes
    middle = group.lost_points.groupby(sizes).transform("mean")
    away = halvings - halvings.groupby(sizes).transform("mean")
    ends = np.sort([middle + away * slope.slope_low, middle + away * slope.slope_high], axis=0)
    return group.assign(fit=middle + away * slope.slope, fit_low=ends[0], fit_high=ends[1])
