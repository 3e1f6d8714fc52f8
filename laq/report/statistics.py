"""What the study's table says: means, drops, and whether they go with the divergence."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from laq.params import Report

Floats = NDArray[np.float64]
BASE_OF: Final = {"quantized": "original", "finetuned_quantized": "finetuned"}
SCORES: Final = ("top1_all_percent", "top1_sub_percent", "top5_all_percent", "top5_sub_percent")
DROPS: Final = {"top1_all_percent": "drop_all_points", "top1_sub_percent": "drop_sub_points"}
_PERMUTATIONS: Final = 9999
_GROUP: Final = ["variant", "method", "bits"]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of n pairs, its p-value and a confidence interval; None where undefined."""

    n: int
    rho: float | None
    p_value: float | None
    low: float | None
    high: float | None


def with_drops(measurements: pd.DataFrame) -> pd.DataFrame:
    """Add the percentage points of top-1 that each quantized row lost against its own base."""
    floats = measurements[measurements.method == "float"]
    bases = floats.set_index(["subset", "variant"])[list(DROPS)]
    keys = [(s, BASE_OF.get(v, v)) for s, v in zip(measurements.subset, measurements.variant, strict=True)]
    losses = bases.loc[keys].to_numpy() - measurements[list(DROPS)].to_numpy()
    drops = pd.DataFrame(losses, index=measurements.index, columns=list(DROPS.values()))
    return pd.concat([measurements, drops.round(6)], axis=1)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Per variant, method and bits: n subsets, and mean and standard deviation of what was measured."""
    columns = [*SCORES, *DROPS.values(), "sparsity_percent", "relative_error_mean", "relative_error_logits"]
    grouped = table.groupby(_GROUP, sort=False)
    numbers = grouped[columns].agg(["mean", "std"])
    numbers.columns = [f"{column[0]}_{column[1]}" for column in numbers.columns]
    sizes = grouped.agg(levels=("levels", _common), mean_bits=("mean_bits", "mean"), n=("subset", "size"))
    return sizes.join(numbers).reset_index().round(4)


def _common(values: "pd.Series[int]") -> object:
    """The value that all rows have; none where one has none, as bits that differ by subset may do."""
    found = values.unique()
    return found[0] if len(found) == 1 else pd.NA


def correlate(table: pd.DataFrame, params: Report) -> pd.DataFrame:
    """Per quantized variant, method and bits: does the drop go with the median divergence?"""
    rows = []
    for key, group in table[table.method != "float"].groupby(_GROUP, sort=False):
        for drop in DROPS.values():
            found = rank_correlation(group.median_divergence_nats.to_numpy(), group[drop].to_numpy(), params)
            rows.append({**dict(zip(_GROUP, key, strict=True)), "drop": drop, **vars(found)})
    return pd.DataFrame(rows)


def rank_correlation(x: Floats, y: Floats, params: Report) -> Correlation:
    """Spearman's rho, its two-sided permutation p-value and a percentile bootstrap interval.

    Undefined (None) when either side is constant or there are fewer than 3 pairs. Resamples in
    which one side is constant have no rho and are left out of the interval.
    """
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(n, None, None, None, None)
    rng = np.random.default_rng(params.seed)
    rho = float(_rho(x[None], y[None])[0])
    shuffled = rng.permuted(np.broadcast_to(y, (_PERMUTATIONS, n)), axis=1)
    extreme = np.abs(_rho(np.broadcast_to(x, shuffled.shape), shuffled)) >= abs(rho) - 1e-12
    p_value = (1 + int(extreme.sum())) / (1 + _PERMUTATIONS)
    low, high = _interval(x, y, params, rng)
    return Correlation(n, round(rho, 4), round(p_value, 4), low, high)


def _interval(x: Floats, y: Floats, params: Report, rng: np.random.Generator) -> tuple[float, float]:
    drawn = rng.integers(len(x), size=(params.bootstrap_samples, len(x)))
    tail = (1 - params.confidence) / 2
    low, high = np.nanquantile(_rho(x[drawn], y[drawn]), [tail, 1 - tail])
    return round(float(low), 4), round(float(high), 4)


def _rho(x: Floats, y: Floats) -> Floats:
    """Spearman's rho of each row of ``x`` and ``y`` (k, n); NaN where a row is constant."""
    ranks = [stats.rankdata(side, axis=1) for side in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Floats = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return rho


def log_curve(x: Floats, y: Floats) -> tuple[float, float]:
    """The least-squares a and c of y = a ln x + c.

    The predecessor's a ln(b x) + c is the same family: b only moves c.
    """
    slope, intercept = np.polyfit(np.log(x), y, 1)
    return float(slope), float(intercept)
