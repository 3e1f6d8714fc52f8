"""The study's findings as Markdown: for a terminal, a README or a run's note."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final

import pandas as pd

from laq.report.analysis import Analysis
from laq.report.correlations import DEPENDENCE
from laq.report.tables import BASE_OF, SEED_SPREAD, main_rows
from laq.study import NO_IMAGES

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
IMAGES: Final = {NO_IMAGES: "", "subset": "subset", "all": "all classes"}
_ABOUT_ACCURACY: Final = """\
Top-1 accuracy in percent on the test images of each subset's classes, mean ± standard deviation over
n subsets. *subset*: choosing among the subset's classes; *all*: among all. *images*: what calibrated."""
_ABOUT_SEEDS: Final = """
Each subset's seeds are averaged first; *± seeds* is the standard deviation of *subset* over them, a mean
over subsets."""
_CAVEAT: Final = """\
n counts subsets; seeds are averaged first. Subsets share classes: p_holm, which takes them for independent,
speaks of subsets of these classes alone; **classes shared** speaks of other classes, too. For differences
every class then has a random effect, for correlations the names of the divergence matrix's classes are
permuted. Both are corrected over all rows of a question, and **certain** is what both say. In brackets stand
intervals: of differences the one with classes shared, of correlations a bootstrap's over subsets."""
_ABOUT_RHO: Final = """\
Spearman's rank correlation of the drop in restricted top-1 with the median divergence, and *partial*: with
the accuracy before quantization and the subset's size held fixed. Bootstrap intervals over subsets;
p-values by permutation of subsets, and of the divergence matrix's classes (*classes*), corrected by Holm;
undefined where the drop is constant."""
_ABOUT_EFFECTS: Final = """\
*first* − *second* in points, paired by subset (and seed): mean, bootstrap interval over n subsets, mean /
standard deviation (d_z), p-value by sign flips, corrected by Holm; and the interval and the corrected p-value
with a random effect of every class, as subsets share classes (*classes*). *drop*: of the points lost against
the own base, less is better."""


def markdown(analysis: Analysis, answers: Mapping[str, str]) -> str:
    """What was found: answers, what each bit-width costs, and the tables that the answers are from."""
    blocks = [
        f"# {analysis.title}",
        findings(analysis.summary),
        *_answers(answers),
        accuracies(analysis.summary),
    ]
    if len(analysis.correlations):
        blocks += [_ABOUT_RHO, "\n".join(_correlations(analysis.correlations))]
    if len(analysis.comparisons):
        blocks += [_ABOUT_EFFECTS, "\n".join(_comparisons(analysis.comparisons))]
    return "\n\n".join(blocks) + "\n"


def _answers(answers: Mapping[str, str]) -> Iterable[str]:
    if answers:
        yield "## Answers"
        yield answered(answers)
        yield "## Tables"


def answered(answers: Mapping[str, str]) -> str:
    """Each question with its answer, below what their numbers mean; nothing where nothing was asked."""
    told = "\n".join(f"- **{question}** {text}" for question, text in answers.items())
    return f"{_CAVEAT}\n\n{told}" if told else ""


def findings(summary: pd.DataFrame) -> str:
    """A line per bit-width: the method that keeps most of the original network, beside round-to-nearest."""
    quantized = main_rows(summary[summary.variant == "quantized"])
    lines = [_finding(str(bits), group) for bits, group in quantized.groupby("bits", sort=False)]
    return "\n".join(["Choosing among the subset's classes, of the original network:", "", *lines])


def _finding(bits: str, group: pd.DataFrame) -> str:
    rows = group.to_dict("records")
    first = max(rows, key=lambda row: row["top1_sub_percent_mean"])
    plain = [f"; {_lost(row)} by round-to-nearest" for row in rows if row["method"] == "rtn"]
    beside = "" if first["method"] == "rtn" else "".join(plain)
    images = " on images of all classes" if first["calibration"] == "all" else ""
    return (
        f"- {bits} bits: {_lost(first)} by {METHOD_NAMES[first['method']]}{images}{beside} (n = {first['n']})"
    )


