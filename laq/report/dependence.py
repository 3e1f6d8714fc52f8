"""The table of dependence: do subsets of similar classes lose more, and does their accuracy tell as much?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.report.divergences import SubsetDivergences
from laq.report.mixed_model import Models
from laq.report.tables import BASE_OF, DROPS, ERRORS_GAINED, GROUP, by_seed, complete
from laq.sections.report import Report

Floats = NDArray[np.float64]
DEPENDENCE: Final = "dependence"
NEARNESS: Final = "halved divergence"
INACCURACY: Final = "10 points less accuracy"
SCORES: Final = (DROPS["top1_sub_percent"], ERRORS_GAINED, DROPS["top1_all_percent"])
# Each variable alone, then each beside the other.
_PAIRS: Final = ((NEARNESS, ""), (INACCURACY, ""), (NEARNESS, INACCURACY), (INACCURACY, NEARNESS))
COLUMNS: Final = [
    "question", "score", *GROUP, "variable", "beside", "divergence", "statistic",
    "n", "seeds", "effect", "low", "high", "p_value", "class_share",
]  # fmt: skip


@dataclass(frozen=True)
class CellBlock:
    """Cells of one variant that were measured on the same subsets.

    Attributes:
        rows: the rows of the table, one per subset, cell and seed.
        outcomes: (subsets, cells), means over seeds; the columns are the cells by ``GROUP``.
        before: the accuracy (subsets,) before quantization in percent.
        sizes: the numbers of classes (subsets,).
    """

    rows: pd.DataFrame
    outcomes: pd.DataFrame
    before: Floats
    sizes: Floats

    def repeated(self, score: str) -> list[Floats]:
        """The outcomes (seeds, subsets) of each cell whose subsets are scored on one network per seed."""
        cells: dict[Any, pd.DataFrame] = dict(list(self.rows.groupby(GROUP, sort=False)))
        names = self.outcomes.index
        return [by_seed(cells[key], score, names) for key in self.outcomes.columns]


def blocks(table: pd.DataFrame, score: str) -> Iterator[CellBlock]:
    """The cells of each variant, grouped by the subsets that they were measured on."""
    accuracy = "top1_all_percent" if score == DROPS["top1_all_percent"] else "top1_sub_percent"
    for _, rows in table[table.variant.isin(BASE_OF)].groupby("variant", sort=False):
        about = rows.assign(before=rows[accuracy] + rows[DROPS[accuracy]]).groupby("subset").first()
        for outcomes in complete(rows.pivot_table(score, "subset", GROUP, sort=False)):
            known = about.loc[outcomes.index]
            yield CellBlock(
                rows,
                outcomes,
                known.before.to_numpy(dtype=np.float64).round(6),
                known.subset_size_classes.to_numpy(dtype=np.float64),
            )


def nearness(divergences: "pd.Series[float]") -> Floats:
    """How many times divergences (n,) are halved; NaN everywhere if one of them is not positive."""
    nats = np.asarray(divergences, dtype=np.float64)
    known = np.isfinite(nats).all() and (nats > 0).all()
    return np.asarray(-np.log2(nats)) if known else np.full(len(nats), np.nan)


def dependence(table: pd.DataFrame, divergences: SubsetDivergences, params: Report) -> pd.DataFrame:
    """A row per outcome, cell and variable: the variable's effect on the outcome, among subsets of one size.

    Args:
        table: a row per subset, cell and seed, with drops (``tables.with_drops``).
        divergences: the divergences within each subset; the first one is asked about.
        params: draws, confidence and seed.

    An ``effect`` is a difference in ``score`` (points of top-1 lost, or the logarithm of a ratio of errors)
    for each halving of the median divergence, or for each 10 points of accuracy less before quantization.
    Sizes of subsets are held fixed, each with a mean of its own. ``beside`` names the other variable where
    both are in one model; where it is empty, the effect is the total one. Intervals and p-values are those of
    ``mixed_model.MixedModel``.
    """
    models = Models(divergences.members, params)
    rows = [
        row
        for score in SCORES
        if score in table
        for block in blocks(table, score)
        for row in _rows(block, score, divergences.nats.iloc[:, 0], models)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).round(6)


def _rows(block: CellBlock, score: str, nats: "pd.Series[float]", models: Models) -> Iterator[dict[str, Any]]:
    names, repeated = block.outcomes.index, block.repeated(score)
    variables = {
        NEARNESS: nearness(nats.loc[names]),
        INACCURACY: -block.before / 10,
    }
    # A column for each size, which is 1 for the subsets of that size.
    sizes = [(block.sizes == size).astype(np.float64) for size in np.unique(block.sizes)]
    about = {"question": DEPENDENCE, "score": score, **divergence_of(nats), "n": len(names)}
    for variable, beside in _PAIRS if score != SCORES[-1] else _PAIRS[:1]:
        others = [variables[beside]] if beside else []
        model = models.of(names, variables[variable], *others, *sizes)
        found = model.estimate(block.outcomes.T.to_numpy(dtype=np.float64), repeated)
        for place, key in enumerate(block.outcomes.columns):
            named = dict(zip(GROUP, key, strict=True)) | {"variable": variable, "beside": beside}
            yield about | named | {"seeds": max(len(repeated[place]), 1)} | found.row(place)


def divergence_of(nats: "pd.Series[float]") -> dict[str, str]:
    """The divergence and the statistic of a column of ``SubsetDivergences.nats``, by the tables' columns."""
    name: Any = nats.name
    return dict(zip(("divergence", "statistic"), map(str, name), strict=True))
