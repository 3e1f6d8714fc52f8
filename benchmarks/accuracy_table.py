"""The records of the accuracy benchmark as Markdown: a table per question."""

from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import Any, Final

from accuracy_plan import FLOAT, Trial, allocations, beside_brevitas, levels, methods, radii
from records import Record, commit_of

_NAMES: Final = {
    "rtn": "round-to-nearest",
    "gpfq": "GPFQ",
    "sgpfq": "SGPFQ",
    "gpfq_l0": "GPFQ, L0",
    "gpfq_l1": "GPFQ, L1",
    "gptq": "GPTQ",
    "qronos": "Qronos",
    "symmetric": "2^b - 1",
    "twos_complement": "2^b",
}
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
    """Mean ± standard deviation over subsets of restricted top-1 (%)."""
    blocks = [_head(records)]
    for title, (question, rows) in _TABLES.items():
        trials = [trial for trial in question() if any(trial.made(r) for r in records)]
        if trials:
            blocks += [f"**{title}**", "\n".join(_table(trials, rows, records))]
    return "\n\n".join(blocks)


def _head(records: Sequence[Record]) -> str:
    floats = [r for r in records if FLOAT.made(r)]
    kinds = [r["kind"] for r in floats]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    commits = {commit_of(r) for r in records}
    return (
        f"Restricted top-1 in percent, mean ± standard deviation over subsets (n = {len(floats)}: {counts}); "
        f"float: {_spread(floats)}. Commit {', '.join(sorted(commits))}."
    )


def _table(trials: Sequence[Trial], rows: tuple[str, ...], records: Sequence[Record]) -> Iterable[str]:
    bits = list(dict.fromkeys(trial.bits for trial in trials))
    yield f"| {' | '.join(rows)} | {' | '.join(f'{b} bits' for b in bits)} |"
    yield f"|{'---|' * (len(rows) + len(bits))}"
    by_row: dict[tuple[Any, ...], dict[int | str, Trial]] = {}
    for trial in trials:
        by_row.setdefault(tuple(getattr(trial, row) for row in rows), {})[trial.bits] = trial
    for key, of_bits in by_row.items():
        cells = [_cell(of_bits.get(b), records) for b in bits]
        yield f"| {' | '.join([*(_name(part) for part in key), *cells])} |"


def _cell(trial: Trial | None, records: Sequence[Record]) -> str:
    """The trial's accuracy, with its n where that is not yet the head's."""
    found = [r for r in records if trial is not None and trial.made(r)]
    whole = len(found) == sum(FLOAT.made(r) for r in records)
    return _spread(found) + f" (n = {len(found)})" * bool(found and not whole)


def _spread(records: Sequence[Record]) -> str:
    values = [r["top1_sub"] for r in records]
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def _name(part: Any) -> str:
    return _NAMES.get(part, str(part))
