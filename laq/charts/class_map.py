"""The map of classes: each with the ellipse that its images' features lie in, and its name."""

from collections.abc import Sequence
from typing import Final

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
    pixels = np.array(_SIDE) / np.where(high > low, high - low, 1)
    shown = [shortened(name) for name in names]
    middles = np.array([cloud.mean(0) for cloud in clouds])
    placed = _placed((middles - low) * pixels, shown)
    title = titled("The classes in the plane of the features", "Ellipses are of one standard deviation.")
    layers = _ellipses([(outline - low) * pixels for outline in outlines], shown), _names(placed, shown)
    return alt.layer(*layers, width=_SIDE[0], height=_SIDE[1]).properties(title=title)


def _axes() -> tuple[alt.X, alt.Y]:
    """Axes of pixels."""
    x, y = (alt.Scale(domain=[0, side], nice=False, zero=False) for side in _SIDE)
    return alt.X("x:Q", axis=None, scale=x), alt.Y("y:Q", axis=None, scale=y)


def _ellipses(outlines: Sequence[Floats], names: Sequence[str]) -> Chart:
    corners = [
        {"class": name, "x": round(float(x), 2), "y": round(float(y), 2), "corner": corner}
        for name, outline in zip(names, outlines, strict=True)
        for corner, (x, y) in enumerate(outline)
    ]
    x, y = _axes()
    lines = alt.Chart(alt.InlineData(values=corners)).mark_line(strokeWidth=1, strokeOpacity=0.6)
    colour = alt.Color("class:N", scale=alt.Scale(scheme="tableau20"), legend=None)
    return lines.encode(x=x, y=y, order="corner:O", detail="class:N", color=colour)


def _names(placed: Floats, names: Sequence[str]) -> Chart:
    texts = [
        {"class": name, "x": round(float(x), 2), "y": round(float(y), 2)}
        for name, (x, y) in zip(names, placed, strict=True)
    ]
    x, y = _axes()
    written = alt.Chart(alt.InlineData(values=texts)).mark_text(fontSize=13, baseline="middle")
    return written.encode(x=x, y=y, text="class:N")


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
