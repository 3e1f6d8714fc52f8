"""Draws two studies in one figure: accuracy against bits, a panel per network, a colour per study."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from laq.compare.pairing import SIDES, Comparison
from laq.report.figures import DPI, in_order, method_keys, method_style, wrapped
from laq.report.tables import BASE_OF

_COLOURS: Final = {"first": "tab:blue", "second": "tab:orange"}
# The dots of one line fall into the gaps of the other: the float accuracies of both are often equal.
_DOTS: Final = {"first": (0, (1, 4)), "second": (2.5, (1, 4))}


def draw(path: Path, table: pd.DataFrame, pair: Comparison) -> None:
    """Draw the mean ± standard deviation of restricted top-1 over all subsets of each study, by method."""
    # The table lists all calibrations; the figure shows one, the subset's own images if there are several.
    table = table[table.calibration != "all"] if "subset" in set(table.calibration) else table
    quantized = table[table.method != "float"]
    keys = [*_study_keys(pair), *method_keys(set(quantized.method))]
    columns, lines = (len(keys) + 1) // 2, len(SIDES) * quantized.method.nunique()
    width = max(9.6, 0.4 * lines * quantized.bits.nunique(), 2.2 * columns)
    figure = Figure(figsize=(width, max(5.0, 0.45 * lines)), layout="constrained")
    panels = figure.subplots(1, len(BASE_OF), sharey=True)
    for axes, (variant, base) in zip(panels, BASE_OF.items(), strict=True):
        _floats(axes, table[table.variant == base])
        _lines(axes, table[table.variant == variant], in_order(quantized))
        axes.set_title(f"{base} network", fontsize=10)
        axes.set_xlabel("bits per weight")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("top-1 on the subset's images,\namong the subset's classes (%)")
    looks: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 9, "handlelength": 4}
    figure.legend(handles=keys, loc="outside lower center", **looks)
    figure.suptitle(wrapped(pair.title, 90), fontsize=11)
    figure.savefig(path, dpi=DPI)


def _floats(axes: Axes, rows: pd.DataFrame) -> None:
    for side in SIDES:
        mean = rows[f"top1_sub_percent_{side}"].mean()
        if not pd.isna(mean):
            axes.axhline(mean, c=_COLOURS[side], ls=_DOTS[side], lw=1.6)


def _lines(axes: Axes, rows: pd.DataFrame, bits: list[str]) -> None:
    """Draw a line per study and method; lines are shifted sideways so that their points do not overlap."""
    axes.set_xticks(range(len(bits)), [wrapped(width, 11) for width in bits])
    axes.set_xlim(-0.6, len(bits) - 0.4)
    drawn = [
        (side, str(method))
        for side in SIDES
        for method in rows.dropna(subset=f"top1_sub_percent_{side}").method.unique()
    ]
    offsets = 0.11 * (np.arange(len(drawn)) - (len(drawn) - 1) / 2) * min(1, 6 / max(1, len(drawn)))
    for offset, (side, method) in zip(offsets, drawn, strict=True):
        score = rows[rows.method == method].groupby("bits")[f"top1_sub_percent_{side}"]
        spread = score.agg(["mean", "std"]).reindex(bits).assign(place=range(len(bits))).dropna(subset="mean")
        look = {"c": _COLOURS[side], **method_style(method)}
        x, deviation = spread.place + offset, spread["std"].fillna(0)
        bars = axes.errorbar(x, spread["mean"], deviation, ms=4, capsize=0, lw=1.4, elinewidth=0.9, **look)
        for bar in bars.lines[2]:
            bar.set_alpha(0.4)


def _study_keys(pair: Comparison) -> list[Line2D]:
    """The legend of the colours: a solid line for each study, and a dotted one for its float network."""
    keys = []
    for side, study in zip(SIDES, (pair.first, pair.second), strict=True):
        colour, name = _COLOURS[side], wrapped(f"{side}: {study.label}", 24)
        keys.append(Line2D([], [], color=colour, lw=1.4, label=name))
        keys.append(Line2D([], [], color=colour, lw=1.6, ls=_DOTS[side], label=f"{side}, float"))
    return keys