def _lost(row: Mapping[Hashable, Any]) -> str:
    return f"{_spread(row, 'drop_sub_points')} points lost"


def accuracies(summary: pd.DataFrame) -> str:
    """The table of accuracies, and what is in it."""
    seeds = _ABOUT_SEEDS if summary[SEED_SPREAD].notna().any() else ""
    return f"{_ABOUT_ACCURACY}{seeds}\n\n" + "\n".join(_accuracies(summary))


def _accuracies(summary: pd.DataFrame) -> Iterable[str]:
    repeated = summary[SEED_SPREAD].notna().any()
    head = ["network", "method", "bits", "levels", "n", "images", "subset", "all", "drop (subset)"]
    yield from _head(*head, *(["± seeds"] if repeated else []))
    for row in summary.to_dict("records"):
        floating = row["method"] == "float"
        cells = [
            BASE_OF.get(row["variant"], row["variant"]),
            row["method"],
            row["bits"],
            "" if pd.isna(row["levels"]) else row["levels"],
            row["n"],
            IMAGES[row["calibration"]],
            _spread(row, "top1_sub_percent"),
            _spread(row, "top1_all_percent"),
            "" if floating else _spread(row, "drop_sub_points"),
        ]
        seeds = "" if pd.isna(row[SEED_SPREAD]) else f"{row[SEED_SPREAD]:.2f}"
        yield line(*cells, *([seeds] if repeated else []))


def _correlations(correlations: pd.DataFrame) -> Iterable[str]:
    p_values = ("p", "p_holm", "p (classes)", "p_holm (classes)")
    yield from _head("network", "method", "bits", "images", "n", "", "rho", "interval", *p_values)
    asked = (correlations.question == DEPENDENCE) & (correlations.score == "drop_sub_points")
    for row in correlations[asked].to_dict("records"):
        yield line(
            BASE_OF[row["variant"]],
            row["method"],
            row["bits"],
            IMAGES[row["calibration"]],
            row["n"],
            "partial" if row["measure"] == "partial_rho" else "",
            *_estimate(row, "+z.2f"),
            *(_number(row[p], ".4f") for p in ("p_value", "p_holm", "p_classes", "p_classes_holm")),
        )


def _comparisons(comparisons: pd.DataFrame) -> Iterable[str]:
    estimates = ("difference", "interval", "d_z", "p", "p_holm", "interval (classes)", "p_holm (classes)")
    yield from _head("question", "first", "second", "network", "method", "bits", "images", "n", *estimates)
    for row in comparisons.to_dict("records"):
        yield line(
            row["question"] + (", drop" if row["score"] == "drop_sub_points" else ""),
            row["first"],
            row["second"],
            BASE_OF.get(row["variant"], row["variant"]),
            row["method"],
            row["bits"],
            IMAGES.get(row["calibration"], ""),
            row["n"],
            *_estimate(row, "+z.2f"),
            _number(row["d_z"], "+z.2f"),
            *(_number(row[p], ".4f") for p in ("p_value", "p_holm")),
            _interval(row["low_classes"], row["high_classes"], "+z.2f"),
            _number(row["p_classes_holm"], ".4f"),
        )


def _estimate(row: Mapping[Hashable, Any], form: str) -> tuple[str, str]:
    """The effect and its interval."""
    if pd.isna(row["effect"]):
        return "undefined", ""
    return f"{row['effect']:{form}}", _interval(row["low"], row["high"], form)


def _interval(low: float, high: float, form: str) -> str:
    return "" if pd.isna(low) else f"{low:{form}} to {high:{form}}"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else f"{value:{form}}"


def _spread(row: Mapping[Hashable, Any], name: str) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    return f"{mean:z.1f}" if pd.isna(std) else f"{mean:z.1f} ± {std:.1f}"


def _head(*names: str) -> tuple[str, str]:
    return f"| {' | '.join(names)} |", "|---" * len(names) + "|"


def line(*cells: object) -> str:
    """A row of a table; patterns of layers' names may have stars and bars, which Markdown would read."""
    escaped = (str(cell).replace("*", r"\*").replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
