"""Says in words what was found: five sentences, the primary question first, then what else was asked.

This module chooses the rows that a sentence reports; its words are macros of ``templates/sentences.md``.
"""

from collections.abc import Iterator
from typing import Any, Final

import pandas as pd

from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.analysis import Analysis
from laq.report.comparisons import ALLOCATION, CALIBRATION, FINETUNING, LOSS, METHOD, TUNING
from laq.report.dependence import INACCURACY, NEARNESS
from laq.report.rendering import templates
from laq.report.tables import DROPS, ERRORS_GAINED, main_rows
from laq.sections.report import Report

_PREDICTOR: Final = "Which divergence predicts best?"
_COMPARED: Final = {
    METHOD: "Does another method keep more accuracy?",
    CALIBRATION: "Do images of the subset calibrate better than images of all classes?",
    FINETUNING: "Does it pay to fine-tune on the subset before quantizing?",
    TUNING: "Does tuning to the subset's classes keep more than tuning to all classes?",
    ALLOCATION: "Do bits allocated by layer for these classes keep more than as many bits everywhere?",
}
QUESTIONS: Final = _COMPARED | {"predictor": _PREDICTOR}
_POINTS: Final = DROPS["top1_sub_percent"]


def sentences(analysis: Analysis, params: Report) -> list[str]:
    """Five sentences with their numbers and intervals; fewer where the study does not have what one needs.

    They are about the original network, the primary question's method and the study's first calibration:
    whether subsets of similar classes lose more (the primary question); the same on the other scale; whether
    the divergence and the accuracy before quantization can be told apart; the method against
    round-to-nearest; and what it loses.
    """
    asked, about = params.primary, {"params": params, "method": label_of(params.primary.method)}
    total = _of_primary(analysis, params, asked.column, NEARNESS)
    if total is None:
        return [_sentence("not_measured", **about), *_costs(analysis, about)]
    told = [_sentence("primary", row=total, **about)]
    other = _POINTS if asked.column == ERRORS_GAINED else ERRORS_GAINED
    if (turned := _of_primary(analysis, params, other, NEARNESS)) is not None:
        told.append(_sentence("other_scale", row=turned, first=total, **about))
    near = _of_primary(analysis, params, asked.column, NEARNESS, INACCURACY)
    before = _of_primary(analysis, params, asked.column, INACCURACY, NEARNESS)
    if near is not None and before is not None:
        r2 = _of_cell(analysis.prediction, params, score=asked.column).iloc[:1].to_dict("records")
        told.append(_sentence("apart", near=near, before=before, r2=next(iter(r2), None), **about))
    return [*told, *_costs(analysis, about)]


def verdicts(analysis: Analysis, params: Report) -> list[tuple[str, str]]:
    """For each question a verdict of one line, and its details: ``sentences`` first, then ``exploratory``."""
    asked = [f"**{question}** {text}" for question, text in exploratory(analysis, params).items()]
    return [_folded(sentence) for sentence in [*sentences(analysis, params), *asked]]


def _folded(sentence: str) -> tuple[str, str]:
    """The bold part of a sentence and the rest; the first number too where the bold part is no answer."""
    bold, rest = sentence.removeprefix("**").split("**", 1)
    if bold.endswith("."):
        return f"**{bold}**", rest.strip()
    first, bracket, others = rest.partition(")")
    return f"**{bold}**{first}{bracket}", others.strip(" ,;.")


def _costs(analysis: Analysis, about: dict[str, Any]) -> Iterator[str]:
    """What the primary question's method gains on round-to-nearest, and what it loses, by bits."""
    method = about["params"].primary.method
    rows = _main(analysis.comparisons)
    rows = rows[rows.low.notna() & rows.variant.isin(["quantized", ""])]
    gained = rows[_is_gain(rows, about["params"])]
    lost = rows[(rows.question == LOSS) & (rows["first"] == "quantized") & (rows.method == method)]
    for macro, found in (("gained", gained), ("lost", lost)):
        if len(found):
            yield _sentence(macro, rows=found.to_dict("records"), **about)


def _is_gain(rows: pd.DataFrame, params: Report) -> "pd.Series[bool]":
    """Which rows compare the primary question's method with round-to-nearest."""
    return (rows.question == METHOD) & (rows["first"] == params.primary.method) & (rows["second"] == BASELINE)


def _of_primary(
    analysis: Analysis, params: Report, score: str, variable: str, beside: str = ""
) -> dict[Any, Any] | None:
    """The row of the primary question's cell in the table of dependence; None without an interval."""
    rows = _of_cell(analysis.dependence, params, score=score, variable=variable, beside=beside)
    return next(iter(rows[rows.low.notna()].to_dict("records")), None)


def _of_cell(table: pd.DataFrame, params: Report, **wanted: str) -> pd.DataFrame:
    """The rows of the primary question's cell that have the ``wanted`` values."""
    cell = {"variant": "quantized", "method": params.primary.method, "bits": str(params.primary.bits)}
    rows = _main(table)
    return rows[(rows[[*cell, *wanted]] == pd.Series(cell | wanted)).all(axis=1)]


def _main(table: pd.DataFrame) -> pd.DataFrame:
    return main_rows(table) if len(table) else table


def exploratory(analysis: Analysis, params: Report) -> dict[str, str]:
    """The answers to what else was asked, by the question: differences with intervals.

    Methods are compared with the primary question's alone, and what that gains on round-to-nearest stands in
    ``sentences`` already.
    """
    rows = analysis.comparisons
    others = (rows[["first", "second"]] != params.primary.method).all(axis=1)
    rows = rows[~((rows.question == METHOD) & others) & ~_is_gain(rows, params)]
    rows = rows[rows.low.notna() & (rows.score == "top1_sub_percent") & rows.variant.isin(["quantized", ""])]
    texts = {}
    for question, text in _COMPARED.items():
        if len(asked := _main(rows[rows.question == question])):
            subjects = {
                name: part.to_dict("records") for name, part in asked.groupby(_subjects(asked), sort=False)
            }
            texts[text] = _sentence(
                "compared", subjects=subjects, margin=params.margin_points, n=asked.n.max()
            )
    score = params.primary.column if params.primary.column in set(analysis.prediction.score) else _POINTS
    ranked = _of_cell(analysis.prediction, params, score=score)
    if len(ranked := ranked[ranked.r2_divergence.notna()]) > 2:
        best = ranked.sort_values("r2_divergence", ascending=False, kind="stable").to_dict("records")
        own = ranked.to_dict("records")[0]
        texts[_PREDICTOR] = _sentence(
            "predictor", best=best[0], last=best[-1], own=own, count=len(best), method=label_of(own["method"])
        )
    return texts


def _subjects(rows: pd.DataFrame) -> "pd.Series[str]":
    """What each row's sentence is about."""
    named = [
        f"{label_of(row['first'])} against {label_of(row['second'])}"
        if row["question"] in {METHOD, TUNING}
        else "the network in float"
        if row["method"] == "float"
        else label_of(row["method"])
        for row in rows.to_dict("records")
    ]
    return pd.Series(named, index=rows.index)


def _sentence(macro: str, **values: Any) -> str:
    """The text of a macro of ``sentences.md``, on one line."""
    made: Any = templates("laq.report").get_template("sentences.md").module
    text = " ".join(getattr(made, macro)(**values).split())
    return text[:1].upper() + text[1:]
