"""The chart of the candidates that were measured for some classes, with the request and the choice."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Final

import altair as alt

from laq.charts import methods as looks
from laq.charts.lost_by_size import sizes
from laq.charts.theme import HEIGHT, WIDTH, Chart, Data, as_data, losses, titled

_MARK: Final[dict[str, Any]] = {"size": 110, "opacity": 1, "strokeWidth": 2}
_BELOW: Final = 20  # points below the wanted accuracy, where the axis ends: what is worse is drawn there


@dataclass(frozen=True)
class Marked:
    """What is marked beside the candidates.

    Attributes:
        value: the points that may be lost, or the top-1 that is wanted in percent.
        lost: whether the values are points lost.
        kib: the largest size of the file; infinite for none, and not drawn then.
        chosen: kib and value of the candidate that was chosen; empty if none was.
        floats: the values of the networks in float, by their names.
    """

    value: float
    lost: bool
    kib: float = inf
    chosen: Mapping[str, float] = field(default_factory=dict)
    floats: Mapping[str, float] = field(default_factory=dict)


def candidates(
    rows: Data, front: Data, methods: Iterable[str], request: Marked, title: tuple[str, str]
) -> Chart:
    """The chart of candidates: a point each, filled for the original network and hollow for a fine-tuned one.

    Args:
        rows: method, network, bits, kib and value, and the bounds low and high where they are shown.
        front: kib and value of the best candidates up to each size, from small to large.
        methods: those of the rows, for the legend.
        request: what is marked.
        title: a line, and one below it.
    """
    y = _axis(request)
    base = alt.Chart(as_data(rows)).encode(x=sizes("kib:Q"), color=looks.colour(methods))
    bounds = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, opacity=0.5)
    tip = [alt.Tooltip(f"{name}:N") for name in ("method", "network", "bits")] + [
        alt.Tooltip(f"{name}:Q", format=".1f") for name in ("kib", "value", "low", "high")
    ]
    placed = base.encode(y=y("value:Q"), shape=looks.shape(methods), tooltip=tip)
    filled = placed.transform_filter("datum.network == 'original'").mark_point(filled=True, **_MARK)
    hollow = placed.transform_filter("datum.network != 'original'").mark_point(fill="white", **_MARK)
    steps = alt.Chart(as_data(front)).mark_line(interpolate="step-after", strokeWidth=1.5, color="#59616a")
    layers = [
        *_lines(request),
        steps.encode(x=sizes("kib:Q"), y=y("value:Q")),
        bounds.encode(y=y("low:Q"), y2="high:Q"),
        filled,
        hollow,
        *_ring(request),
    ]
    return alt.layer(*layers, width=WIDTH, height=1.3 * HEIGHT, title=titled(*title))


def _axis(request: Marked) -> Callable[[str], alt.Y]:
    """The vertical axis: of points lost, or of accuracies that are not far below the one that is wanted."""
    if request.lost:
        return losses
    least = max(request.value - _BELOW, 0)
    scale = alt.Scale(zero=False, padding=8, domainMin=least, clamp=True)
    return lambda name: alt.Y(name, title="top-1 among these classes (%)", scale=scale)


def _lines(request: Marked) -> list[Chart]:
    """Lines across the chart: the request, the largest size, and the networks in float."""
    y = _axis(request)
    asked = [{"value": request.value, "name": "asked for"}]
    floats = [{"value": value, "name": f"{name} network in float"} for name, value in request.floats.items()]
    made = []
    for values, dash, side in ((asked, [7, 4], "left"), (floats, [2, 4], "right")):
        across = alt.Chart(alt.InlineData(values=values)).encode(y=y("value:Q"))
        made.append(across.mark_rule(strokeDash=dash, strokeWidth=1.5))
        place = alt.value(4 if side == "left" else WIDTH - 4)
        aligned: Any = side
        names = across.mark_text(align=aligned, baseline="bottom", dy=-2)
        made.append(names.encode(text="name:N", x=place))
    if isfinite(request.kib):
        limit = alt.Chart(alt.InlineData(values=[{"kib": request.kib}])).mark_rule(strokeDash=[7, 4])
        made.append(limit.encode(x=sizes("kib:Q")))
    return made


def _ring(request: Marked) -> list[Chart]:
    if not request.chosen:
        return []
    y = _axis(request)
    chosen: Any = alt.InlineData(values=[dict(request.chosen)])
    base = alt.Chart(chosen).encode(x=sizes("kib:Q"), y=y("value:Q"))
    ring = base.mark_point(size=700, shape="circle", strokeWidth=2.5, color="black", filled=False)
    return [ring, base.mark_text(dx=18, dy=-18, align="left", text="chosen", fontWeight="bold")]
