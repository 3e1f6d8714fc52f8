"""Chooses the smallest network that keeps a given accuracy, by rules on a table of candidates."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Row = Mapping[Any, Any]
_ROUNDING: Final = 1e-9  # rounding error of percentages, in points
# Files with equally many codes differ by a few bytes in their headers, which must not decide.
_SAME_SIZE: Final = 0.005


@dataclass(frozen=True)
class Wanted:
    """The request: the least restricted top-1 in percent, and the largest file in bytes."""

    top1_percent: float
    max_bytes: float = inf


def judged(table: pd.DataFrame, wanted: Wanted) -> pd.DataFrame:
    """The table sorted by size (of equal sizes, the most accurate first), with four more columns.

    ``fits`` says whether a network is small enough, ``keeps`` whether it is accurate enough. ``pareto`` says
    whether no other candidate is at least as small and as accurate, and better in one of the two. ``chosen``
    marks the first candidate that fits and keeps. Sizes within half a percent count as equal. Float networks
    are listed for comparison and are no candidates.

    Args:
        table: a row per network, with ``method``, ``size_bytes`` and ``top1_sub_percent``.
        wanted: the request.
    """
    sizes = table.size_bytes.sort_values()
    about = sizes.groupby((sizes.pct_change() > _SAME_SIZE).cumsum()).transform("min")
    ordered = table.assign(about=about).sort_values(
        ["about", "top1_sub_percent", "size_bytes"], ascending=[True, False, True], kind="stable"
    )
    candidate = ordered.method != "float"
    ordered = ordered.assign(
        fits=ordered.size_bytes <= wanted.max_bytes,
        keeps=ordered.top1_sub_percent >= wanted.top1_percent - _ROUNDING,
        pareto=candidate & _unbeaten(ordered.where(candidate)),
    )
    good = candidate & ordered.fits & ordered.keeps
    chosen = good & (good.cumsum() == 1)
    return ordered.assign(chosen=chosen).drop(columns="about").reset_index(drop=True)


def _unbeaten(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether no other row is at least as small and as accurate, and better in one of the two (n,)."""
    size, top1 = rows.about.to_numpy(), rows.top1_sub_percent.to_numpy()
    as_good = (size[:, None] <= size) & (top1[:, None] >= top1)
    better = as_good & ((size[:, None] < size) | (top1[:, None] > top1))
    unbeaten: NDArray[np.bool_] = np.logical_not(better.any(axis=0))
    return unbeaten


@dataclass(frozen=True)
class Nearest:
    """The candidates nearest to a request that none fulfils; None where there is no such candidate.

    ``most_accurate`` is the most accurate of those that are small enough, ``smallest`` the smallest of those
    that are accurate enough.
    """

    most_accurate: Row | None
    smallest: Row | None


def nearest(table: pd.DataFrame) -> Nearest:
    """The nearest candidates in a table made by ``judged``."""
    candidates = table[table.method != "float"]
    small = candidates[candidates.fits].to_dict("records")
    accurate = candidates[candidates.keeps].to_dict("records")
    return Nearest(
        max(small, key=lambda row: float(row["top1_sub_percent"]), default=None),
        next(iter(accurate), None),
    )
