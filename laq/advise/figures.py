"""All candidates in one picture: accuracy against size, and where no other is smaller and more accurate."""

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
    """Restricted top-1 against the file's size, the Pareto front, what was wanted and chosen."""
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots()
    candidates = found.table[found.table.method != "float"]
    _sizes(axes, candidates, found)
    _accuracies(axes, found)
    _points(axes, candidates)
    _front(axes, candidates)
    _marks(axes, found)
    _choice(axes, found)
    axes.grid(alpha=0.25)
    figure.legend(handles=_keys(found), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(wrapped(f"{found.network} for {found.title}", 105), fontsize=11)
    figure.savefig(path, dpi=DPI)


def _sizes(axes: Axes, candidates: pd.DataFrame, found: Findings) -> None:
    """A logarithmic axis; a limit far from all candidates is told in the legend alone."""
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
    """An axis by the logarithm of the error, on which the best stand apart."""
    shown = [*found.table.top1_sub_percent, found.wanted.top1_percent]
    low, high = _spread(np.array([min(shown), max(shown)]))
    room = 0.06 * max(high - low, 0.2)
    bottom, top = _gathered(np.array([low - room, high + room]))
    axes.set_yscale("function", functions=(_spread, _gathered))
    axes.set_ylim(bottom, top)
    axes.set_yticks(_ticks(bottom, top))
    n = found.original["n"]
    axes.set_ylabel(f"top-1 among these classes (%), n = {n}\n(spread by the logarithm of the error)")


def _ticks(bottom: float, top: float) -> list[int]:
    """Round numbers before others, as many as have room."""
    chosen: list[int] = []
    span = np.ptp(_spread(np.array([bottom, top])))
    for step in (50, 20, 10, 5, 2, 1):
        for tick in range(0, 101, step):
            apart = np.abs(_spread(np.array([tick])) - _spread(np.array(chosen)))
            if bottom <= tick <= top and (apart >= 0.045 * span).all():
                chosen.append(tick)
    return sorted(chosen)


def _spread(top1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where on the axis accuracies in percent stand, one point below what they are: 100 must be finite."""
    stands: NDArray[np.float64] = -np.log(np.maximum(101 - np.asarray(top1), 1e-3))
    return stands


def _gathered(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The opposite."""
    top1: NDArray[np.float64] = 101 - np.exp(-np.asarray(places))
    return top1


def _look(variant: str, method: str) -> dict[str, Any]:
    """Colour and marker; round-to-nearest, which shares GPFQ's marker, is hollow."""
    colour = COLOURS[variant]
    look = {"color": colour, "ls": "", "markeredgecolor": colour, "markeredgewidth": 1.2}
    face = "none" if method == BASELINE else colour
    return {**look, "marker": look_of(method).marker, "ms": 7, "markerfacecolor": face}


def _points(axes: Axes, candidates: pd.DataFrame) -> None:
    for (variant, method), rows in candidates.groupby(["variant", "method"], sort=False):
        look = _look(str(variant), str(method))
        axes.plot(rows.size_bytes / 1024, rows.top1_sub_percent, alpha=0.85, zorder=3, **look)


def _front(axes: Axes, candidates: pd.DataFrame) -> None:
    """The best accuracy of any size, as steps."""
    front = candidates[candidates.pareto].sort_values(["size_bytes", "top1_sub_percent"])
    x = [*front.size_bytes / 1024, axes.get_xlim()[1]]
    y = np.maximum.accumulate([*front.top1_sub_percent, front.top1_sub_percent.max()])
    axes.plot(x, y, drawstyle="steps-post", c="0.2", lw=1.2, zorder=2)


def _marks(axes: Axes, found: Findings) -> None:
    """Lines across: the networks in float, and what was wanted."""
    for row in found.table[found.table.method == "float"].to_dict("records"):
        axes.axhline(row["top1_sub_percent"], c=COLOURS[row["variant"]], zorder=1, **_FLOAT)
    axes.axhline(found.wanted.top1_percent, zorder=1, **_WANTED)
    if isfinite(found.wanted.max_bytes):
        axes.axvline(found.wanted.max_bytes / 1024, zorder=1, **_WANTED)


def _choice(axes: Axes, found: Findings) -> None:
    """A ring around the chosen one, and its name in the corner of large networks that lose much."""
    row = found.chosen
    if row is None:
        return
    place = (row["size_bytes"] / 1024, row["top1_sub_percent"])
    axes.plot(*place, zorder=5, **_RING)
    label = f"{named(row)}\n{kib(row)} KiB, {row['top1_sub_percent']:.1f} % ({interval_of(row)})"
    ring = Line2D([], [], label=label, **_RING)
    axes.legend(handles=[ring], loc="lower right", fontsize=9.5, borderpad=0.8, handletextpad=1)


def _keys(found: Findings) -> list[Line2D]:
    """The legend: colours for networks, markers for methods, lines."""
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
        Line2D([], [], label="no other is smaller and as accurate", c="0.2", lw=1.2),
        Line2D([], [], label=f"wanted: {wishes(found)}", **_WANTED),
    ]
    return networks + floats + marks + lines
