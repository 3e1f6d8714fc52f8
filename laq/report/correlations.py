"""The table of correlations: does the loss of accuracy depend on the divergence of a subset's classes?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.report.divergences import SubsetDivergences
from laq.report.paired_tests import with_holm
from laq.report.rank_correlation import (
    Floats,
    Variables,
    bootstrap_samples,
    correlate,
    interval,
    permutation_p_values,
    relabelling_p_values,
)
from laq.report.tables import BASE_OF, DROPS, GROUP, complete
from laq.sections.report import Report

DEPENDENCE: Final = "dependence"
PREDICTOR: Final = "predictor"
MEASURES: Final = ("rho", "partial_rho")
FAMILY: Final = ["question", "measure", "score"]
COLUMNS: Final = [
    *FAMILY, *GROUP, "divergence", "statistic", "n", "effect", "low", "high",
    "p_value", "p_holm", "p_classes", "p_classes_holm", "rank", "gap", "gap_low", "gap_high",
]  # fmt: skip
_RANKS: Final = ("rank", "gap", "gap_low", "gap_high")  # of a divergence among all
_MAIN_DROP: Final = "drop_sub_points"


@dataclass(frozen=True)
class _Block:
    """Cells of one variant that were measured on the same subsets.

    ``drops`` (subsets, cells) are in points; ``covariates`` (subsets, 2) are the accuracy before
    quantization in percent and the number of classes.
    """

    score: str
    drops: pd.DataFrame
    covariates: pd.DataFrame

    def covariates_of(self, measure: str) -> Floats:
        """The covariates (c, subsets) that ``measure`` holds fixed; constant ones are left out."""
        if measure == "rho":
            return np.zeros((0, len(self.drops)))
        both = self.covariates.T.to_numpy(dtype=np.float64)
        return np.asarray(both[np.ptp(both, axis=1) > 0])


def dependence(cells: pd.DataFrame, divergences: SubsetDivergences, params: Report) -> pd.DataFrame:
    """A row per question, variant, method, bits, calibration, score, divergence, statistic and measure.

    Args:
        cells: a row per subset and cell, with drops (``tables.over_seeds``).
        divergences: the divergences within each subset.
        params: resamples, permutations, confidence and seed.

    ``rho`` is Spearman's rank correlation of the drop with the divergence. ``partial_rho`` holds the same
    network's accuracy before quantization and the subset's size fixed: subsets with high accuracy in float
    have distant classes and lose less, so the divergence may correlate with the drop without adding to it.
    Beside the interval (bootstrap over subsets) stand a p-value by permutation of subsets, and
    ``p_classes``, by permutation of the classes of the divergence matrix, which accounts for classes that
    subsets share. Both are corrected by Holm's method over a question's rows of one measure and score.

    Question ``dependence`` concerns the study's own median divergence, ``predictor`` all divergences:
    ``rank`` orders them by |effect|, and ``gap`` is the distance to the first in |effect|, with an interval
    from the same resamples of both.
    """
    blocks = [block for score in DROPS.values() for block in _blocks(cells, score)]
    rows = [row for block in blocks for row in _rows(block, divergences, params)]
    return with_holm(rows, FAMILY).reindex(columns=COLUMNS)


def _blocks(cells: pd.DataFrame, score: str) -> Iterator[_Block]:
    """The cells of each variant, grouped by the subsets that they were measured on."""
    accuracy = {drop: top1 for top1, drop in DROPS.items()}[score]
    for _, group in cells[cells.variant.isin(BASE_OF)].groupby("variant", sort=False):
        wide = group.pivot_table(score, "subset", GROUP, sort=False)
        bases = group.assign(base=group[accuracy] + group[score]).groupby("subset")
        covariates = bases[["base", "subset_size_classes"]].first()
        for drops in complete(wide):
            yield _Block(score, drops, covariates.loc[drops.index])


def _rows(block: _Block, divergences: SubsetDivergences, params: Report) -> Iterator[dict[str, Any]]:
    names, whole = block.drops.index, divergences.relabelled
    values = divergences.nats.loc[names]
    if block.score != _MAIN_DROP:
        values = values.iloc[:, :1]
    null = None if whole is None else whole[names].to_numpy()
    for measure in MEASURES:
        variables = Variables(values.T.to_numpy(), block.drops.T.to_numpy(), block.covariates_of(measure))
        found = _estimate(variables, null, params)
        for cell, key in enumerate(block.drops.columns):
            about = dict(zip(GROUP, key, strict=True)) | {"score": block.score, "measure": measure}
            yield {"question": DEPENDENCE, **about, **_divergence(values, 0), **found.row(0, cell)}
            if values.shape[1] > 1:
                for x in range(values.shape[1]):
                    ranks = {name: getattr(found, name)[x, cell] for name in _RANKS}
                    row = {**_divergence(values, x), **found.row(x, cell), **ranks, "p_classes": np.nan}
                    yield {"question": PREDICTOR, **about, **row}


def _divergence(values: pd.DataFrame, x: int) -> dict[str, str]:
    return dict(zip(("divergence", "statistic"), map(str, values.columns[x]), strict=True))


@dataclass(frozen=True)
class _Estimates:
    """Estimates for p divergences with q cells' drops, (p, q) each; ``p_classes`` (q,) is of the first."""

    n: int
    effect: Floats
    low: Floats
    high: Floats
    p_value: Floats
    p_classes: Floats
    rank: Floats
    gap: Floats
    gap_low: Floats
    gap_high: Floats

    def row(self, x: int, cell: int) -> dict[str, float]:
        """The row's estimates of one divergence."""
        names = ("effect", "low", "high", "p_value")
        return {"n": self.n, **{name: getattr(self, name)[x, cell] for name in names}} | (
            {"p_classes": self.p_classes[cell]} if x == 0 else {}
        )


def _estimate(variables: Variables, null: Floats | None, params: Report) -> _Estimates:
    samples, effect = bootstrap_samples(variables, params), correlate(variables)[0]
    strength = np.where(np.isnan(effect), -1, np.abs(effect))
    best = strength.argmax(0)[None]
    rank = (-strength).argsort(0, kind="stable").argsort(0) + 1.0
    gaps = np.abs(np.take_along_axis(samples, best[None], 1)) - np.abs(samples)
    return _Estimates(
        variables.n,
        effect,
        *interval(samples, params),
        permutation_p_values(variables, params),
        np.full(effect.shape[1], np.nan) if null is None else relabelling_p_values(variables, null),
        np.where(np.isnan(effect), np.nan, rank),
        np.take_along_axis(np.abs(effect), best, 0) - np.abs(effect),
        *interval(gaps, params),
    )
