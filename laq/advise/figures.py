"""Draws all candidates in one figure: accuracy against size, with the Pareto front and the chosen network."""

from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from laq.advise.text import NETWORKS, Findings, interval_of, kib, named, wishes
from laq.quantization.methods.registry import BASELINE, label_of, look_of, sort_methods
from laq.report.figures import COLOURS, DPI, wrapped
from laq.report.tables import BASE_OF

_WANTED: Final[dict[str, Any]] = {"color": "0.35", "lw": 1.1, "ls": (0, (6, 3))}
_RING: Final[dict[str, Any]] = {
    "color": "k", "marker": "o", "ms": 17, "ls": "", "markerfacecolor": "none", "markeredgewidth": 1.8,
}  # fmt: skip
_FLOAT: Final[dict[str, Any]] = {"ls": ":", "lw": 1.6}
_FAR: Final = 3


def draw(path: Path, found: Findings) -> None:
    """Draw restricted top-1 against the file's size, the Pareto front, the request and the chosen network."""
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots()
    candidates = found.table[found.table.method != "float"]
    _sizes(axes, candidates, found)
    _accuracies(axes, found)
    _candidates(axes, candidates)
    _marks(axes, found)
    _choice(axes, found)
    axes.grid(alpha=0.25)
    figure.legend(handles=_keys(found), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(wrapped(f"{found.network} for {found.title}", 105), fontsize=11, parse_math=False)
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


def _accuracies(axes: Axes, found: Findings) -> None:
    """Set up the axis of accuracies, logarithmic in the error so that the best candidates stand apart."""
    shown = [*found.table.top1_sub_percent, found.wanted.top1_percent]
    low, high = _spread(np.array([min(shown), max(shown)]))
    room = 0.06 * max(high - low, 0.2)
    bottom, top = _gathered(np.array([low - room, high + room]))
    axes.set_yscale("function", functions=(_spread, _gathered))
    axes.set_ylim(bottom, top)
    axes.set_yticks(_ticks(bottom, top))
    n = found.original["n"]
    axes.set_ylabel(f"top-1 among these classes (%), n = {n}\n(logarithmic in the error)")


def _ticks(bottom: float, top: float) -> list[int]:
    """The percentages to label: as many as have room, round numbers first."""
    chosen: list[int] = []
    span = np.ptp(_spread(np.array([bottom, top])))
    for step in (50, 20, 10, 5, 2, 1):
        for tick in range(0, 101, step):
            apart = np.abs(_spread(np.array([tick])) - _spread(np.array(chosen)))
            if bottom <= tick <= top and (apart >= 0.045 * span).all():
                chosen.append(tick)
    return sorted(chosen)


def _spread(top1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions on the axis of accuracies in percent; the error is taken from 101, so that 100 is finite."""
    stands: NDArray[np.float64] = -np.log(np.maximum(101 - np.asarray(top1), 1e-3))
    return stands


def _gathered(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of ``_spread``."""
    top1: NDArray[np.float64] = 101 - np.exp(-np.asarray(places))
    return top1


def _look(variant: str, method: str) -> dict[str, Any]:
    """Colour and marker; the baseline's marker is hollow, as it shares its shape with another method."""
    colour = COLOURS[variant]
    look = {"color": colour, "ls": "", "markeredgecolor": colour, "markeredgewidth": 1.2}
    face = "none" if method == BASELINE else colour
    return {**look, "marker": look_of(method).marker, "ms": 7, "markerfacecolor": face}


def _candidates(axes: Axes, candidates: pd.DataFrame) -> None:
    """Draw a point per candidate, and as steps the best accuracy up to each size."""
    for (variant, method), rows in candidates.groupby(["variant", "method"], sort=False):
        look = _look(str(variant), str(method))
        axes.plot(rows.size_bytes / 1024, rows.top1_sub_percent, alpha=0.85, zorder=3, **look)
    front = candidates[candidates.pareto].sort_values(["size_bytes", "top1_sub_percent"])
    x = [*front.size_bytes / 1024, axes.get_xlim()[1]]
    y = np.maximum.accumulate([*front.top1_sub_percent, front.top1_sub_percent.max()])
    axes.plot(x, y, drawstyle="steps-post", c="0.2", lw=1.2, zorder=2)


def _marks(axes: Axes, found: Findings) -> None:
    """Draw lines across the axes for the float networks and for the request."""
    for row in found.table[found.table.method == "float"].to_dict("records"):
        axes.axhline(row["top1_sub_percent"], c=COLOURS[row["variant"]], zorder=1, **_FLOAT)
    axes.axhline(found.wanted.top1_percent, zorder=1, **_WANTED)
    if isfinite(found.wanted.max_bytes):
        axes.axvline(found.wanted.max_bytes / 1024, zorder=1, **_WANTED)


def _choice(axes: Axes, found: Findings) -> None:
    """Draw a ring around the chosen network, and name it in the lower right corner, which is mostly empty."""
    row = found.chosen
    if row is None:
        return
    place = (row["size_bytes"] / 1024, row["top1_sub_percent"])
    axes.plot(*place, zorder=5, **_RING)
    label = f"{named(row)}\n{kib(row)} KiB, {row['top1_sub_percent']:.1f} % ({interval_of(row)})"
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
        Line2D([], [], label=f"request: {wishes(found)}", **_WANTED),
    ]
    return networks + floats + marks + lines
