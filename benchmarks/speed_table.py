"""The records of the speed benchmark as a Markdown table."""

from collections.abc import Callable, Iterable
from itertools import groupby
from statistics import median
from typing import Any, Final

from records import Record, commit_of
from speed_plan import CASES, CONTENDERS, RIVALS

_HEAD: Final = (
    "| network | images | bits | contender | seconds | theirs ÷ ours | peak MiB: rise (total) "
    "| error of layers | × roofline |\n|---|---|---|---|---|---|---|---|---|"
)


def render(records: Iterable[Record]) -> str:
    """The table, with a line before it that says where and by what code it was measured."""
    ordered = sorted(records, key=_place)
    groups = [list(rows) for _, rows in groupby(ordered, key=_place)]
    lines = [_row(group, _rivals(group, ordered)) for group in groups]
    return "\n".join([_origin(ordered), "", _HEAD, *lines])


def _place(record: Record) -> tuple[Any, ...]:
    """Where a record stands; repeats share a place."""
    case, contender = list(CASES).index(record["case"]), CONTENDERS.index(record["contender"])
    return record["device"], case, record["images"], record["bits"], contender


def _rivals(group: list[Record], records: list[Record]) -> dict[int, Record]:
    """Our records beside which theirs are put, by repeat."""
    ours = RIVALS.get(group[0]["contender"])
    same = ("device", "case", "images", "bits")
    return {
        r["repeat"]: r
        for r in records
        if r["contender"] == ours and all(r[name] == group[0][name] for name in same)
    }


def _row(group: list[Record], ours: dict[int, Record]) -> str:
    first = group[0]
    ratios = [r["seconds"] / ours[r["repeat"]]["seconds"] for r in group if r["repeat"] in ours]
    rooflines = [found for r in group if (found := roofline(r)) is not None]
    rise, total = (median(r[name] for r in group) for name in ("rise_mib", "peak_mib"))
    cells = [
        first["case"] + ("" if first["device"] == "cpu" else f" ({first['device']})"),
        first["images"],
        first["bits"],
        first["contender"],
        _spread([r["seconds"] for r in group], _figures),
        _spread(ratios, _figures),
        f"{rise:.0f} ({total:.0f})",
        f"{median(r['layer_error'] for r in group):.4f}",
        _spread(rooflines, _figures),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def roofline(record: Record) -> float | None:
    """How many times the solver took what its operations take at the speed of a large matrix product."""
    seconds, flops, speed = (record[name] for name in ("solver_seconds", "solver_flops", "gemm_flops"))
    return seconds * speed / flops if seconds and flops and speed else None


def _spread(values: list[float], show: Callable[[float], str]) -> str:
    """Median (least to most)."""
    if not values:
        return ""
    middle = show(median(values))
    return middle if len(values) == 1 else f"{middle} ({show(min(values))}–{show(max(values))})"


def _figures(value: float) -> str:
    """About three significant figures, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _origin(records: list[Record]) -> str:
    machines = _distinct(_machine(r["machine"]) for r in records)
    versions = _distinct(f"{n} {v}" for r in records for n, v in r["versions"].items())
    commits = _distinct(commit_of(r) for r in records)
    others = max(r["others_cores"] for r in records)
    return (
        f"{machines}; {versions}; commit {commits}. Median (least–most) of the repeats. "
        f"Other processes kept {others:.1f} cores busy at worst."
    )


def _machine(found: dict[str, Any]) -> str:
    gpu = f", {found['gpu']}" if found["gpu"] else ""
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB{gpu}"


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
