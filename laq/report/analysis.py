"""The analysis of a study: the tables behind the report's text, page and figures."""

from dataclasses import dataclass

import pandas as pd

from laq.report.comparisons import comparisons
from laq.report.dependence import dependence
from laq.report.divergences import SubsetDivergences
from laq.report.outcomes import fewest_bits, reliabilities
from laq.report.prediction import prediction
from laq.report.tables import over_seeds, summarise, with_drops
from laq.sections.report import Report


@dataclass(frozen=True)
class Analysis:
    """The tables of a study.

    ``table`` has a row per cell and seed, with drops, and ``cells`` the means over seeds. ``summary`` has
    means over subsets, and ``by_size`` the same for each number of classes. ``divergences`` are those within
    each subset. ``dependence``, ``prediction`` and ``comparisons`` answer the study's questions, ``outcomes``
    tells how reliable each outcome is, and ``fewest_bits`` what each subset needs; each is described by the
    function of its name, or in the module ``outcomes``.
    """

    title: str
    table: pd.DataFrame
    cells: pd.DataFrame
    summary: pd.DataFrame
    by_size: pd.DataFrame
    divergences: pd.DataFrame
    dependence: pd.DataFrame
    prediction: pd.DataFrame
    comparisons: pd.DataFrame
    outcomes: pd.DataFrame
    fewest_bits: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that are written beside that of measurements, by the names of their files."""
        names = (
            "summary",
            "by_size",
            "divergences",
            "dependence",
            "prediction",
            "comparisons",
            "outcomes",
            "fewest_bits",
        )
        return {f"{name}.csv": getattr(self, name) for name in names}


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
        divergences.as_rows(),
        dependence(table, divergences, params),
        prediction(table, divergences),
        comparisons(table, divergences.members, params),
        reliabilities(cells, params.confidence),
        fewest_bits(cells),
    )


def title_of(table: pd.DataFrame) -> str:
    """The title of a study: network, dataset, and the number and sizes of the subsets."""
    first = table.iloc[0]
    sizes = "/".join(str(s) for s in sorted(table.subset_size_classes.unique()))
    return f"{first.network} on {first.dataset}: {table.subset.nunique()} subsets of {sizes} classes"
