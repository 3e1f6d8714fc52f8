"""The registry of a study's charts: each is a picture of the report and a template of DVC's plots."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pandas as pd

from laq.charts import flips, layers, lost_by_divergence, lost_by_size, points_lost
from laq.charts.theme import Caption, Chart


@dataclass(frozen=True)
class StudyChart:
    """A chart of a table of the report's.

    Attributes:
        picture: the chart of such a table.
        template: the chart of DVC's revisions, whose rows DVC fills in.
        shows: the column that it is drawn from; a study that lacks it has no such picture.
        table: the table: ``plotted`` has a row per cell, ``layers`` a row per layer.
    """

    picture: Callable[[pd.DataFrame, Caption], Chart]
    template: Callable[[], Chart]
    shows: str = "lost_points"
    table: str = "plotted"


# By the names of their files.
CHARTS: Final[Mapping[str, StudyChart]] = {
    "points_lost": StudyChart(points_lost.picture, points_lost.template),
    "lost_by_divergence": StudyChart(lost_by_divergence.picture, lost_by_divergence.template),
    "lost_by_size": StudyChart(lost_by_size.picture, lost_by_size.template),
    "flips": StudyChart(flips.picture, flips.template, "flips_lost_percent"),
    "layers": StudyChart(layers.picture, layers.template, "relative_error", "layers"),
}
