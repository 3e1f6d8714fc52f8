"""The study's findings as Markdown: for a terminal, a README or a run's note."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final

import pandas as pd

from laq.report.statistics import BASE_OF

METHOD_NAMES: Final = {
    "float": "float",
    "rtn": "round-to-nearest",
    "gpfq": "GPFQ",
    "sgpfq": "SGPFQ",
    "gpfq_l0": "sparse GPFQ (L0)",
    "gpfq_l1": "sparse GPFQ (L1)",
    "gptq": "GPTQ",
    "qronos": "Qronos",
}
_ABOUT_ACCURACY: Final = """\
Top-1 accuracy in percent on the test images of each subset's classes, mean ± standard deviation over
n subsets. *subset*: choosing among the subset's classes; *all*: among all."""
_ABOUT_RHO: Final = """\
Spearman's rank correlation of the drop in restricted top-1 with the median divergence (bootstrap
interval; permutation p-value, not corrected for the number of rows; undefined where the drop is
constant). Subsets may share classes, which these take no account of."""


def markdown(summary: pd.DataFrame, correlations: pd.DataFrame, title: str) -> str:
    """What was found; tables of what each bit-width costs, and whether the drop goes with the divergence."""
    blocks = [
        f"# {title}",
        findings(summary),
        accuracies(summary),
        _ABOUT_RHO,
        "\n".join(_correlations(correlations)),
    ]
    return "\n\n".join(blocks) + "\n"


def findings(summary: pd.DataFrame) -> str:
    """A line per bit-width: the method that keeps most of the original network, beside round-to-nearest."""
    quantized = summary[summary.variant == "quantized"]
    lines = [_finding(str(bits), group) for bits, group in quantized.groupby("bits", sort=False)]
    return "\n".join(["Choosing among the subset's classes, of the original network:", "", *lines])


def _finding(bits: str, group: pd.DataFrame) -> str:
    rows = group.to_dict("records")
    first = max(rows, key=lambda row: row["top1_sub_percent_mean"])
    plain = [f"; {_lost(row)} by round-to-nearest" for row in rows if row["method"] == "rtn"]
    beside = "" if first["method"] == "rtn" else "".join(plain)
    return f"- {bits} bits: {_lost(first)} by {METHOD_NAMES[first['method']]}{beside} (n = {first['n']})"


def _lost(row: Mapping[Hashable, Any]) -> str:
    return f"{_spread(row, 'drop_sub_points')} points lost"


def accuracies(summary: pd.DataFrame) -> str:
    """The table of accuracies, and what is in it."""
    return f"{_ABOUT_ACCURACY}\n\n" + "\n".join(_accuracies(summary))


def _accuracies(summary: pd.DataFrame) -> Iterable[str]:
    yield "| network | method | bits | levels | n | subset | all | drop (subset) |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in summary.to_dict("records"):
        floating = row["method"] == "float"
        yield line(
            BASE_OF.get(row["variant"], row["variant"]),
            row["method"],
            row["bits"],
            "" if pd.isna(row["levels"]) else row["levels"],
            row["n"],
            _spread(row, "top1_sub_percent"),
            _spread(row, "top1_all_percent"),
            "" if floating else _spread(row, "drop_sub_points"),
        )


def _correlations(correlations: pd.DataFrame) -> Iterable[str]:
    yield "| network | method | bits | n | rho | interval | p |"
    yield "|---|---|---|---|---|---|---|"
    for row in correlations[correlations["drop"] == "drop_sub_points"].to_dict("records"):
        yield line(
            BASE_OF[row["variant"]],
            row["method"],
            row["bits"],
            row["n"],
            *_rho(row),
        )


def _rho(row: Mapping[Hashable, Any]) -> tuple[str, str, str]:
    if pd.isna(row["rho"]):
        return "undefined", "", ""
    return f"{row['rho']:+.2f}", f"{row['low']:+.2f} to {row['high']:+.2f}", f"{row['p_value']:.4f}"


def _spread(row: Mapping[Hashable, Any], name: str) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def line(*cells: object) -> str:
    """A row of a table; patterns of layers' names may have stars and bars, which Markdown would read."""
    escaped = (str(cell).replace("*", r"\*").replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
