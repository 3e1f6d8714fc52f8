"""The study's findings as Markdown: for a terminal, a README or a run's note."""

from typing import Final

import numpy as np
import pandas as pd

from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.analysis import Analysis
from laq.report.answers import exploratory, sentences
from laq.report.comparisons import LOSS
from laq.report.dependence import INACCURACY, NEARNESS
from laq.report.outcomes import outcomes_text
from laq.report.prediction import MODELS
from laq.report.rendering import markdown_table, number, numbers, spread, templates
from laq.report.tables import BALANCED, BASE_OF, DROPS, ERRORS_GAINED, GROUP, SEED_SPREAD, main_rows
from laq.sections.report import Report
from laq.study.tables import NO_IMAGES

IMAGES: Final = {NO_IMAGES: "", "subset": "subset", "all": "all classes"}
_TEMPLATES: Final = "laq.report"
_INTERVAL: Final = ["effect", "low", "high"]


def markdown(analysis: Analysis, answered: str) -> str:
    """The whole report: the sentences, and the tables behind them."""
    text = templates(_TEMPLATES).get_template("report.md")
    asked, pairs = _dependence(analysis), _comparisons(analysis.comparisons)
    return (
        text.render(
            title=analysis.title,
            findings=findings(analysis.summary),
            answers=answered,
            accuracies=accuracies(analysis.summary),
            dependence=markdown_table(asked) if len(asked) else "",
            comparisons=markdown_table(pairs) if len(pairs) else "",
            outcomes=outcomes_text(analysis.outcomes),
        )
        + "\n"
    )


def answers_text(analysis: Analysis, params: Report, *, asked_before: bool = True) -> str:
    """The five sentences, what their intervals speak of, and the answers to what else was asked."""
    text = templates(_TEMPLATES).get_template("answers.md")
    shared = analysis.table[analysis.table.calibration == "all"]
    return text.render(
        sentences=sentences(analysis, params),
        exploratory=exploratory(analysis, params),
        confidence=f"{100 * params.confidence:g}",
        asked_before=asked_before,
        one_draw=len(shared) and shared.seed.nunique() < 2,
    ).strip()


def note(analysis: Analysis, params: Report, *, asked_before: bool) -> str:
    """What the intervals speak of, and what was asked before the study ran."""
    text = templates(_TEMPLATES).get_template("answers.md")
    shared = analysis.table[analysis.table.calibration == "all"]
    return text.render(
        sentences=[],
        exploratory={},
        confidence=f"{100 * params.confidence:g}",
        asked_before=asked_before,
        one_draw=len(shared) and shared.seed.nunique() < 2,
    ).strip()


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


def _dependence(analysis: Analysis) -> pd.DataFrame:
    """A row per cell: the effects of the divergence on both scales, beside those of the accuracy, and R²."""
    rows = analysis.dependence
    if rows.empty:
        return rows
    points, beside, accuracy = (
        _asked(rows, DROPS["top1_sub_percent"], *which)
        for which in ((NEARNESS, ""), (NEARNESS, INACCURACY), (INACCURACY, NEARNESS))
    )
    errors = _asked(rows, ERRORS_GAINED, NEARNESS, "").reindex(points.index)[_INTERVAL].apply(np.exp)
    about = points.reset_index()
    r2 = analysis.prediction[analysis.prediction.score == DROPS["top1_sub_percent"]]
    r2 = r2.drop_duplicates(GROUP).set_index(GROUP).loc[points.index]
    return pd.DataFrame(
        {
            "network": about.variant.map(BASE_OF),
            "method": about.method,
            "bits": about.bits,
            "images": about.calibration.map(IMAGES),
            "n": about.n,
            "points": _effects(points, "+z.2f"),
            "p": numbers(about.p_value, ".4f"),
            "beside accuracy": _effects(beside, "+z.2f"),
            "accuracy beside it": _effects(accuracy, "+z.2f"),
            "factor of errors": _effects(errors, ".2f"),
            **{f"R² {model}": numbers(r2[f"r2_{model}"].reset_index(drop=True), "z.2f") for model in MODELS},
        }
    )


def _asked(rows: pd.DataFrame, score: str, variable: str, beside: str) -> pd.DataFrame:
    """The rows, by ``GROUP``, of one outcome and variable."""
    asked = pd.Series({"score": score, "variable": variable, "beside": beside})
    return rows[(rows[asked.index] == asked).all(axis=1)].set_index(GROUP)


def _effects(rows: pd.DataFrame, form: str) -> "pd.Series[str]":
    """Effects with their intervals as texts."""
    low, high = numbers(rows.low, form), numbers(rows.high, form)
    told = numbers(rows.effect, form) + " (" + low + " to " + high + ")"
    return told.where(rows.low.notna(), "undefined").reset_index(drop=True)


def _comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    asked = rows.question.where(
        (rows.score != "drop_sub_points") | (rows.question == LOSS), rows.question + ", drop"
    )
    interval = numbers(rows.low, "+z.2f") + " to " + numbers(rows.high, "+z.2f")
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
            "seeds": rows.seeds,
            "difference": numbers(rows.effect, "+z.2f"),
            "interval": interval.where(rows.low.notna(), ""),
            "p": numbers(rows.p_value, ".4f"),
        }
    )


def _mean_and_deviation(rows: pd.DataFrame, name: str) -> "pd.Series[str]":
    return spread(rows[f"{name}_mean"], rows[f"{name}_std"], "z.1f")
