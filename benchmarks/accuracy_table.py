"""Renders the records of the accuracy benchmark as Markdown: a table per question."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import Final

import pandas as pd
from accuracy_plan import FLOAT, Trial, allocations, beside_brevitas, levels, methods, radii
from records import Record, commit_of

from laq.quantization.methods.registry import label_of
from laq.report.rendering import markdown_table

_LEVELS: Final = {"symmetric": "2^b - 1", "twos_complement": "2^b"}
_TABLES: Final[dict[str, tuple[Callable[[], Iterable[Trial]], tuple[str, ...]]]] = {
    "Beside Brevitas: the same levels, steps (largest weight of the channel) and 64 images": (
        beside_brevitas,
        ("engine", "method", "calibration"),
    ),
    "Every method, 256 images, radius by the layer's error, 2^b - 1 levels": (
        methods,
        ("method", "calibration"),
    ),
    "Number of levels": (levels, ("alphabet", "method")),
    "Choice of the radius": (radii, ("radius", "method")),
    "Bits per layer: everywhere the same, or label-aware (`auto`)": (allocations, ("method",)),
}


def render(records: Sequence[Record]) -> str:
    """A table per question: mean ± standard deviation of restricted top-1 (%) over subsets."""
    floats = [r for r in records if FLOAT.made(r)]
    kinds = Counter(r["kind"] for r in floats)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    commits = ", ".join(sorted({commit_of(r) for r in records}))
    head = (
        "The tables show restricted top-1 in percent, mean ± standard deviation over subsets "
        f"(n = {len(floats)}: {counts}). The float network has {_spread(floats)}. The commit is {commits}."
    )
    blocks = [head]
    for title, (question, rows) in _TABLES.items():
        trials = [trial for trial in question() if any(trial.made(r) for r in records)]
        if trials:
            blocks += [f"**{title}**", markdown_table(_table(trials, rows, records))]
    return "\n\n".join(blocks)


def _table(trials: Sequence[Trial], rows: tuple[str, ...], records: Sequence[Record]) -> pd.DataFrame:
    """The trials' accuracies, with a column per bit-width and n where subsets are missing."""
    floats = sum(FLOAT.made(r) for r in records)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for trial in trials:
        key = tuple(
            _LEVELS.get(value, label_of(str(value))) for value in (getattr(trial, row) for row in rows)
        )
        found = [r for r in records if trial.made(r)]
        missing = f" (n = {len(found)})" if len(found) < floats else ""
        cells.setdefault(key, {})[f"{trial.bits} bits"] = _spread(found) + missing
    return pd.DataFrame([{**dict(zip(rows, key, strict=True)), **of_bits} for key, of_bits in cells.items()])


def _spread(records: Sequence[Record]) -> str:
    values = [r["top1_sub"] for r in records]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
