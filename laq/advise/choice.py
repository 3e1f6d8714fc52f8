"""The smallest network that keeps a wanted accuracy: plain rules on a table of candidates."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Row = Mapping[Any, Any]
_ROUNDING: Final = 1e-9  # of percentages, in points
# Files of the same codes differ by the digits in their headers, which must not decide.
_SAME_SIZE: Final = 0.005


@dataclass(frozen=True)
class Wanted:
    """The least restricted top-1, in percent, and the most bytes."""

    top1_percent: float
    max_bytes: float = inf


def judged(table: pd.DataFrame, wanted: Wanted) -> pd.DataFrame:
    """The table, smallest first and of equals the most accurate, with four columns more.

    ``fits`` and ``keeps`` say whether a row is small and accurate enough, ``pareto`` whether no other
    candidate is as small and as accurate and more of one, ``chosen`` which one it is, if any: the first
    that fits and keeps. Sizes half a percent apart count as equal. Float networks, to compare with, are
    never chosen.

    Args:
        table: a row per network, with ``method``, ``size_bytes`` and ``top1_sub_percent``.
        wanted: what of it.
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
    """Whether no row is as small and as accurate, and more of one (n,)."""
    size, top1 = rows.about.to_numpy(), rows.top1_sub_percent.to_numpy()
    as_good = (size[:, None] <= size) & (top1[:, None] >= top1)
    better = as_good & ((size[:, None] < size) | (top1[:, None] > top1))
    unbeaten: NDArray[np.bool_] = np.logical_not(better.any(axis=0))
    return unbeaten


@dataclass(frozen=True)
class Nearest:
    """Where nothing will do: the most accurate small enough, and the smallest that is accurate enough.

    None where there is none.
    """

    most_accurate: Row | None
    smallest: Row | None


def nearest(table: pd.DataFrame) -> Nearest:
    """What comes nearest in a table that ``judged`` made."""
    candidates = table[table.method != "float"]
    small = candidates[candidates.fits].to_dict("records")
    accurate = candidates[candidates.keeps].to_dict("records")
    return Nearest(
        max(small, key=lambda row: float(row["top1_sub_percent"]), default=None),
        next(iter(accurate), None),
    )
