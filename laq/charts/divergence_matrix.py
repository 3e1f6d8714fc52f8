"""The chart of the divergence between every two classes, in the order of a clustering."""

from collections.abc import Sequence
from typing import Final

import altair as alt
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from laq.charts.theme import Chart, shortened, titled

Floats = NDArray[np.float64]
_LARGEST, _SMALLEST, _SIDE = 40, 13, 640  # pixels of a class, and of all
_NEAREST: Final = 1e-3  # nats; less is not told apart


def in_order(matrix: Floats) -> list[int]:
    """The numbers of the classes in the order of an average-linkage clustering of their divergences."""
    distances = squareform(np.log1p(np.maximum(matrix, 0)), checks=False)
    found: list[int] = leaves_list(linkage(distances, "average", optimal_ordering=True)).tolist()
    return found


def cells(matrix: Floats, names: Sequence[str]) -> alt.InlineData:
    """The rows of ``divergence_matrix``: two classes that differ, and the nats between them."""
    order, shown = in_order(matrix), [shortened(name) for name in names]
    return alt.InlineData(
        values=[
            {"class": shown[a], "other": shown[b], "nats": float(f"{matrix[a, b]:.4g}")}
            for a in order
            for b in order
            if a != b
        ]
    )


def divergence_matrix(rows: alt.InlineData | alt.NamedData, order: Sequence[str]) -> Chart:
    """The chart of a heat map.

    Args:
        rows: class, other and nats, as ``cells`` makes them.
        order: the names of the classes, from top to bottom and from left to right.
    """
    step = min(_LARGEST, max(_SMALLEST, _SIDE // len(order)))
    axis = alt.Axis(title=None, labelFontSize=min(14, step - 1), labelLimit=160, labelOverlap=False,
                    ticks=False, domain=False, labelPadding=3)  # fmt: skip
    colour = alt.Color(
        "shown:Q",
        scale=alt.Scale(type="log", scheme="viridis", nice=False),
        legend=alt.Legend(
            title="nats (darker: more similar)",
            gradientLength=240,
            titleOrient="left",
            orient="top",
            format="~r",
        ),
    )
    tip = [alt.Tooltip("class:N"), alt.Tooltip("other:N"), alt.Tooltip("nats:Q", format=".3~r")]
    return (
        alt.Chart(rows, width=alt.Step(step), height=alt.Step(step))
        .transform_calculate(shown=f"max(datum.nats, {_NEAREST})")
        .mark_rect()
        .encode(
            x=alt.X("other:N", sort=list(order), axis=axis, scale=alt.Scale(padding=0)),
            y=alt.Y("class:N", sort=list(order), axis=axis, scale=alt.Scale(padding=0)),
            color=colour,
            tooltip=tip,
        )
    )


def of_classes(matrix: Floats, names: Sequence[str]) -> Chart:
    """``divergence_matrix`` of all classes, for a picture."""
    order = [shortened(names[number]) for number in in_order(matrix)]
    about = "Symmetrised KL divergence of the network's features; classes in the order of a clustering."
    chart = divergence_matrix(cells(matrix, names), order)
    return chart.properties(title=titled("Divergence between classes", about))
