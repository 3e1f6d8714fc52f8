"""The chart of the primary question: points lost against the divergence between a subset's classes."""

from typing import Any

import altair as alt
import pandas as pd

from laq.charts.methods import told_bits
from laq.charts.theme import (
    HEIGHT,
    WIDTH,
    Caption,
    Chart,
    Data,
    as_data,
    at_fewest_bits,
    chosen,
    logarithmic,
    template_data,
    titled,
    zero_line,
)
from laq.quantization.methods.registry import label_of

_COLUMNS = 3


def lost_by_divergence(rows: Data) -> Chart:
    """The chart of one cell: a point for each subset, coloured by its accuracy in float, and the fitted line.

    Args:
        rows: with columns subset, classes (how many), nats, float_percent, and in points lost_points and
            the line fit with its band, fit_low and fit_high.
    """
    x = logarithmic("nats:Q", "divergence (nats)")
    colour = alt.Color(
        "float_percent:Q",
        scale=alt.Scale(scheme="viridis", nice=False),
        legend=alt.Legend(title="top-1 in float (%)", gradientLength=180, titleOrient="top", format="~r"),
    )
    tip = [alt.Tooltip("subset:N"), alt.Tooltip("names:N", title="classes"), alt.Tooltip("classes:Q"),
           alt.Tooltip("nats:Q", title="median divergence (nats)", format=".3~r"),
           alt.Tooltip("float_percent:Q", title="top-1 in float (%)", format=".1f"),
           alt.Tooltip("lost_points:Q", title="points lost", format=".1f")]  # fmt: skip
    base = alt.Chart().encode(x=x)
    band = base.mark_area(opacity=0.18, color="#59616a").encode(
        y=_lost("fit_low:Q"), y2="fit_high:Q", detail="classes:N"
    )
    line = base.mark_line(strokeWidth=2, color="#59616a").encode(y=_lost("fit:Q"), detail="classes:N")
    points = base.mark_point(filled=True, opacity=0.9, style="edged", strokeWidth=0.6).encode(
        y=_lost("lost_points:Q"), color=colour, tooltip=tip, size=chosen(260, 60)
    )
    return alt.layer(band, zero_line(), line, points, data=as_data(rows), width=WIDTH, height=HEIGHT)


def _lost(field: str) -> alt.Y:
    """The axis of what one method loses at one bit-width, which needs no logarithm."""
    return alt.Y(field, title="points of top-1 lost", scale=alt.Scale(nice=False, padding=8))


def picture(rows: pd.DataFrame, study: Caption) -> Chart:
    """The chart of the primary question's cell, with a panel for each size of subsets."""
    cell = primary(rows, study)
    about = (
        f"Line: the fit among subsets of equal size. Band: the {study.interval.removesuffix('s')} of its "
        "slope. Fewer nats: more similar classes."
    )
    title = f"What {label_of(cell.method.iloc[0])} loses at {told_bits(cell.bits.iloc[0])}; {study.title}"
    sizes = cell.classes.nunique()
    columns = min(sizes, _COLUMNS)
    chart = lost_by_divergence(cell).properties(width=max(WIDTH // columns - 25 * (columns > 1), 170))
    header = alt.Header(labelExpr="datum.value + ' classes'", labelOrient="top")
    facets = chart.facet(facet=alt.Facet("classes:O", title=None, header=header), columns=columns)
    return facets.properties(title=titled(title, about))


def primary(rows: Any, study: Caption) -> Any:
    """The rows of the primary question's cell; where it was not measured, of one at the fewest bits."""
    first = rows[rows.network == rows.network.iloc[0]]
    asked = first[(first.method == study.method) & (first.bits == study.bits)]
    if asked.empty:
        fewest = first[first.bits_place == first.bits_place.min()]
        asked = fewest[fewest.method_place == fewest.method_place.max()]
    return asked


def template() -> Chart:
    """The chart of DVC's revisions: the original network at the fewest bits, a column for each method."""
    chart = lost_by_divergence(template_data()).properties(width=WIDTH // 3)
    fewest = at_fewest_bits(chart)
    return fewest.facet(row=alt.Row("rev:N", title=None), column=alt.Column("method:N", title=None))
