"""The study's findings as Markdown: for a terminal, a README or a run's note."""

from collections.abc import Mapping
from typing import Final

import pandas as pd

from laq.params import Report
from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.analysis import Analysis
from laq.report.correlations import DEPENDENCE
from laq.report.rendering import markdown_table, number, plain, templates
from laq.report.tables import BASE_OF, SEED_SPREAD, main_rows
from laq.study import NO_IMAGES

IMAGES: Final = {NO_IMAGES: "", "subset": "subset", "all": "all classes"}
_TEMPLATES: Final = "laq.report"


def markdown(analysis: Analysis, answered: str) -> str:
    """The whole report: what each bit-width costs, the answers, and the tables that they are from."""
    text = templates(_TEMPLATES).get_template("report.md")
    rho, pairs = _correlations(analysis.correlations), _comparisons(analysis.comparisons)
    return (
        text.render(
            title=analysis.title,
            findings=findings(analysis.summary),
            answers=answered,
            accuracies=accuracies(analysis.summary),
            correlations=markdown_table(rho) if len(rho) else "",
            comparisons=markdown_table(pairs) if len(pairs) else "",
        )
        + "\n"
    )


def answers_text(answers: Mapping[str, str], params: Report) -> str:
    """Each question with its answer, below what their numbers mean; nothing where nothing was asked."""
    if not answers:
        return ""
    text = templates(_TEMPLATES).get_template("answers.md")
    alpha, confidence = f"{1 - params.confidence:.3g}", f"{100 * params.confidence:g}"
    return text.render(answers=answers, alpha=alpha, confidence=confidence).strip()


def findings(summary: pd.DataFrame) -> str:
    """A line per bit-width: the method that keeps most of the original network, beside round-to-nearest."""
    quantized = main_rows(summary[summary.variant == "quantized"])
    rows = quantized.assign(lost=_spread(quantized, "drop_sub_points"), method=quantized.method.map(label_of))
    found = []
    for bits, group in rows.groupby("bits", sort=False):
        best = max(group.to_dict("records"), key=lambda row: row["top1_sub_percent_mean"])
        nearest = group[(group.method == label_of(BASELINE)) & (group.method != best["method"])]
        found.append({"bits": str(bits), "best": best, "nearest": nearest.to_dict("records")})
    return templates(_TEMPLATES).get_template("findings.md").render(findings=found).strip()


def accuracies(summary: pd.DataFrame) -> str:
    """The table of accuracies, and what is in it."""
    repeated = bool(summary[SEED_SPREAD].notna().any())
    table = pd.DataFrame(
        {
            "network": summary.variant.replace(BASE_OF),
            "method": summary.method,
            "bits": summary.bits,
            "levels": summary.levels,
            "n": summary.n,
            "images": summary.calibration.map(IMAGES),
            "subset": _spread(summary, "top1_sub_percent"),
            "all": _spread(summary, "top1_all_percent"),
            "drop (subset)": _spread(summary, "drop_sub_points").where(summary.method != "float", ""),
        }
    )
    if repeated:
        table["± seeds"] = summary[SEED_SPREAD].map(lambda spread: number(spread, ".2f"))
    text = templates(_TEMPLATES).get_template("accuracies.md")
    return text.render(repeated=repeated, table=markdown_table(table))


def _correlations(correlations: pd.DataFrame) -> pd.DataFrame:
    rows = correlations[(correlations.question == DEPENDENCE) & (correlations.score == "drop_sub_points")]
    return pd.DataFrame(
        {
            "network": rows.variant.map(BASE_OF),
            "method": rows.method,
            "bits": rows.bits,
            "images": rows.calibration.map(IMAGES),
            "n": rows.n,
            "measure": rows.measure.map({"rho": "rho", "partial_rho": "partial rho"}),
            "value": _numbers(rows.effect, "+z.2f").replace("", "undefined"),
            "interval": _intervals(rows.low, rows.high),
            "p": _numbers(rows.p_value, ".4f"),
            "p_holm": _numbers(rows.p_holm, ".4f"),
            "p (classes)": _numbers(rows.p_classes, ".4f"),
            "p_holm (classes)": _numbers(rows.p_classes_holm, ".4f"),
        }
    )


def _comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    asked = rows.question.where(rows.score != "drop_sub_points", rows.question + ", drop")
    return pd.DataFrame(
        {
            "question": asked,
            "first": rows["first"],
            "second": rows["second"],
            "network": rows.variant.replace(BASE_OF),
            "method": rows.method,
            "bits": rows.bits,
            "images": rows.calibration.map(IMAGES),
            "n": rows.n,
            "difference": _numbers(rows.effect, "+z.2f"),
            "interval": _intervals(rows.low, rows.high),
            "d_z": _numbers(rows.d_z, "+z.2f"),
            "p": _numbers(rows.p_value, ".4f"),
            "p_holm": _numbers(rows.p_holm, ".4f"),
            "interval (classes)": _intervals(rows.low_classes, rows.high_classes),
            "p_holm (classes)": _numbers(rows.p_classes_holm, ".4f"),
        }
    )


def _numbers(values: "pd.Series[float]", form: str) -> "pd.Series[str]":
    return values.map(lambda value: number(value, form)).astype(str)


def _intervals(low: "pd.Series[float]", high: "pd.Series[float]") -> "pd.Series[str]":
    return (_numbers(low, "+z.2f") + " to " + _numbers(high, "+z.2f")).where(low.notna(), "")


def _spread(rows: pd.DataFrame, name: str) -> "pd.Series[str]":
    """Mean ± standard deviation, of one subset the mean alone."""
    mean, deviation = _numbers(rows[f"{name}_mean"], "z.1f"), rows[f"{name}_std"]
    return (mean + " ± " + _numbers(deviation, ".1f")).where(deviation.notna(), mean)


def line(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(plain, cells))} |"
