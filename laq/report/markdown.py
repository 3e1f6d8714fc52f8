"""The study's findings as Markdown: for a terminal, a README or a run's note."""

from collections.abc import Mapping
from typing import Final

import pandas as pd

from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.analysis import Analysis
from laq.report.correlations import DEPENDENCE
from laq.report.rendering import markdown_table, number, numbers, spread, templates
from laq.report.tables import BALANCED, BASE_OF, SEED_SPREAD, main_rows
from laq.sections.report import Report
from laq.study.tables import NO_IMAGES

IMAGES: Final = {NO_IMAGES: "", "subset": "subset", "all": "all classes"}
_TEMPLATES: Final = "laq.report"


def markdown(analysis: Analysis, answered: str) -> str:
    """The whole report: findings by bit-width, answers, and the tables behind them."""
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
    """Each question with its answer, after an explanation of the numbers; empty if there are no questions."""
    if not answers:
        return ""
    text = templates(_TEMPLATES).get_template("answers.md")
    alpha, confidence = f"{1 - params.confidence:.3g}", f"{100 * params.confidence:g}"
    return text.render(answers=answers, alpha=alpha, confidence=confidence).strip()


def findings(summary: pd.DataFrame) -> str:
    """A line per bit-width: the points that the best method loses, beside those of round-to-nearest."""
    quantized = main_rows(summary[summary.variant == "quantized"])
    rows = quantized.assign(
        lost=_mean_and_deviation(quantized, "drop_sub_points"), method=quantized.method.map(label_of)
    )
    found = []
    for bits, group in rows.groupby("bits", sort=False):
        best = max(group.to_dict("records"), key=lambda row: row["top1_sub_percent_mean"])
        nearest = group[(group.method == label_of(BASELINE)) & (group.method != best["method"])]
        found.append({"bits": str(bits), "best": best, "nearest": nearest.to_dict("records")})
    return templates(_TEMPLATES).get_template("findings.md").render(findings=found).strip()


def accuracies(summary: pd.DataFrame) -> str:
    """The table of accuracies, after an explanation of its columns."""
    repeated = bool(summary[SEED_SPREAD].notna().any())
    table = pd.DataFrame(
        {
            "network": summary.variant.replace(BASE_OF),
            "method": summary.method,
            "bits": summary.bits,
            "levels": summary.levels,
            "n": summary.n,
            "images": summary.calibration.map(IMAGES),
            "subset": _mean_and_deviation(summary, "top1_sub_percent"),
            "all": _mean_and_deviation(summary, "top1_all_percent"),
            "drop (subset)": _mean_and_deviation(summary, "drop_sub_points").where(
                summary.method != "float", ""
            ),
        }
    )
    balanced = f"{BALANCED[0]}_mean" in summary
    if balanced:
        for place, side in ((7, "subset"), (9, "all")):
            column = _mean_and_deviation(summary, f"balanced_top1_{side.replace('subset', 'sub')}_percent")
            table.insert(place, f"{side}, balanced", column)
    if repeated:
        table["± seeds"] = summary[SEED_SPREAD].map(lambda spread: number(spread, ".2f"))
    text = templates(_TEMPLATES).get_template("accuracies.md")
    return text.render(repeated=repeated, balanced=balanced, table=markdown_table(table))


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
            "value": numbers(rows.effect, "+z.2f").replace("", "undefined"),
            "interval": _intervals(rows.low, rows.high),
            "p": numbers(rows.p_value, ".4f"),
            "p_holm": numbers(rows.p_holm, ".4f"),
            "p (classes)": numbers(rows.p_classes, ".4f"),
            "p_holm (classes)": numbers(rows.p_classes_holm, ".4f"),
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
            "difference": numbers(rows.effect, "+z.2f"),
            "interval": _intervals(rows.low, rows.high),
            "d_z": numbers(rows.d_z, "+z.2f"),
            "p": numbers(rows.p_value, ".4f"),
            "p_holm": numbers(rows.p_holm, ".4f"),
            "interval (classes)": _intervals(rows.low_classes, rows.high_classes),
            "p_holm (classes)": numbers(rows.p_classes_holm, ".4f"),
        }
    )


def _intervals(low: "pd.Series[float]", high: "pd.Series[float]") -> "pd.Series[str]":
    return (numbers(low, "+z.2f") + " to " + numbers(high, "+z.2f")).where(low.notna(), "")


def _mean_and_deviation(rows: pd.DataFrame, name: str) -> "pd.Series[str]":
    return spread(rows[f"{name}_mean"], rows[f"{name}_std"], "z.1f")
