"""The chart of the images whose answer changes, which a difference of accuracies hides."""

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
    losses,
    template_data,
    titled,
    zero_line,
)


def flips(rows: Data, methods: Iterable[str] = looks.ALL) -> Chart:
    """The chart of one network: shares of images lost above the line and gained below it, and the difference.

    Args:
        rows: with columns network, method and method_place, bits and bits_place, and in percent
            flips_lost_percent and flips_gained_percent.
        methods: those of the rows, for the legend.
    """
    place = alt.XOffset("method:N", sort=alt.EncodingSortField("method_place", op="min"))
    tip = [alt.Tooltip("method:N"), alt.Tooltip("bits:N"),
           alt.Tooltip("lost:Q", title="% lost", format=".2f"),
           alt.Tooltip("gained:Q", title="% gained", format=".2f"),
           alt.Tooltip("subsets:Q", title="mean of subsets")]  # fmt: skip
    base = alt.Chart().encode(x=bit_widths(0.25), xOffset=place, color=looks.colour(methods), tooltip=tip)
    lost = base.mark_bar().encode(y=_shares("lost:Q"))
    gained = base.mark_bar(fillOpacity=0.5).encode(y=_shares("below:Q"))
    net = base.mark_tick(thickness=2.5).encode(y=_shares("net:Q"), color=alt.value("#1b1f23"))
    return (
        alt.layer(lost, gained, net, zero_line(), data=as_data(rows), width=WIDTH, height=HEIGHT)
        .transform_aggregate(
            lost="mean(flips_lost_percent)", gained="mean(flips_gained_percent)", subsets="count()",
            groupby=[*NETWORK, "method", "method_place", "bits", "bits_place"],
        )
        .transform_calculate(below="-datum.gained", net="datum.lost - datum.gained")
    )  # fmt: skip


def _shares(field: str) -> alt.Y:
    """The axis, which counts up on both sides of the line."""
    axis = losses(field, "images (%)")
    axis["axis"]["labelExpr"] = "format(abs(datum.value), '~r')"
    return axis


def picture(rows: pd.DataFrame, study: Caption) -> Chart:
    """The chart of a study, with a panel for each base network."""
    about = (
        "Above the line: images that the float network classifies correctly and the quantized one does not. "
        "Below: the reverse. The black line is the difference, the points lost. Means over subsets."
    )
    chart = by_network(flips(rows, set(rows.method)))
    return chart.properties(title=titled(f"Images whose answer changes; {study.title}", about))


def template() -> Chart:
    """The chart of DVC's revisions."""
    return by_network(flips(template_data()).properties(width=WIDTH // 2), revisions=True)
