"""Paired differences of many cells at once: means, intervals, sign-flip tests, and Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.params import Report
from laq.report.rank_correlation import interval

Floats = NDArray[np.float64]
_EXACT: Final = 12  # subsets up to which all 2^n signs are tried
_NOTHING: Final = 1e-12  # what rounding leaves of a deviation
_CHUNK: Final = 2000  # signs tried at once: memory, not results


@dataclass(frozen=True)
class Effects:
    """Of q rows of n differences: mean, interval, mean / standard deviation (d_z), p-value; each (q,)."""

    n: int
    effect: Floats
    low: Floats
    high: Floats
    d_z: Floats
    p_value: Floats

    def row(self, row: int) -> dict[str, float]:
        """What a table says of one row."""
        return {name: getattr(self, name)[row] for name in ("effect", "low", "high", "d_z", "p_value")}


def paired_effects(differences: Floats, params: Report) -> Effects:
    """The effects of ``differences`` (q, n), a column per subset.

    The interval is the bootstrap's percentiles over subsets; below two subsets it is undefined, as are
    d_z and the p-value. d_z is undefined too where all differences are the same.
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
    """Which rows (q,) of ``differences`` (q, n), of at least two, are not the same all along."""
    return np.asarray(differences.std(1, ddof=1) > _NOTHING * (1 + np.abs(differences.mean(1))))


def sign_flip(differences: Floats, params: Report) -> Floats:
    """Two-sided p-values (q,) that differences (q, n) are as likely upwards as downwards.

    The permutation test of a paired design: were the two sides alike, every difference might as well
    have had the other sign. Unlike Wilcoxon's, its statistic is the mean, which is also the effect that
    is reported, and zeros need no rule. All 2^n signs up to n = 12, else ``params.permutations`` of
    them, drawn; the smallest p-value is then 1 / (1 + permutations).
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
    """P-values (m,) corrected for being m together (Holm 1979); undefined ones are not counted."""
    adjusted = np.full(p_values.shape, np.nan)
    asked = np.flatnonzero(~np.isnan(p_values))
    order = asked[np.argsort(p_values[asked], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
    return adjusted


def with_holm(rows: Sequence[Mapping[str, Any]], family: Sequence[str]) -> pd.DataFrame:
    """The table of ``rows``, p-values corrected by Holm over the rows that share what ``family`` names.

    ``p_value`` becomes ``p_holm``, and ``p_classes``, where there is one, ``p_classes_holm``.
    """
    table = pd.DataFrame(list(rows))
    for name, to in (("p_value", "p_holm"), ("p_classes", "p_classes_holm")):
        if name in table:
            groups = table.groupby(list(family))[name]
            table[to] = groups.transform(lambda p: holm(p.to_numpy(dtype=np.float64)))
    return table.round(6)
