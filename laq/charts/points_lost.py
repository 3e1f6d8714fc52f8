"""The chart of what quantization costs: points lost against bits, with intervals and every subset."""

from collections.abc import Iterable

import altair as alt
import pandas as pd

from laq.charts import methods as looks
from laq.charts.theme import (
    HEIGHT,
    NETWORK,
    WIDTH,
    Caption,
    Chart,
    Data,
    as_data,
    bit_widths,
    by_network,
    chosen,
    losses,
    template_data,
    titled,
    zero_line,
)

_GOLDEN = 0.618034  # its multiples scatter evenly within 0 to 1, the same way each time


def points_lost(rows: Data, methods: Iterable[str] = looks.ALL) -> Chart:
    """The chart of one network: each subset faintly, and each method's mean with its interval.

    Args:
        rows: with columns method and method_place, bits and bits_place, subset, and in points lost_points,
            mean_low and mean_high, the ends of the interval of the mean.
        methods: those of the rows, for the legend.
    """
    offset = alt.Scale(nice=False, zero=False)
    base = alt.Chart().encode(x=bit_widths(0.2), color=looks.colour(methods))
    tip = [alt.Tooltip("subset:N"), alt.Tooltip("names:N", title="classes"), alt.Tooltip("method:N"),
           alt.Tooltip("bits:N"),
           alt.Tooltip("lost_points:Q", title="points lost", format=".1f")]  # fmt: skip
    subsets = base.mark_circle().encode(
        size=chosen(140, 22),
        opacity=chosen(1, 0.28),
        xOffset=alt.XOffset("scattered:Q", scale=offset), y=losses("lost_points:Q"), tooltip=tip,
    )  # fmt: skip
    means = base.encode(xOffset=alt.XOffset("place:Q", scale=offset))
    bars = means.mark_rule(strokeWidth=2.5).encode(y=losses("min(mean_low):Q"), y2="max(mean_high):Q")
    marks = means.mark_point(filled=True, size=130, opacity=1, style="edged", strokeWidth=1).encode(
        y=losses("mean(lost_points):Q"), shape=looks.shape(methods)
    )
    return (
        alt.layer(zero_line(), subsets, bars, marks, data=as_data(rows), width=WIDTH, height=HEIGHT)
        .transform_window(place="dense_rank()", sort=[alt.SortField("method_place")], groupby=NETWORK)
        .transform_window(row="row_number()", groupby=NETWORK)
        .transform_calculate(scattered=f"datum.place + 0.6 * ((datum.row * {_GOLDEN}) % 1 - 0.5)")
    )


def picture(rows: pd.DataFrame, study: Caption) -> Chart:
    """The chart of a study, with a panel for each base network."""
    chart = by_network(points_lost(rows, set(rows.method)))
    about = f"Each faint point is a subset of classes; marks are means with {study.interval}."
    title = titled(study.title, about)
    return chart.resolve_scale(x="independent", xOffset="independent").properties(title=title)


def template() -> Chart:
    """The chart of DVC's revisions."""
    chart = by_network(points_lost(template_data()).properties(width=WIDTH // 2), revisions=True)
    return chart.resolve_scale(xOffset="independent")
