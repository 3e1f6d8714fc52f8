"""Chooses the smallest network that can be promised to keep its accuracy, from a table of candidates.

The candidates that were made from one float network form a chain: of those that fit, the ones that no
other is as small as and nearer to the float network on training images (``training_kl_nats``). The
choosing images test a chain from its largest file to its smallest, and stop at the first candidate whose
bound does not hold. As neither the order nor the members depend on the choosing images, this needs no
correction for the number of candidates (fixed-sequence testing); the chains share the probability of
error (Bonferroni). The chosen network is the smallest that passed. So a promise is broken with a
probability of at most 1 - confidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.advise.bounds import Flips, accuracy, images_for_accuracy, images_for_loss, interval

Row = Mapping[Any, Any]
_ROUNDING: Final = 1e-9  # rounding error of percentages, in points
# Files with equally many codes differ by a few bytes in their headers, which must not decide.
_SAME_SIZE: Final = 0.005


@dataclass(frozen=True)
class Wanted:
    """The request: the most points to lose, or else the least restricted top-1, and the largest file.

    Attributes:
        lose: points that may be lost against the original float network.
        keep: instead, the least restricted top-1 in percent.
        max_bytes: the largest size of the file.
        confidence: the probability at which the promise has to hold, whichever network is chosen.
    """

    lose: float | None = None
    keep: float | None = None
    max_bytes: float = inf
    confidence: float = 0.95

    @property
    def value(self) -> float:
        """The limit, in points lost or in percent of top-1."""
        return self.lose if self.lose is not None else float(self.keep or 0)

    def holds(self, lost: "pd.Series[float]", top1: "pd.Series[float]") -> "pd.Series[bool]":
        """Whether networks that lose so many points, or have this top-1 in percent, are accurate enough."""
        if self.lose is not None:
            return lost <= self.lose + _ROUNDING
        return top1 >= self.value - _ROUNDING

    def images_needed(self, row: Row, alpha: float) -> int | None:
        """About how many choosing images it takes to promise this of a candidate; None if none suffice."""
        if self.lose is not None:
            return images_for_loss(Flips(row["lost"], row["gained"], row["n"]), alpha, self.lose / 100)
        return images_for_accuracy(row["correct"], row["n"], alpha, self.value / 100)


def alpha_of(table: pd.DataFrame, wanted: Wanted) -> float:
    """The probability of error that each chain of tests is given: those of all float networks share it."""
    return (1 - wanted.confidence) / max(1, table.variant[table.method != "float"].nunique())


def judged(table: pd.DataFrame, wanted: Wanted) -> pd.DataFrame:
    """The table sorted by size (of equal sizes, the most accurate first), with the choice.

    New columns: ``low_percent``, ``high_percent``, ``lost_low_points`` and ``lost_high_points`` are one-sided
    bounds at the chain's probability of error. ``fits`` says whether a network is small enough, ``keeps``
    whether it is accurate enough by its estimate, ``tested`` and ``passed`` what the tests said, ``pareto``
    whether no other candidate is as small and as accurate, and better in one of the two. ``chosen`` marks the
    network to deliver. Sizes within half a percent count as equal. Float networks are listed for comparison.

    Args:
        table: a row per network, with ``variant``, ``method``, ``size_bytes``, ``training_kl_nats``, and its
            counts of choosing images: ``n``, ``correct``, ``lost`` and ``gained``.
        wanted: the request.
    """
    ordered = with_bounds(_by_size(table), alpha_of(table, wanted))
    ordered = ordered.sort_values(
        ["about", "top1_sub_percent", "size_bytes"], ascending=[True, False, True], ignore_index=True
    )
    candidate = (ordered.method != "float").to_numpy()
    about, far = ordered.about.to_numpy(), ordered.training_kl_nats.to_numpy()
    fits = (ordered.size_bytes <= wanted.max_bytes).to_numpy()
    sure = wanted.holds(ordered.lost_high_points, ordered.low_percent).to_numpy()
    tested, passed = np.zeros((2, len(ordered)), bool)
    for variant in ordered.variant.unique():
        members = candidate & fits & (ordered.variant == variant).to_numpy()
        rows = np.flatnonzero(_unbeaten(about, -far, members))
        chain = rows[np.lexsort((far[rows], -about[rows]))]  # in the order of their tests
        passed[chain] = np.logical_and.accumulate(sure[chain])
        tested[chain] = np.append(True, passed[chain][:-1])[: len(chain)]
    return ordered.assign(
        fits=fits,
        keeps=wanted.holds(ordered.lost_points, ordered.top1_sub_percent),
        pareto=_unbeaten(about, ordered.top1_sub_percent.to_numpy(), candidate),
        tested=tested,
        passed=passed,
        chosen=passed & (passed.cumsum() == 1),
    ).drop(columns="about")


def _by_size(table: pd.DataFrame) -> pd.DataFrame:
    """The table by size, with a column ``about`` that is the same for sizes that count as equal."""
    ordered = table.sort_values("size_bytes", kind="stable")
    sizes = ordered.size_bytes.to_numpy(float)
    first = np.append(True, sizes[1:] > (1 + _SAME_SIZE) * sizes[:-1])
    return ordered.assign(about=sizes[first][first.cumsum() - 1])


def with_bounds(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The table with top-1 and points lost on the choosing images, and their one-sided bounds."""
    losses = [interval(Flips(*row), alpha) for row in zip(table.lost, table.gained, table.n, strict=True)]
    top1 = [accuracy(*row, alpha) for row in zip(table.correct, table.n, strict=True)]
    return table.assign(
        top1_sub_percent=100 * table.correct / table.n,
        low_percent=[100 * low for low, _ in top1],
        high_percent=[100 * high for _, high in top1],
        lost_points=100 * (table.lost - table.gained) / table.n,
        lost_low_points=[100 * low for low, _ in losses],
        lost_high_points=[100 * high for _, high in losses],
    )


def _unbeaten(
    size: NDArray[np.float64], good: NDArray[np.float64], members: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which ``members`` (n,) no other one is as small as and as good as, and better in one of the two."""
    as_good = (size[:, None] <= size) & (good[:, None] >= good) & members[:, None]
    better = as_good & ((size[:, None] < size) | (good[:, None] > good))
    unbeaten: NDArray[np.bool_] = members & ~better.any(axis=0)
    return unbeaten


def chosen_by_estimates(table: pd.DataFrame) -> Row | None:
    """The candidate that the estimates alone would choose, in a table made by ``judged``."""
    good = table[(table.method != "float") & table.fits & table.keeps].to_dict("records")
    return next(iter(good), None)


def nearest(table: pd.DataFrame, wanted: Wanted) -> Row | None:
    """The candidate that fits and whose bound comes nearest to the request, in a table made by ``judged``."""
    fitting = table[(table.method != "float") & table.fits]
    if fitting.empty:
        return None
    by, up = ("lost_high_points", True) if wanted.lose is not None else ("low_percent", False)
    row: Row = fitting.sort_values(by, ascending=up, kind="stable").to_dict("records")[0]
    return row
