"""Tests of paired differences for many cells at once: means, intervals, sign flips, Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.report.rank_correlation import interval
from laq.sections.report import Report

Floats = NDArray[np.float64]
_EXACT: Final = 12  # up to so many subsets all 2^n signs are tried
_NOTHING: Final = 1e-12  # a standard deviation below this is rounding error
_CHUNK: Final = 2000  # signs per batch; it limits memory and changes no result


@dataclass(frozen=True)
class Effects:
    """The effects of q rows of n differences, (q,) each; d_z is mean / standard deviation."""

    n: int
    effect: Floats
    low: Floats
    high: Floats
    d_z: Floats
    p_value: Floats

    def row(self, row: int) -> dict[str, float]:
        """The estimates of one row, by the columns of the table."""
        return {name: getattr(self, name)[row] for name in ("effect", "low", "high", "d_z", "p_value")}


def paired_effects(differences: Floats, params: Report) -> Effects:
    """The effects of ``differences`` (q, n), a column per subset.

    The interval is the percentile bootstrap over subsets. With fewer than two subsets the interval, d_z and
    the p-value are NaN; d_z is also NaN if all differences are equal.
    """
    rows, n = differences.shape
    nothing = np.full(rows, np.nan)
    mean = differences.mean(1)
    if n < 2:
        return Effects(n, mean, nothing, nothing, nothing, nothing)
    deviation = differences.std(1, ddof=1)
    varied = varies(differences)
    d_z = np.where(varied, mean / np.where(varied, deviation, 1), np.nan)
    drawn = np.random.default_rng(params.seed).multinomial(n, np.full(n, 1 / n), params.bootstrap_samples)
    low, high = interval(drawn @ differences.T / n, params)
    return Effects(n, mean, low, high, d_z, sign_flip(differences, params))


def varies(differences: Floats) -> NDArray[np.bool_]:
    """Which rows (q,) of ``differences`` (q, n), n ≥ 2, are not constant."""
    return np.asarray(differences.std(1, ddof=1) > _NOTHING * (1 + np.abs(differences.mean(1))))


def sign_flip(differences: Floats, params: Report) -> Floats:
    """Two-sided p-values (q,) of the hypothesis that differences (q, n) are symmetric about 0.

    This is the permutation test of a paired design: if the two sides are equivalent, every difference is
    equally likely with the opposite sign. Unlike in Wilcoxon's test, the statistic is the mean, which is
    also the effect that is reported, and zeros need no special rule. Up to n = 12 all 2^n signs are
    tried; beyond that ``params.permutations`` of them are drawn, and the smallest possible p-value is
    1 / (1 + permutations).
    """
    n = differences.shape[1]
    total = np.abs(differences.sum(1))
    bar = total - 1e-9 * (1 + np.abs(differences).sum(1))
    if n <= _EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        return np.asarray((np.abs(signs @ differences.T) >= bar).mean(0))
    rng, extreme = np.random.default_rng(params.seed), np.zeros(len(differences))
    for begin in range(0, params.permutations, _CHUNK):
        size = min(_CHUNK, params.permutations - begin)
        signs = 2.0 * rng.integers(2, size=(size, n)) - 1
        extreme += (np.abs(signs @ differences.T) >= bar).sum(0)
    return np.asarray((1 + extreme) / (1 + params.permutations))


def holm(p_values: Floats) -> Floats:
    """P-values (m,) corrected for multiple testing (Holm 1979); NaN are not counted and stay."""
    adjusted = np.full(p_values.shape, np.nan)
    asked = np.flatnonzero(~np.isnan(p_values))
    order = asked[np.argsort(p_values[asked], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
    return adjusted


def with_holm(rows: Sequence[Mapping[str, Any]], family: Sequence[str]) -> pd.DataFrame:
    """The table of ``rows`` with p-values corrected by Holm's method over rows of the same ``family``.

    ``family`` names columns. ``p_holm`` is the correction of ``p_value``, and ``p_classes_holm`` that of
    ``p_classes``, if the table has it.
    """
    table = pd.DataFrame(list(rows))
    for name, to in (("p_value", "p_holm"), ("p_classes", "p_classes_holm")):
        if name in table:
            groups = table.groupby(list(family))[name]
            table[to] = groups.transform(lambda p: holm(p.to_numpy(dtype=np.float64)))
    return table.round(6)
