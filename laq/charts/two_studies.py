"""The chart of two studies beside each other: accuracy against bits, in a colour for each study."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import altair as alt

from laq.charts import methods as looks
from laq.charts.theme import HEIGHT, WIDTH, Chart, Data, as_data, by_network, titled

_COLOURS: Final = ("#0072b2", "#d55e00")


def two_studies(rows: Data, studies: Sequence[str], methods: Iterable[str], title: str) -> Chart:
    """The means over subsets with their standard deviations, a panel for each base network.

    Args:
        rows: a row per cell of a study: study, network, method, bits, bits_place, method_place and percent;
            the method of the networks in float is float.
        studies: the names of both, the first one first.
        methods: those of the rows, for the legend.
        title: of the chart.
    """
    layers = _layers(studies, methods).properties(data=as_data(rows), width=WIDTH, height=HEIGHT)
    grouped = layers.transform_aggregate(
        mean="mean(percent)", sd="stdev(percent)",
        groupby=["study", "network", "method", "method_place", "bits", "bits_place"],
    ).transform_window(
        place="dense_rank()", groupby=["network"],
        sort=[alt.SortField("method_place"), alt.SortField("study")],
    )  # fmt: skip
    about = "Means over subsets and their standard deviations; broken lines are the networks in float."
    return by_network(grouped).properties(title=titled(title, about))


def _layers(studies: Sequence[str], methods: Iterable[str]) -> Chart:
    """The layers of one panel, of rows with mean and sd."""
    colour = alt.Color("study:N", scale=alt.Scale(domain=list(studies), range=list(_COLOURS)),
                       legend=alt.Legend(title=None, columns=1))  # fmt: skip
    y: dict[str, Any] = {
        "title": "top-1 among the subset's classes (%)",
        "scale": alt.Scale(zero=False, padding=8),
    }
    quantized = alt.Chart().transform_filter("datum.method != 'float'").encode(
        x=alt.X("bits:N", sort=alt.EncodingSortField("bits_place", op="min"), title="bits per weight",
                axis=alt.Axis(labelAngle=0), scale=alt.Scale(paddingInner=0.25)),
        xOffset=alt.XOffset("place:Q", scale=alt.Scale(zero=False, nice=False)),
        color=colour,
    )  # fmt: skip
    bars = quantized.transform_calculate(low="datum.mean - datum.sd", high="datum.mean + datum.sd")
    marks = quantized.mark_point(filled=True, size=110, opacity=1, style="edged", strokeWidth=1)
    floats = (
        alt.Chart().transform_filter("datum.method == 'float'").mark_rule(strokeDash=[3, 5], strokeWidth=2)
    )
    return alt.layer(
        floats.encode(y=alt.Y("mean:Q", **y), color=colour),
        bars.mark_rule(strokeWidth=2, opacity=0.4).encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        marks.encode(y=alt.Y("mean:Q", **y), shape=looks.shape(methods)),
    )  # fmt: skip
