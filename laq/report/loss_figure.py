"""The figure of what quantization costs: points lost against bits, with intervals and every subset."""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from laq.quantization.methods.registry import label_of, look_of, sort_methods
from laq.report.comparisons import LOSS
from laq.report.figures import DPI, in_order, wrapped
from laq.report.tables import BASE_OF

_SPREAD: Final = 0.7  # of the distance between two bit-widths, which the methods share
_TITLES: Final = {"quantized": "original network", "finetuned_quantized": "fine-tuned on the subset first"}
# Equal steps up to one point, and equal ratios beyond: losses at 2 bits are a hundred times those at 8.
_LINEAR: Final = 1.0
_TICKS: Final = (-5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50)


def draw_points_lost(path: Path, cells: pd.DataFrame, comparisons: pd.DataFrame, title: str) -> None:
    """Draw the points of restricted top-1 that each method loses, in a panel per base network.

    Args:
        path: the PNG file.
        cells: a row per subset and cell, with ``drop_sub_points``.
        comparisons: the table of effects, of which the losses' means and intervals are drawn.
        title: the study's.
    """
    lost = (comparisons.question == LOSS) & (comparisons.score == "drop_sub_points")
    losses = comparisons[lost].assign(variant=comparisons["first"])
    variants = [variant for variant in BASE_OF if variant in set(losses.variant)]
    figure = Figure(figsize=(max(6.4, 5.2 * len(variants)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for axes, variant in zip(panels, variants, strict=True):
        _panel(axes, cells[cells.variant == variant], losses[losses.variant == variant])
        axes.set_title(_TITLES[variant], fontsize=10)
    panels[0].set_ylabel("points of top-1 lost")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=DPI)


def _panel(axes: Axes, cells: pd.DataFrame, losses: pd.DataFrame) -> None:
    # Bits that differ from layer to layer stand behind those that do not: they are no number on an axis.
    bits = sorted(in_order(cells), key=lambda width: not width.isdecimal())
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
    axes.yaxis.set_major_locator(FixedLocator(_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.axhline(0, color="0.4", lw=0.8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_xticks(range(len(bits)), [wrapped(width, 11) for width in bits])
    axes.set_xlabel("bits per weight")
    methods = sort_methods(set(losses.method))
    rng = np.random.default_rng(0)  # scatters the points of equal losses
    for place, method in enumerate(methods):
        offset = _SPREAD * ((place + 0.5) / len(methods) - 0.5)
        look, rows = look_of(method), losses[losses.method == method]
        for width, lost in cells[cells.method == method].groupby("bits").drop_sub_points:
            scattered = rng.uniform(-0.3, 0.3, len(lost)) * _SPREAD / len(methods)
            x = bits.index(str(width)) + offset + scattered
            axes.scatter(x, lost, s=7, color=look.colour, alpha=0.25, linewidths=0)
        x = np.array([bits.index(str(width)) for width in rows.bits]) + offset
        ends = np.abs(rows[["low", "high"]].to_numpy(dtype=float).T - rows.effect.to_numpy(dtype=float))
        axes.errorbar(
            x, rows.effect, ends, color=look.colour, marker=look.marker, ms=6, capsize=3, ls="",
            lw=1.6, markeredgecolor="white", markeredgewidth=0.6, label=label_of(method), zorder=3,
        )  # fmt: skip
