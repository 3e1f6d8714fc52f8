"""The study's questions, each answered in plain words with its numbers; what was not found is said too."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from laq.params import Report
from laq.report.analysis import Analysis
from laq.report.comparisons import ALLOCATION, CALIBRATION, FINETUNING, METHOD
from laq.report.correlations import DEPENDENCE, PREDICTOR
from laq.report.markdown import METHOD_NAMES
from laq.report.tables import main_rows

Row = Mapping[Hashable, Any]
QUESTIONS: Final = {
    DEPENDENCE: "Does a subset lose more the nearer its classes are?",
    PREDICTOR: "Which divergence predicts the drop best?",
    CALIBRATION: "Do images of the subset calibrate better than images of all classes?",
    FINETUNING: "Fine-tune on the subset before quantizing?",
    METHOD: "Which method?",
    ALLOCATION: "Do bits where these classes need them do better than as many everywhere?",
}

# Words for a rise and for a fall: of scores, and of drops.
_WORDS: Final = (
    ("gains {:.1f} points", "loses {:.1f} points"),
    ("loses {:.1f} points more", "loses {:.1f} points less"),
)
_COUNTED: Final = (("gains", "losses"), ("more", "less"))


def answers(analysis: Analysis, params: Report) -> dict[str, str]:
    """Every question that the study can be asked, and its answer.

    What is told is about the original network and the calibration that is told first; in brackets stand
    intervals, and the p-values of what is certain (below 1 - confidence), on these classes at least. How many
    of all rows are ends each.
    """
    tell = _Teller(params)
    told = {
        DEPENDENCE: tell.dependence(_asked(analysis.correlations, DEPENDENCE)),
        PREDICTOR: tell.predictors(_asked(analysis.correlations, PREDICTOR)),
        **{
            question: tell.comparison(_asked(analysis.comparisons, question))
            for question in (CALIBRATION, FINETUNING, METHOD, ALLOCATION)
        },
    }
    return {QUESTIONS[question]: text for question, text in told.items() if text}


def _asked(table: pd.DataFrame, question: str) -> pd.DataFrame:
    """The question's rows that have an answer."""
    return table[(table.question == question) & table.p_value.notna()] if len(table) else table


