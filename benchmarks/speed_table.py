"""Renders the records of the speed benchmark as a Markdown table."""

from collections.abc import Iterable
from itertools import groupby
from statistics import median
from typing import Any

import pandas as pd
from records import Record, commit_of
from speed_plan import CASES, CONTENDERS, RIVALS

from laq.report.rendering import markdown_table


def render(records: Iterable[Record]) -> str:
    """The table, after a line that names the machine, the versions and the commit."""
    ordered = sorted(records, key=_place)
    groups = [list(rows) for _, rows in groupby(ordered, key=_place)]
    rows = pd.DataFrame([_row(group, _counterparts(group, ordered)) for group in groups])
    return f"{_origin(ordered)}\n\n{markdown_table(rows)}"


def _place(record: Record) -> tuple[Any, ...]:
    """The position of a record in the table, which repeats share."""
    case, contender = list(CASES).index(record["case"]), CONTENDERS.index(record["contender"])
    return record["device"], case, record["images"], record["bits"], contender


def _counterparts(group: list[Record], records: list[Record]) -> dict[int, Record]:
    """The records of ours that a rival's are compared with, by repeat."""
    ours = RIVALS.get(group[0]["contender"])
    same = ("device", "case", "images", "bits")
    return {
        r["repeat"]: r
        for r in records
        if r["contender"] == ours and all(r[name] == group[0][name] for name in same)
    }


def _row(group: list[Record], ours: dict[int, Record]) -> dict[str, object]:
    first = group[0]
    ratios = [r["seconds"] / ours[r["repeat"]]["seconds"] for r in group if r["repeat"] in ours]
    # The solver's time, divided by the time of as many operations in a large matrix product.
    rooflines = [
        r["solver_seconds"] * r["gemm_flops"] / r["solver_flops"]
        for r in group
        if r["solver_seconds"] and r["solver_flops"] and r["gemm_flops"]
    ]
    rise, total = (median(r[name] for r in group) for name in ("rise_mib", "peak_mib"))
    return {
        "network": first["case"] + ("" if first["device"] == "cpu" else f" ({first['device']})"),
        "images": first["images"],
        "bits": first["bits"],
        "contender": first["contender"],
        "seconds": _spread([r["seconds"] for r in group]),
        "theirs ÷ ours": _spread(ratios),
        "peak MiB: rise (total)": f"{rise:.0f} ({total:.0f})",
        "error of layers": f"{median(r['layer_error'] for r in group):.4f}",
        "× roofline": _spread(rooflines),
    }


def _spread(values: list[float]) -> str:
    """The median, with the least and the most if there are several values."""
    if not values:
        return ""
    middle, least, most = (
        # About three significant figures, never in powers of ten.
        f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        for value in (median(values), min(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({least}–{most})"


def _origin(records: list[Record]) -> str:
    machines = []
    for found in (record["machine"] for record in records):
        gpu = f", {found['gpu']}" if found["gpu"] else ""
        machines.append(f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB{gpu}")
    versions = _distinct(f"{n} {v}" for r in records for n, v in r["versions"].items())
    commits = _distinct(commit_of(r) for r in records)
    others = max(r["others_cores"] for r in records)
    return (
        f"{_distinct(machines)}; {versions}; commit {commits}. Cells show the median (least–most) of "
        f"the repeats. Other processes kept at most {others:.1f} cores busy."
    )


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
