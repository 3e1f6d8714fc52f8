"""The chart of layers: the error, the bits and the zeros of each, by method."""

from collections.abc import Iterable
from typing import Any, Final

import altair as alt
import pandas as pd

from laq.charts import methods as looks
from laq.charts.lost_by_divergence import primary
from laq.charts.theme import WIDTH, Caption, Chart, Data, as_data, at_fewest_bits, template_data, titled

_MEASURES: Final = {
    "relative_error": "relative error",
    "layer_bits": "bits per weight",
    "sparsity_percent": "zeros (%)",
}
_HEIGHT: Final = 140


def layers(rows: Data, methods: Iterable[str] = looks.ALL) -> Chart:
    """The chart of one network at one bit-width: a line for each method.

    Args:
        rows: with columns layer and layer_place, method, relative_error, layer_bits and sparsity_percent.
        methods: those of the rows, for the legend.
    """
    x = alt.X("short:N", sort=alt.EncodingSortField("layer_place", op="min"), title=None,
              axis=alt.Axis(labelAngle=-90, labelLimit=150, labelFontSize=12, labelOverlap=True))  # fmt: skip
    tip = [alt.Tooltip("layer:N"), alt.Tooltip("method:N"), alt.Tooltip("value:Q", format=".3~g")]
    return (
        alt.Chart(as_data(rows), width=WIDTH, height=_HEIGHT)
        .transform_calculate(short="replace(datum.layer, 'body.', '')")
        .transform_fold(list(_MEASURES), as_=["measure", "value"])
        # Panels are sorted by a number of their own: by a list, Vega puts those of several revisions astray.
        .transform_calculate(place=f"indexof({list(_MEASURES)}, datum.measure)")
        .mark_line(point=alt.OverlayMarkDef(size=36), strokeWidth=1.5)
        .encode(
            x=x, y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=True)),
            color=looks.colour(methods), tooltip=tip,
        )
    )  # fmt: skip


def _panels(chart: Chart, column: Any = alt.Undefined) -> Chart:
    """A panel for each measure, each with an axis of its own."""
    header = alt.Header(labelExpr=f"{list(_MEASURES.values())}[datum.value]", labelOrient="top")
    row = alt.Row("place:O", title=None, header=header)
    return chart.facet(row=row, column=column).resolve_scale(y="independent")


def picture(rows: pd.DataFrame, study: Caption) -> Chart:
    """The chart of the first network at the primary question's bits; where bits differ by layer, at those."""
    first = rows[rows.network == rows.network.iloc[0]]
    spread = first[~first.bits.str.isdecimal()]
    asked = primary(first, study).bits.iloc[0] if spread.empty else spread.bits.iloc[0]
    shown = first[first.bits == asked]
    about = (
        "Means over subsets, layers in the order of execution. The error is that of a layer's outputs, "
        "relative to their norm."
    )
    title = titled(f"Layers at {looks.told_bits(asked)}; {study.title}", about)
    return _panels(layers(shown, set(shown.method))).properties(title=title)


def template() -> Chart:
    """The chart of DVC's revisions: the original network at the fewest bits."""
    chart = layers(template_data()).properties(width=WIDTH // 2)
    fewest = at_fewest_bits(chart)
    return _panels(fewest, alt.Column("rev:N", title=None))
