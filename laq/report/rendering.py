"""Renders texts and pages from Jinja templates, so that wording is edited apart from Python."""

from functools import cache
from math import exp

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


@cache
def templates(room: str, folder: str = "templates") -> Environment:
    """The templates in ``folder`` of the package ``room``; HTML templates escape the values they insert."""
    made = Environment(
        loader=PackageLoader(room, folder),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "p_value": p_value, "plain": plain, "exp": exp}
    return made


def number(value: float, form: str) -> str:
    """``value`` in the format specification ``form``; empty if it is missing."""
    return "" if pd.isna(value) else f"{value:{form}}"


def numbers(values: "pd.Series[float]", form: str) -> "pd.Series[str]":
    """``number`` of each value."""
    return values.map(lambda value: number(value, form)).astype(str)


def spread(mean: "pd.Series[float]", deviation: "pd.Series[float]", form: str) -> "pd.Series[str]":
    """Mean ± standard deviation as texts, the mean alone where there is no deviation."""
    means = numbers(mean, form)
    return (means + " ± " + numbers(deviation, form.replace("+", ""))).where(deviation.notna(), means)


def p_value(value: float) -> str:
    """A p-value as it follows the letter p: ``= 0.012`` or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def plain(text: object) -> str:
    """``text`` with the characters escaped that Markdown would interpret; patterns of layers contain them."""
    return str(text).replace("*", r"\*").replace("|", r"\|")


def markdown_table(rows: pd.DataFrame) -> str:
    """``rows`` as a Markdown table; missing cells are empty."""
    texts = rows.map(lambda cell: "" if pd.isna(cell) else plain(cell))
    return str(texts.to_markdown(index=False, disable_numparse=True))
