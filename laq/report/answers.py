"""Answers the study's questions in words, with the numbers behind them, whether significant or not.

This module chooses the rows that an answer reports; the sentences are macros of ``templates/sentences.md``.
"""

from typing import Any, Final

import numpy as np
import pandas as pd

from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.analysis import Analysis
from laq.report.comparisons import ALLOCATION, CALIBRATION, FINETUNING, METHOD
from laq.report.correlations import DEPENDENCE, PREDICTOR
from laq.report.rendering import templates
from laq.report.tables import main_rows
from laq.sections.report import Report

QUESTIONS: Final = {
    DEPENDENCE: "Does a subset lose more the nearer its classes are?",
    PREDICTOR: "Which divergence predicts the drop best?",
    CALIBRATION: "Do images of the subset calibrate better than images of all classes?",
    FINETUNING: "Does it pay to fine-tune on the subset before quantizing?",
    METHOD: "Which method keeps the most accuracy?",
    ALLOCATION: "Do bits allocated by layer for these classes keep more than as many bits everywhere?",
}


def answers(analysis: Analysis, params: Report) -> dict[str, str]:
    """The answer to every question that the study's data can answer.

    An answer reports the rows of the original network and of the study's first calibration, and ends with
    how many of all rows are significant.
    """
    correlations, comparisons = (
        _with_evidence(table[table.p_value.notna()], 1 - params.confidence)
        for table in (analysis.correlations, analysis.comparisons)
    )
    rows = {name: table for both in (correlations, comparisons) for name, table in both.groupby("question")}
    answer = {
        DEPENDENCE: _dependence,
        PREDICTOR: _predictors,
        **dict.fromkeys((CALIBRATION, FINETUNING, METHOD, ALLOCATION), _comparison),
    }
    texts = {QUESTIONS[name]: answer_of(rows[name]) for name, answer_of in answer.items() if name in rows}
    return {question: text for question, text in texts.items() if text}


def _with_evidence(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The rows with the scope of their significance, and with the interval to report.

    ``holds_for`` is ``subsets`` if the effect is significant for subsets of the study's classes, ``classes``
    if it is also significant for other classes (or no such test was possible), and else empty. The interval
    is that of the mixed model where there is one, as it accounts for classes that subsets share.
    """
    subsets = table.p_holm < alpha
    holds_for = np.select([subsets & ~(table.p_classes_holm >= alpha), subsets], ["classes", "subsets"], "")
    found = table.assign(holds_for=holds_for)
    if "low_classes" in table:
        known = table.low_classes.notna()
        low, high = table.low_classes.where(known, table.low), table.high_classes.where(known, table.high)
        return found.assign(low=low, high=high)
    return found


def _first(rows: pd.DataFrame) -> pd.DataFrame:
    """The original network's rows of the first calibration; round-to-nearest only if there is no other."""
    original = main_rows(rows[rows.variant.isin(["quantized", ""])])
    without = original[original.method != BASELINE]
    return without if len(without) else original


def _sentence(macro: str, **values: Any) -> str:
    """The text of a macro of ``sentences.md``, on one line."""
    sentences: Any = templates("laq.report").get_template("sentences.md").module
    text = " ".join(getattr(sentences, macro)(**values).split())
    return text[:1].upper() + text[1:]


def _dependence(rows: pd.DataFrame) -> str:
    """The answer about the divergence: rho and partial rho of the restricted drop, by method and bits."""
    texts = []
    for measure in ("rho", "partial_rho"):
        of_measure = rows[(rows.score == "drop_sub_points") & (rows.measure == measure)]
        if len(first := _first(of_measure)):
            texts.append(_sentence(measure, methods=_by_subject(first), n=rows.n.max()))
        texts.append(_sentence("counted", **_count(of_measure), kind="rho"))
    return " ".join(texts)


def _predictors(rows: pd.DataFrame) -> str:
    """The best predictor at the fewest bits by method, and how far the study's own divergence is behind."""
    first, texts = _first(rows[rows.measure == "rho"]), []
    for method, group in first[first.bits.isin(first.bits.head(1))].groupby("method", sort=False):
        ranked = group.sort_values("rank").to_dict("records")
        own = group.to_dict("records")[0]
        behind = int((group.gap_low > 0).sum())
        about = {"method": label_of(str(method)), "best": ranked[0], "own": own}
        texts.append(_sentence("predictor", **about, others=len(group) - 1, behind=behind))
    return " ".join(texts)


def _comparison(rows: pd.DataFrame) -> str:
    """The answer to a paired comparison: points gained or lost, by subject and bits."""
    texts = []
    for score, part in rows.groupby("score", sort=False):
        if len(first := _first(part)):
            drop = score == "drop_sub_points"
            texts += [
                _sentence("compared", subjects=_by_subject(first), drop=drop, n=part.n.max()),
                _sentence("counted", **_count(part), kind="drop" if drop else "accuracy"),
            ]
    return " ".join(texts)


def _by_subject(rows: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """The rows by the subject of the sentence about them."""
    subjects: dict[str, list[dict[Any, Any]]] = {}
    for row in rows.to_dict("records"):
        if row["question"] == METHOD:
            subject = f"{label_of(row['first'])} instead of {label_of(row['second'])}"
        elif row["method"] == "float":
            subject = "the network"
        else:
            subject = label_of(row["method"])
        subjects.setdefault(subject, []).append(row)
    return subjects


def _count(rows: pd.DataFrame) -> dict[str, Any]:
    """The number of rows, and of significant effects upwards and downwards, by their scope."""
    sides = (rows[rows.effect > 0].holds_for, rows[rows.effect < 0].holds_for)
    counts = {far: [int((side == far).sum()) for side in sides] for far in ("classes", "subsets")}
    return {"rows": len(rows), **counts}
