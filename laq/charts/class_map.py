"""The map of classes: each with the ellipse that its images' features lie in, and its name."""

from collections.abc import Sequence
from typing import Any, Final

import altair as alt
import numpy as np
from numpy.typing import NDArray

from laq.charts.theme import Chart, shortened, titled

Floats = NDArray[np.float64]
_SIDE: Final = (1000, 800)  # pixels: a hundred names must fit
_CORNERS: Final = 48
_LINE: Final = 15.0  # pixels of a name's height
_CHARACTER: Final = 6.6  # pixels of a letter's width, on average
_TRIES: Final = 400
_MARGIN: Final = 0.04  # of the plane, for names at its edge


def class_map(points: Floats, labels: NDArray[np.int64], names: Sequence[str]) -> Chart:
    """The chart of all classes' names, and of the ellipses within a standard deviation of their means.

    Args:
        points: (n, 2), of all images.
        labels: (n,), the classes' numbers.
        names: (C,), the classes' names.
    """
    clouds = [points[labels == number] for number in range(len(names))]
    outlines = [_ellipse(cloud) for cloud in clouds]
    low, high = np.min([o.min(0) for o in outlines], 0), np.max([o.max(0) for o in outlines], 0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    middles = np.array([cloud.mean(0) for cloud in clouds])
    shown = [shortened(name) for name in names]
    placed = _placed((middles - low) / np.where(high > low, high - low, 1) * _SIDE, shown)
    axes: dict[str, Any] = {
        side: {
            "axis": None,
            "scale": alt.Scale(domain=[float(low[at]), float(high[at])], nice=False, zero=False),
        }
        for at, side in enumerate("xy")
    }
    x, y = alt.X("x:Q", **axes["x"]), alt.Y("y:Q", **axes["y"])
    corners = [
        {"class": name, "x": float(a), "y": float(b), "corner": corner}
        for name, outline in zip(shown, outlines, strict=True)
        for corner, (a, b) in enumerate(outline)
    ]
    lines = alt.Chart(alt.InlineData(values=corners)).mark_line(strokeWidth=1, opacity=0.6).encode(
        x=x, y=y, order="corner:O", detail="class:N",
        color=alt.Color("class:N", scale=alt.Scale(scheme="tableau20"), legend=None),
    )  # fmt: skip
    texts = [
        {"class": name, "x": float(a), "y": float(b)}
        for name, (a, b) in zip(shown, placed / _SIDE * (high - low) + low, strict=True)
    ]
    written = alt.Chart(alt.InlineData(values=texts)).mark_text(fontSize=13, baseline="middle").encode(
        x=x, y=y, text="class:N"
    )  # fmt: skip
    title = titled("The classes in the plane of the features", "Ellipses are of one standard deviation.")
    return alt.layer(lines, written, width=_SIDE[0], height=_SIDE[1]).properties(title=title)


def _ellipse(cloud: Floats) -> Floats:
    """The outline (corners, 2) of a standard deviation of the Gaussian fitted to ``cloud`` (n, 2)."""
    variances, axes = np.linalg.eigh(np.cov(cloud, rowvar=False))
    angles = np.linspace(0, 2 * np.pi, _CORNERS + 1)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(cloud.mean(0) + (circle * np.sqrt(np.maximum(variances, 0))) @ axes.T)


def _placed(wanted: Floats, names: Sequence[str]) -> Floats:
    """Places (C, 2) in pixels as near to those ``wanted`` as names that do not cover each other allow."""
    # From the middle outwards, on a spiral: the golden angle leaves no direction out.
    steps = np.arange(_TRIES)
    radius, angle = 3.2 * np.sqrt(steps)[:, None], 2.399963 * steps[:, None]
    spiral = radius * np.concatenate([1.6 * np.cos(angle), np.sin(angle)], axis=1)
    placed: list[Floats] = []
    widths: list[float] = []
    for place, name in zip(wanted, names, strict=True):
        width = _CHARACTER * len(name)
        tried = place + spiral
        others, apart = np.reshape(placed, (-1, 2)), (np.array(widths) + width) / 2
        covers = (np.abs(tried[:, None, 0] - others[:, 0]) < apart) & (
            np.abs(tried[:, None, 1] - others[:, 1]) < _LINE
        )
        placed.append(tried[int(covers.sum(1).argmin())])
        widths.append(width)
    return np.array(placed)
