"""Draws all candidates in one figure: points lost against size, with their bounds and the promise."""

from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from laq.advise.text import NETWORKS, Findings, bound_of, kib, named, wishes
from laq.quantization.methods.registry import BASELINE, label_of, look_of, sort_methods
from laq.report.figures import COLOURS, DPI, wrapped
from laq.report.tables import BASE_OF

_WANTED: Final[dict[str, Any]] = {"color": "0.35", "lw": 1.1, "ls": (0, (6, 3))}
_RING: Final[dict[str, Any]] = {
    "color": "k", "marker": "o", "ms": 17, "ls": "", "markerfacecolor": "none", "markeredgewidth": 1.8,
}  # fmt: skip
_FLOAT: Final[dict[str, Any]] = {"ls": ":", "lw": 1.6}
_FAR: Final = 3
_TICKS: Final = (-50, -20, -10, -5, -2, -1, 0, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw(path: Path, found: Findings) -> None:
    """Draw what each candidate loses against its file's size, with bounds, the promise and the choice.

    The axis is of points lost, or of restricted top-1 where the request is one.
    """
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots()
    candidates = found.table[found.table.method != "float"]
    _sizes(axes, candidates, found)
    _accuracies(axes, found)
    _candidates(axes, candidates, found)
    _marks(axes, found)
    _choice(axes, found)
    axes.grid(alpha=0.25)
    figure.legend(handles=_keys(found), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(wrapped(f"{found.names[1]} for {found.title}", 105), fontsize=11, parse_math=False)
    figure.savefig(path, dpi=DPI)


def _sizes(axes: Axes, candidates: pd.DataFrame, found: Findings) -> None:
    """Set up the logarithmic axis of sizes; it leaves out a size limit that is far from all candidates."""
    low, high = candidates.size_bytes.min() / _FAR, candidates.size_bytes.max() * _FAR
    limit = [found.wanted.max_bytes] if low <= found.wanted.max_bytes <= high else []
    sizes = [size / 1024 for size in (*candidates.size_bytes, *limit)]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.15, max(sizes) * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("size of the file (KiB)")


def _columns(found: Findings) -> tuple[str, str, str]:
    """The columns of what is drawn, and of its lower and its upper bound."""
    if found.wanted.lose is not None:
        return "lost_points", "lost_low_points", "lost_high_points"
    return "top1_sub_percent", "low_percent", "high_percent"


def _accuracies(axes: Axes, found: Findings) -> None:
    """Set up the axis, linear around the request and logarithmic far away; the better is above."""
    columns, table, n = _columns(found), found.table, found.original["n"]
    shown = [*table[list(columns)].to_numpy().ravel(), found.wanted.value]
    if found.wanted.lose is None:
        axes.set_ylim(max(min(shown) - 2, -2), min(max(shown) + 2, 102))
        axes.set_ylabel(f"top-1 among these classes (%), n = {n} choosing images")
        return
    near = max(2.0, 2 * found.wanted.value)
    axes.set_yscale("symlog", linthresh=near, linscale=1.5)
    axes.set_ylim(1.15 * max(*shown, near), min(*shown, 0) - 0.15 * near)
    ticks = [t for t in _TICKS if min(shown) <= t <= max(*shown, near) and (t == 0 or abs(t) > near / 8)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"points of top-1 lost, n = {n} choosing images")


def _look(variant: str, method: str) -> dict[str, Any]:
    """Colour and marker; the baseline's marker is hollow, as it shares its shape with another method."""
    colour = COLOURS[variant]
    look = {"color": colour, "ls": "", "markeredgecolor": colour, "markeredgewidth": 1.2}
    face = "none" if method == BASELINE else colour
    return {**look, "marker": look_of(method).marker, "ms": 7, "markerfacecolor": face}


def _candidates(axes: Axes, candidates: pd.DataFrame, found: Findings) -> None:
    """Draw a point with its bounds per candidate, and as steps the best one up to each size."""
    name, low, high = _columns(found)
    for (variant, method), rows in candidates.groupby(["variant", "method"], sort=False):
        look = _look(str(variant), str(method))
        # The bounds of all candidates would hide each other.
        bounded = rows[rows.tested | rows.pareto]
        x = bounded.size_bytes / 1024
        axes.vlines(x, bounded[low], bounded[high], colors=look["color"], lw=1.8, alpha=0.45, zorder=2.5)
        axes.plot(rows.size_bytes / 1024, rows[name], alpha=0.85, zorder=3, **look)
    front = candidates[candidates.pareto].sort_values(["size_bytes", "top1_sub_percent"])
    ends = [*front.size_bytes / 1024, axes.get_xlim()[1]]
    best = np.minimum if found.wanted.lose is not None else np.maximum
    y = best.accumulate([*front[name], best.reduce(front[name])])
    axes.plot(ends, y, drawstyle="steps-post", c="0.2", lw=1.2, zorder=2)


def _marks(axes: Axes, found: Findings) -> None:
    """Draw lines across the axes for the float networks and for the request."""
    for row in found.table[found.table.method == "float"].to_dict("records"):
        axes.axhline(row[_columns(found)[0]], c=COLOURS[row["variant"]], zorder=1, **_FLOAT)
    axes.axhline(found.wanted.value, zorder=1, **_WANTED)
    if isfinite(found.wanted.max_bytes):
        axes.axvline(found.wanted.max_bytes / 1024, zorder=1, **_WANTED)


def _choice(axes: Axes, found: Findings) -> None:
    """Draw a ring around the chosen network, and name it in the lower right corner, which is mostly empty."""
    row = found.chosen
    if row is None:
        return
    place = (row["size_bytes"] / 1024, row[_columns(found)[0]])
    axes.plot(*place, zorder=5, **_RING)
    value = f"{row['lost_points']:z.1f} points lost, bound {bound_of(row, found.wanted)}"
    label = f"{named(row)}\n{kib(row)} KiB, {value}"
    ring = Line2D([], [], label=label, **_RING)
    axes.legend(handles=[ring], loc="lower right", fontsize=9.5, borderpad=0.8, handletextpad=1)


def _keys(found: Findings) -> list[Line2D]:
    """The entries of the legend: colours for networks, markers for methods, and the lines."""
    table = found.table
    variants, methods = set(table.variant), set(table.method)
    networks = [
        Line2D([], [], label=f"{NETWORKS[base]} network, quantized", color=COLOURS[variant], lw=6)
        for variant, base in BASE_OF.items()
        if variant in variants
    ]
    floats = [
        Line2D([], [], label=f"{NETWORKS[row['variant']]} network, float ({kib(row)} KiB)",
               c=COLOURS[row["variant"]], **_FLOAT)
        for row in table[table.method == "float"].sort_values("variant", ascending=False).to_dict("records")
    ]  # fmt: skip
    marks = [
        Line2D([], [], label=label_of(method), **_look("original", method))
        for method in sort_methods(methods)
        if method != "float"
    ]
    lines = [
        Line2D([], [], label="Pareto front", c="0.2", lw=1.2),
        Line2D([], [], label=f"promise: {wishes(found)}", **_WANTED),
        Line2D([], [], label="bounds of those tested or on it", c="0.5", lw=1.8, alpha=0.6),
    ]
    return networks + floats + marks + lines
