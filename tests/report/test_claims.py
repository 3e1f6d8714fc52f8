"""Each claim of results/claims.md stands where it says, and its lines give its numbers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

ROOT = Path(__file__).parents[2]
CLAIM = re.compile(r"^> (.*?)\n\n```python\n(.*?)\n```\n\ngives (.*?)$", re.MULTILINE | re.DOTALL)
CLAIMS = CLAIM.findall((ROOT / "results/claims.md").read_text(encoding="utf-8"))


def read(path: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / path, dtype={"bits": str, "method": str})


def joined(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def told() -> str:
    """The README and the published reports, on one line."""
    files = [ROOT / "README.md", *sorted((ROOT / "results").glob("*/report.md"))]
    return joined(" ".join(file.read_text(encoding="utf-8") for file in files))


@pytest.mark.parametrize(("claim", "lines", "gives"), CLAIMS, ids=[claim[:60] for claim, _, _ in CLAIMS])
def test_the_lines_give_the_numbers_of_the_claim(told: str, claim: str, lines: str, gives: str) -> None:
    assert joined(claim) in told
    names: dict[str, Any] = {"np": np, "pd": pd, "smf": smf, "read": read}
    exec(lines, names)  # noqa: S102 (the file is the repository's)
    numbers = gives.split(", ")
    assert len(names["found"]) == len(numbers)
    for value, number in zip(names["found"], numbers, strict=True):
        digits = len(number.partition(".")[2])
        assert f"{round(value, 6):z.{digits}f}" == number
        assert number.replace("-", "") in claim


def test_every_number_of_the_readmes_findings_is_claimed() -> None:
    """The rows of the README's table of findings are quoted whole."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    findings = readme.partition("## Results on CIFAR-100")[2].partition("\n## ")[0]
    rows = [row.strip("| ") for row in findings.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == 8
    quoted = [joined(claim) for claim, _, _ in CLAIMS]
    assert [row for row in rows if joined(row) not in quoted] == []
    assert len(findings.splitlines()) <= 25
