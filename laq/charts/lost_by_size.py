"""The chart of what a smaller file costs: points lost against its size, with the frontier."""

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
    by_network,
    logarithmic,
    losses,
    template_data,
    titled,
    zero_line,
)

# Files that differ by less count as equally large.
_ALIKE = 0.02


def sizes(field: str) -> alt.X:
    """The axis of the sizes of files."""
    return logarithmic(field, "size of the file (KiB)", (1, 1.5, 2, 3, 5, 7))


def lost_by_size(rows: Data, methods: Iterable[str] = looks.ALL) -> Chart:
    """The chart of one network: each method's mean at each bit-width, and the least lost up to each size.

    Args:
        rows: with columns network, method, bits, kib, lost_points, and mean_low and mean_high, the ends of
            its mean's interval.
        methods: those of the rows, for the legend.
    """
    base = alt.Chart().encode(x=sizes("kib:Q"))
    bars = base.mark_rule(strokeWidth=2, opacity=0.55).encode(
        y=losses("mean_low:Q"), y2="mean_high:Q", color=looks.colour(methods)
    )
    tip = [alt.Tooltip("method:N"), alt.Tooltip("bits:N"), alt.Tooltip("kib:Q", title="KiB", format=".1f"),
           alt.Tooltip("lost:Q", title="points lost", format=".2f"),
           alt.Tooltip("subsets:Q", title="mean of subsets")]  # fmt: skip
    marks = base.mark_point(filled=True, size=130, opacity=1, style="edged", strokeWidth=1).encode(
        y=losses("lost:Q"), color=looks.colour(methods), shape=looks.shape(methods), tooltip=tip
    )
    best = base.transform_filter("datum.lost == datum.best")
    frontier = best.mark_line(interpolate="step-after", strokeWidth=1.5, color="#59616a").encode(
        y=losses("lost:Q")
    )
    names = best.mark_text(dx=12, dy=-6, align="left", baseline="bottom", fontSize=14).encode(
        y=losses("lost:Q"), text="name:N"
    )
    return (
        alt.layer(zero_line(), frontier, bars, marks, names, data=as_data(rows),
                  width=WIDTH, height=HEIGHT)
        .transform_aggregate(
            lost="mean(lost_points)", kib="mean(kib)", mean_low="min(mean_low)", mean_high="max(mean_high)",
            subsets="count()", groupby=[*NETWORK, "method", "bits"],
        )
        .transform_calculate(alike=f"round(log(datum.kib) / {_ALIKE})")
        .transform_window(
            best="min(lost)", frame=[None, 0], groupby=NETWORK,
            sort=[alt.SortField("alike"), alt.SortField("lost")],
        )
        .transform_calculate(name="datum.bits + (isNaN(toNumber(datum.bits)) ? '' : ' bits')")
    )  # fmt: skip


def picture(rows: pd.DataFrame, study: Caption) -> Chart:
    """The chart of a study, with a panel for each base network."""
    about = f"Means over subsets with {study.interval}; the line is the least that is lost up to each size."
    return by_network(lost_by_size(rows, set(rows.method))).properties(title=titled(study.title, about))


def template() -> Chart:
    """The chart of DVC's revisions."""
    return by_network(lost_by_size(template_data()).properties(width=WIDTH // 2), revisions=True)
