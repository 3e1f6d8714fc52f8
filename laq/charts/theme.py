"""How all charts look: readable on a phone's screen and on paper, and for colour-blind readers."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import altair as alt
import pandas as pd
from altair.utils import schemapi

# Otherwise each axis and scale is checked against the whole schema as it is made, which takes a second for a
# list of a hundred classes. What is drawn is read by Vega anyway.
schemapi.DEBUG_MODE = False
Data: TypeAlias = pd.DataFrame | alt.InlineData | alt.NamedData
# A chart of altair's of any kind: its methods return what its own types do not tell.
Chart: TypeAlias = Any

# A picture of this width is shown on a telephone at 0.55 of its size, and its text is then 9 pixels high.
WIDTH: Final = 600
HEIGHT: Final = 300
_FONT: Final = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first comes with the package that draws
_TEXT: Final = 16
_LONGEST: Final = 24  # characters of a class's name
# What the rows of one network are grouped by; templates of DVC have a revision, too.
NETWORK: Final = ["network", "rev"]
# Points are losses: equal steps up to about one, and equal ratios beyond, as those at 2 bits are a hundred
# times those at 8.
LOSSES: Final = [-50, -20, -5, -2, -1, 0, 0.5, 1, 2, 5, 10, 20, 50, 100]


@dataclass(frozen=True)
class Caption:
    """What charts tell of a study: its title, its intervals' confidence, its primary question's cell."""

    title: str
    confidence: float
    method: str
    bits: str

    @property
    def interval(self) -> str:
        """How intervals are called."""
        return f"{100 * self.confidence:g} % intervals"


def theme(*, dark: bool = False) -> dict[str, Any]:
    """The configuration of Vega-Lite for a light ground, or for a ``dark`` one."""
    ink, quiet, grid = ("#e7e9eb", "#a3abb3", "#343b42") if dark else ("#1b1e22", "#59616a", "#e3e6ea")
    return {
        "background": "transparent" if dark else "white",
        "font": _FONT,
        "view": {"stroke": None},
        "title": {"fontSize": _TEXT + 1, "color": ink, "anchor": "start", "fontWeight": "bold", "offset": 12,
                  "subtitleFontSize": _TEXT - 2, "subtitleColor": quiet, "subtitlePadding": 6},
        "axis": {"labelFontSize": _TEXT - 1, "titleFontSize": _TEXT, "titleFontWeight": "normal",
                 "labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": quiet,
                 "tickColor": quiet, "labelLimit": 240, "titlePadding": 8},
        "header": {"labelFontSize": _TEXT, "labelColor": ink, "labelFontWeight": "bold", "titleColor": ink,
                   "titleFontSize": _TEXT},
        "legend": {"orient": "bottom", "direction": "horizontal", "labelFontSize": _TEXT - 1,
                   "titleFontSize": _TEXT - 1, "titleFontWeight": "normal", "labelColor": ink,
                   "titleColor": ink, "symbolSize": 110, "symbolOpacity": 1, "columns": 4,
                   "columnPadding": 18, "labelLimit": 360},
        "style": {"edged": {"stroke": "#a3abb3" if dark else "white"}},
        "rule": {"color": quiet},
        "text": {"color": ink, "fontSize": _TEXT - 2},
    }  # fmt: skip


def as_data(table: Data) -> alt.InlineData | alt.NamedData:
    """The rows of ``table`` as a specification holds them."""
    if not isinstance(table, pd.DataFrame):
        return table
    values: Any = table.astype(object).where(table.notna(), None).to_dict("records")
    return alt.InlineData(values=values)


def titled(title: str, subtitle: str = "") -> alt.TitleParams:
    """A title and a line below it, broken where they are wider than a chart."""
    return alt.TitleParams(textwrap.wrap(title, 62), subtitle=textwrap.wrap(subtitle, 84))


def losses(field: str, title: str = "points of top-1 lost") -> alt.Y:
    """The vertical axis of points lost by several methods or at several bits."""
    scale = alt.Scale(type="symlog", constant=0.5, nice=False, padding=8)
    axis = alt.Axis(values=LOSSES, format="~r", title=title, grid=True, labelOverlap=False)
    return alt.Y(field, scale=scale, axis=axis)


def bit_widths(gap: float) -> alt.X:
    """The axis of bits, from few to many, those that differ by layer last; a ``gap`` is a share of a step."""
    return alt.X("bits:N", sort=alt.EncodingSortField("bits_place", op="min"), title="bits per weight",
                 scale=alt.Scale(paddingInner=gap, paddingOuter=0.1),
                 axis=alt.Axis(labelAngle=0, labelLimit=110))  # fmt: skip


def logarithmic(field: str, title: str, factors: Sequence[float] = (1, 2, 5)) -> alt.X:
    """A horizontal axis of equal ratios, whose numbers are ``factors`` times powers of ten."""
    scale = alt.Scale(type="log", nice=False, padding=24)
    axis = alt.Axis(
        values=[factor * 10.0**power for power in range(-3, 8) for factor in factors],
        format="~r",
        title=title,
        grid=False,
        labelOverlap=True,
        labelSeparation=6,
        labelFlush=16,  # pixels: a number so near to the end would be cut off there
    )
    return alt.X(field, scale=scale, axis=axis)


def zero_line() -> Chart:
    """The line at 0 points lost, where a network is as accurate as in float."""
    once = alt.Chart().transform_aggregate(rows="count()", groupby=[])
    return once.mark_rule(strokeWidth=1).encode(y=alt.datum(0))


def shortened(name: str) -> str:
    """A class's name, of which a folder's may have hundreds of characters."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def chosen(value: float, other: float) -> Any:
    """``value`` for the points of a subset that a reader has chosen on a page, and else ``other``."""
    return alt.condition("datum.chosen === true", alt.value(value), alt.value(other))


def by_network(chart: Chart, *, revisions: bool = False) -> Chart:
    """A row of panels for each base network, with a column for each of DVC's ``revisions``."""
    network = alt.Row("network:N", title=None, sort="descending", header=alt.Header(orient="top"))
    if not revisions:
        return chart.facet(row=network)
    turned = alt.Row("network:N", title=None, sort="descending")
    return chart.facet(row=turned, column=alt.Column("rev:N", title=None))


def at_fewest_bits(template: Chart) -> Chart:
    """A chart of DVC's rows with those of the original network at the fewest bits alone."""
    return template.transform_filter("datum.bits_place == 0 && datum.network == 'original network'")


def template_data() -> alt.InlineData:
    """Where DVC writes the rows of a table of the report's, all of them as texts."""
    numbers = ("method_place", "bits_place", "classes", "nats", "float_percent", "percent", "lost_points",
               "mean_low", "mean_high", "fit", "fit_low", "fit_high", "kib", "flips_lost_percent",
               "flips_gained_percent", "layer_place", "relative_error", "layer_bits",
               "sparsity_percent")  # fmt: skip
    parse: dict[str, Any] = dict.fromkeys(numbers, "number")
    return alt.InlineData(values="<DVC_METRIC_DATA>", format=alt.JsonDataFormat(type="json", parse=parse))