def _first(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the original network and the calibration told first; round-to-nearest only where it is all."""
    original = main_rows(rows[rows.variant.isin(["quantized", ""])])
    without = original[original.method != "rtn"]
    return without if len(without) else original


class _Teller:
    """Puts rows in words."""

    def __init__(self, params: Report) -> None:
        self.alpha = 1 - params.confidence

    def dependence(self, rows: pd.DataFrame) -> str:
        """Rho and partial rho of the restricted drop, by method and bits."""
        if rows.empty:
            return ""
        restricted = rows[rows.score == "drop_sub_points"]
        plain, partial = (restricted[restricted.measure == name] for name in ("rho", "partial_rho"))
        intros = (
            f"Rho of drop and median divergence (n = {rows.n.max()})",
            "Holding fixed the accuracy before quantization and the number of classes",
        )
        texts = [
            f"{intro}: {self._by_method(_first(part), self._rho)}."
            for intro, part in zip(intros, (plain, partial), strict=True)
            if len(_first(part))
        ]
        for name, part in (("rho", plain), ("partial rho", partial)):
            texts.append(self._count(part, (f"negative {name}", f"positive {name}"), sign=-1))
        return " ".join(texts)

    def predictors(self, rows: pd.DataFrame) -> str:
        """Which divergence is first at the fewest bits, and how far the study's own is behind, by method."""
        told = _first(rows[rows.measure == "rho"]) if len(rows) else rows
        if told.empty:
            return ""
        groups = told[told.bits == told.bits.iloc[0]].groupby("method", sort=False)
        return " ".join(self._predictor(METHOD_NAMES[str(name)], group) for name, group in groups)

    def _predictor(self, method: str, rows: pd.DataFrame) -> str:
        first, own = rows.sort_values("rank").to_dict("records")[0], rows.to_dict("records")[0]
        numbers = f"rho {first['effect']:+z.2f}, {self._range(first, '+z.2f')}, n = {first['n']}"
        text = f"{method} {_at(first)}: {_named(first)} ({numbers})."
        if own["rank"] != first["rank"]:
            gap: Row = {"low": own["gap_low"], "high": own["gap_high"]}
            sure = "certainly " if own["gap_low"] > 0 else "not certainly "
            text += f" The study's own, {_named(own)}, is {sure}behind, by {own['gap']:.2f} in |rho|"
            text += f" ({self._range(gap, '.2f')})."
        return f"{text} {int((rows.gap_low > 0).sum())} of the other {len(rows) - 1} are certainly behind."

    def comparison(self, rows: pd.DataFrame) -> str:
        """Points gained or lost, by what is compared and bits."""
        if rows.empty:
            return ""
        texts = []
        for score, part in rows.groupby("score", sort=False):
            if _first(part).empty:
                continue
            drop = score == "drop_sub_points"
            intro = "Of what is lost against the own network in float: " if drop else ""
            texts += [
                f"{intro}{self._by_method(_first(part), self._effect)} (n = {part.n.max()}).",
                self._count(part, _COUNTED[drop]),
            ]
        return " ".join(texts)

    def _by_method(self, rows: pd.DataFrame, words: Callable[[Sequence[Row]], list[str]]) -> str:
        subjects: dict[str, list[Row]] = {}
        for row in rows.to_dict("records"):
            subjects.setdefault(_subject(row), []).append(row)
        return "; ".join(f"{subject} {', '.join(words(some))}" for subject, some in subjects.items())

    def _rho(self, rows: Sequence[Row]) -> list[str]:
        return [f"{row['effect']:+z.2f} {_at(row)} ({self._numbers(row, '+z.2f')})" for row in rows]

    def _effect(self, rows: Sequence[Row]) -> list[str]:
        """What is certain with its numbers, or is so on these classes; then the rest in one."""
        told = [
            f"{_gain(row)} {_at(row)}{'' if self._sure(row) else ' on these classes'} "
            f"({self._numbers(row, '+z.1f')})"
            for row in rows
            if self._sure_here(row)
        ]
        rest = [f"{_at(row)} ({row['effect']:+z.1f})" for row in rows if not self._sure_here(row)]
        return [*told, *([f"makes no certain difference {', '.join(rest)}"] if rest else [])]

    def _numbers(self, row: Row, form: str) -> str:
        """The interval, and what makes it certain."""
        told = [self._range(row, form)]
        if self._sure_here(row):
            told.append(f"p_holm {_p(row['p_holm'])}")
            told += [] if pd.isna(row["p_classes_holm"]) else [f"classes shared {_p(row['p_classes_holm'])}"]
        return ", ".join(told)

    def _range(self, row: Row, form: str) -> str:
        """The interval that knows what subsets share, where there is one."""
        known = "_classes" if pd.notna(row.get("low_classes")) else ""
        return f"{row[f'low{known}']:{form}} to {row[f'high{known}']:{form}}"

    def _sure_here(self, row: Row) -> bool:
        """Whether chance is ruled out for subsets of the study's classes."""
        return bool(row["p_holm"] < self.alpha)

    def _sure(self, row: Row) -> bool:
        """Whether it is, too, were the classes others; as far as that is known."""
        return self._sure_here(row) and not row["p_classes_holm"] >= self.alpha

    def _count(self, rows: pd.DataFrame, names: tuple[str, str], sign: int = 1) -> str:
        told = rows.to_dict("records")
        sure = [sign * row["effect"] for row in told if self._sure(row)]
        here = [sign * row["effect"] for row in told if self._sure_here(row) and not self._sure(row)]
        alone = f"; on these classes alone: {_counted(here, names)}" if here else ""
        return f"Certain, of all {len(rows)} rows: {_counted(sure, names)}{alone}."


def _counted(effects: Sequence[float], names: tuple[str, str]) -> str:
    up, down = sum(effect > 0 for effect in effects), sum(effect < 0 for effect in effects)
    return f"{up} {names[0]}, {down} {names[1]}"


def _gain(row: Row) -> str:
    """The effect in words."""
    up, down = _WORDS[row["score"] == "drop_sub_points"]
    return (up if row["effect"] > 0 else down).format(abs(row["effect"]))


def _subject(row: Row) -> str:
    if row["question"] == METHOD:
        return f"{METHOD_NAMES[row['first']]} instead of {METHOD_NAMES[row['second']]}"
    if row["question"] == FINETUNING and row["method"] == "float":
        return "without quantization it"
    return METHOD_NAMES[row["method"]]


def _at(row: Row) -> str:
    """At which bits."""
    if row["question"] == ALLOCATION:
        return f"with {row['first']} instead of {row['second']} bits"
    if row["method"] == "float":
        return "in float"
    return f"at {row['bits']} bits" if str(row["bits"]).isdigit() else f"at {row['bits']}"


def _named(row: Row) -> str:
    return f"the {row['statistic']} of {row['divergence']}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
