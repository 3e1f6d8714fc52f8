"""The analysis of a study: all tables that the report's text, page and figures are made from."""

from dataclasses import dataclass

import pandas as pd

from laq.params import Report
from laq.report.comparisons import comparisons
from laq.report.correlations import dependence
from laq.report.divergences import SubsetDivergences
from laq.report.tables import over_seeds, summarise, with_drops


@dataclass(frozen=True)
class Analysis:
    """A study's tables.

    ``table`` has a row per cell and seed, with drops; ``cells`` their means over seeds; ``summary`` means
    over subsets, ``by_size`` for each number of classes apart; ``correlations`` and ``comparisons`` answer
    questions (``correlations.dependence``, ``comparisons.comparisons``).
    """

    title: str
    table: pd.DataFrame
    cells: pd.DataFrame
    summary: pd.DataFrame
    by_size: pd.DataFrame
    correlations: pd.DataFrame
    comparisons: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """Those that are written, by the names of their files."""
        names = ("summary", "by_size", "correlations", "comparisons")
        return {"measurements.csv": self.table} | {f"{name}.csv": getattr(self, name) for name in names}


def analyse(measurements: pd.DataFrame, divergences: SubsetDivergences, params: Report) -> Analysis:
    """The analysis of a study's table of measurements (``laq.study.read_measurements``)."""
    table = with_drops(measurements)
    cells = over_seeds(table)
    return Analysis(
        title_of(table),
        table,
        cells,
        summarise(table),
        summarise(table, ("subset_size_classes",)),
        dependence(cells, divergences, params),
        comparisons(table, divergences.members, params),
    )


def title_of(table: pd.DataFrame) -> str:
    """Network, dataset, and the subsets' number and sizes."""
    first = table.iloc[0]
    sizes = "/".join(str(s) for s in sorted(table.subset_size_classes.unique()))
    return f"{first.network} on {first.dataset}: {table.subset.nunique()} subsets of {sizes} classes"
