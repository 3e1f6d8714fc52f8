"""The map of classes: each with the ellipse that its images' features lie in, and its name."""

from collections.abc import Sequence
from typing import Any, Final

import altair as alt
import numpy as np
from numpy.typing import NDArray

from laq.charts.theme import WIDTH, Chart, shortened, titled

Floats = NDArray[np.float64]
_LEAST, _MOST = 340, 1000  # pixels of the map's width: as a telephone has, and as a hundred names need
_PER_CLASS: Final = 10  # pixels of the width
_HEIGHT: Final = 0.8  # of the width
_CORNERS: Final = 48
_LINE: Final = 15.0  # pixels of a name's height
_CHARACTER: Final = 6.6  # pixels of a letter's width, on average
_TRIES: Final = 900
_MARGIN: Final = 0.04  # of the plane, for names at its edge


def class_map(plane: Floats, names: Sequence[str]) -> Chart:
    """The chart of all classes' names, and of the ellipses within a standard deviation of their means.

    A row of its data is a class; rows whose ``chosen`` is false are drawn faintly. Names do not cover each
    other at ``least_width`` or wider.

    Args:
        plane: (C, 5) for each class the mean of its images (x, y) and their covariance (xx, xy, yy).
        names: (C,), the classes' names.
    """
    wide = max(WIDTH, least_width(len(names)))
    layers = _ellipses(), _names()
    x, y = _axes(*_sides(len(names)))
    rows = alt.InlineData(values=_rows(plane, names), name="rows")
    chart = alt.layer(*layers, data=rows, width=wide, height=_HEIGHT * wide)
    return chart.encode(x=x, y=y)


def picture(plane: Floats, names: Sequence[str]) -> Chart:
    """``class_map`` with its title."""
    about = "Ellipses hold one standard deviation of a class's training images."
    title = titled("The classes in the plane of the network's features", about)
    return class_map(plane, names).properties(title=title)


def least_width(classes: int) -> int:
    """The pixels of width that the names of so many ``classes`` need."""
    return min(_MOST, max(_LEAST, _PER_CLASS * classes))


def _sides(classes: int) -> tuple[float, float]:
    return least_width(classes), _HEIGHT * least_width(classes)


def _axes(width: float, height: float) -> tuple[alt.X, alt.Y]:
    """Axes of pixels."""
    x, y = (alt.Scale(domain=[0, side], nice=False, zero=False) for side in (width, height))
    return alt.X("x:Q", axis=None, scale=x), alt.Y("y:Q", axis=None, scale=y)


def _faint(usual: float, faint: float) -> Any:
    """``usual``, and ``faint`` for the classes that are not among those that a reader has chosen."""
    return alt.condition("datum.chosen === false", alt.value(faint), alt.value(usual))


def _ellipses() -> Chart:
    """Outlines, which the specification computes from the two half axes of each ellipse."""
    angle = f"{2 * np.pi / _CORNERS:.6f} * datum.corner"
    colour: dict[str, Any] = {"scale": alt.Scale(scheme="tableau20"), "legend": None}
    return (
        alt.Chart()
        .transform_calculate(corner=f"sequence(0, {_CORNERS + 1})")
        .transform_flatten(["corner"])
        .transform_calculate(
            x=f"datum.mean_x + datum.ax * cos({angle}) + datum.bx * sin({angle})",
            y=f"datum.mean_y + datum.ay * cos({angle}) + datum.by * sin({angle})",
        )
        .mark_line(strokeWidth=1.2, fillOpacity=0.05)
        .encode(
            order="corner:O",
            detail="number:N",
            color=alt.Color("number:N", **colour),
            fill=alt.Fill("number:N", **colour),
            opacity=_faint(0.75, 0.12),
            tooltip=alt.Tooltip("class:N"),
        )
    )


def _names() -> Chart:
    placed = alt.Chart().transform_calculate(x="datum.name_x", y="datum.name_y")
    written = placed.mark_text(fontSize=13, baseline="middle")
    return written.encode(text="class:N", opacity=_faint(1, 0.2), tooltip=alt.Tooltip("class:N"))


def _rows(plane: Floats, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per class: its number and name, and in pixels the mean, the half axes and the name's place."""
    means, covariances = plane[:, :2], plane[:, [2, 3, 3, 4]].reshape(-1, 2, 2)
    variances, axes = np.linalg.eigh(covariances)
    axes = axes * np.sqrt(np.maximum(variances, 0))[:, None]  # (C, 2, 2), an axis in each column
    reach = np.sqrt(np.maximum(np.einsum("cii->ci", covariances), 0))  # of an ellipse to each side
    low, high = (means - reach).min(0), (means + reach).max(0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    sides = np.array(_sides(len(names)))
    pixels = sides / np.where(high > low, high - low, 1)
    shown = [shortened(name) for name in names]
    middles = (means - low) * pixels
    placed = _placed(middles, shown, sides)
    numbers = np.hstack([middles, axes[:, :, 0] * pixels, axes[:, :, 1] * pixels, placed]).round(1)
    fields = ("mean_x", "mean_y", "ax", "ay", "bx", "by", "name_x", "name_y")
    return [
        {"number": number, "class": name, **dict(zip(fields, row, strict=True))}
        for number, (name, row) in enumerate(zip(shown, numbers.tolist(), strict=True))
    ]


def _placed(wanted: Floats, names: Sequence[str], sides: Floats) -> Floats:
    """Places (C, 2) in pixels as near to those ``wanted`` as names that do not cover each other allow."""
    # From the middle outwards, on a spiral: the golden angle leaves no direction out.
    steps = np.arange(_TRIES)
    radius, angle = 3.2 * np.sqrt(steps)[:, None], 2.399963 * steps[:, None]
    spiral = radius * np.concatenate([1.6 * np.cos(angle), np.sin(angle)], axis=1)
    placed: list[Floats] = []
    widths: list[float] = []
    for place, name in zip(wanted, names, strict=True):
        width = _CHARACTER * len(name)
        half = np.minimum([width / 2, _LINE / 2], sides / 2)
        tried = np.clip(place + spiral, half, sides - half)
        others, apart = np.reshape(placed, (-1, 2)), (np.array(widths) + width) / 2
        covers = (np.abs(tried[:, None, 0] - others[:, 0]) < apart) & (
            np.abs(tried[:, None, 1] - others[:, 1]) < _LINE
        )
        placed.append(tried[int(covers.sum(1).argmin())])
        widths.append(width)
    return np.array(placed)
