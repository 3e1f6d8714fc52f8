"""The study's figures: accuracy against divergence, and against bits."""

import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from laq.quantization.methods.registry import label_of, look_of, sort_methods
from laq.report.tables import BASE_OF

COLOURS: Final = {
    "original": "0.45",
    "quantized": "tab:blue",
    "finetuned": "tab:olive",
    "finetuned_quantized": "tab:red",
}
_MARKERS: Final = {
    "similar": "o",
    "dissimilar": "^",
    "random": "s",
    "even": "v",
    "band": "D",
    "given": "P",
    "log": "X",
}
DPI: Final = 130
_WIDEST: Final = 1700  # pixels


def draw_against_divergence(path: Path, table: pd.DataFrame, title: str) -> None:
    """Draw restricted top-1 of every subset with a fitted logarithm, in a panel per method and bit-width."""
    quantized = table[table.method != "float"]
    methods, bits = list(quantized.method.unique()), in_order(quantized)
    figure = Figure(figsize=(max(6.4, 3.3 * len(bits) + 0.6), 3.1 * len(methods) + 1.3), layout="constrained")
    panels = figure.subplots(len(methods), len(bits), sharex=True, squeeze=False)
    for row, method in zip(panels, methods, strict=True):
        for axes, width in zip(row, bits, strict=True):
            cells = (table.method == method) & (table.bits == width)
            axes.set_visible(bool(cells.any()))
            _scatter(axes, table[(table.method == "float") | cells])
            axes.set_title(wrapped(f"{label_of(method)}, {width} bits", 38), fontsize=10)
        row[0].set_ylabel("top-1 on the subset (%)")
    for axes in panels[-1]:
        axes.set_xlabel("median divergence (nats)")
    figure.legend(handles=_keys(table), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=min(DPI, _WIDEST / figure.get_figwidth()))


def in_order(quantized: pd.DataFrame) -> list[str]:
    """The bits of the table, from few to many."""
    return list(quantized.groupby("bits").mean_bits.mean().sort_values(kind="stable").index)


def wrapped(label: str, width: int) -> str:
    """The label in at most four lines of ``width`` characters; a list of bits by layer may be very long."""
    return "\n".join(textwrap.wrap(label, width, max_lines=4, placeholder="…", break_on_hyphens=False))


def _scatter(axes: Axes, rows: pd.DataFrame) -> None:
    size = np.clip(1000 / rows.subset.nunique(), 9, 24)  # the more points, the smaller
    axes.set_xscale("log")
    axes.grid(alpha=0.25)
    for variant, group in rows.groupby("variant", sort=False):
        colour = COLOURS[str(variant)]
        for kind, members in group.groupby("kind"):
            points = (members.median_divergence_nats, members.top1_sub_percent)
            axes.scatter(*points, s=size, c=colour, marker=_MARKERS[str(kind)], alpha=0.8, linewidths=0)
        _curve(axes, group, colour)


def _curve(axes: Axes, group: pd.DataFrame, colour: str) -> None:
    x, y = group.median_divergence_nats.to_numpy(), group.top1_sub_percent.to_numpy()
    if len(np.unique(x)) < 3 or x.min() <= 0:
        return
    # The predecessor fits a ln(b x) + c, which is the same family of curves: b only moves c.
    slope, intercept = np.polyfit(np.log(x), y, 1)
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, slope * np.log(ends) + intercept, c=colour, lw=1.2)


def _keys(table: pd.DataFrame) -> list[Line2D]:
    """The entries of the legend: colours for variants, markers for kinds of subsets."""
    variants = [v for v in COLOURS if v in set(table.variant)]
    kinds = [k for k in _MARKERS if k in set(table.kind)]
    lines = [
        Line2D([], [], color=COLOURS[v], marker="o", ms=5, lw=1.2, label=v.replace("_", " + "))
        for v in variants
    ]
    marks = [Line2D([], [], color="0.3", marker=_MARKERS[k], ms=5, lw=0, label=f"{k} classes") for k in kinds]
    return lines + marks


def draw_against_bits(path: Path, table: pd.DataFrame, title: str) -> None:
    """Draw mean ± standard deviation of top-1 over subsets, among the subset's classes and among all."""
    quantized = table[table.method != "float"]
    lines = quantized.groupby(["variant", "method"]).ngroups
    crowd = lines * quantized.bits.nunique()
    figure = Figure(figsize=(max(9.6, 0.2 * crowd), max(4.6, 0.45 * lines)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    sides = {
        "top1_sub_percent": "choosing among the subset's classes",
        "top1_all_percent": "choosing among all classes",
    }
    for axes, (score, what) in zip(panels, sides.items(), strict=True):
        _lines(axes, table, score)
        axes.set_title(what, fontsize=10)
        axes.set_xlabel("bits per weight")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("top-1 on the subset's images (%)")
    keys = _line_keys(table)
    figure.legend(
        handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9, handlelength=4
    )
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=DPI)


def _line_keys(table: pd.DataFrame) -> list[Line2D]:
    """The entries of the legend: colours for variants (float networks are dotted), lines for methods."""
    looks = {b: (":", f"{b}, float") for b in BASE_OF.values()}
    looks |= {v: ("-", v.replace("_", " + ")) for v in BASE_OF}
    there = set(table.variant)
    variants = [
        Line2D([], [], color=COLOURS[v], ls=line, lw=1.4, label=label)
        for v, (line, label) in looks.items()
        if v in there
    ]
    return variants + method_keys(set(table.method))


def method_keys(methods: Collection[str]) -> list[Line2D]:
    """The entries of the legend for the methods that are drawn: lines and markers."""
    return [
        Line2D([], [], color="0.3", ms=4, lw=1.4, label=label_of(method), **method_style(method))
        for method in sort_methods(methods)
        if method != "float"
    ]


def method_style(method: str) -> dict[str, Any]:
    """The line and the marker of a method, as keyword arguments of matplotlib."""
    look = look_of(method)
    return {"ls": (0, look.dash) if look.dash else "-", "marker": look.marker}


def _lines(axes: Axes, table: pd.DataFrame, score: str) -> None:
    quantized = table[table.method != "float"]
    places = {width: place for place, width in enumerate(in_order(quantized))}
    axes.set_xticks(list(places.values()), [wrapped(width, 11) for width in places])
    axes.set_xlim(-0.6, len(places) - 0.4)
    for base, cells in table[table.method == "float"].groupby("variant"):
        axes.axhline(cells[score].mean(), c=COLOURS[str(base)], ls=":", lw=1.4)
    groups = list(quantized.groupby(["variant", "method"], sort=False))
    offsets = 0.11 * (np.arange(len(groups)) - (len(groups) - 1) / 2) * min(1, 6 / len(groups))
    for offset, ((variant, method), group) in zip(offsets, groups, strict=True):
        spread = group.groupby("bits")[score].agg(["mean", "std"])
        spread = spread.loc[[width for width in places if width in spread.index]]
        x = np.array([places[str(width)] for width in spread.index]) + offset
        look = {"c": COLOURS[str(variant)], **method_style(str(method))}
        axes.errorbar(x, spread["mean"], spread["std"], ms=4, capsize=0, lw=1.4, elinewidth=0.9, **look)
