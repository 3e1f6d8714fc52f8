"""What a run's page says in words: which network won, at what cost, made from what."""

from collections.abc import Iterable, Sequence
from typing import Final

import pandas as pd

from laq.quantization.methods.registry import label_of
from laq.report.markdown import accuracies, findings, line
from laq.report.tables import BASE_OF
from laq.sections.track import Track
from laq.subsets import Subset
from laq.track.results import Results, Row
from laq.track.runs import rank

LONGEST: Final = 8000  # of what MLflow keeps
_MOST_SUBSETS: Final = 24


def shortened(description: str) -> str:
    """As many lines as MLflow keeps."""
    rest = "\n\nThe rest is in the artifacts."
    if len(description) <= LONGEST:
        return description
    return description[: LONGEST - len(rest)].rpartition("\n")[0] + rest


def best(rows: Iterable[Row], most_bytes: float) -> Row | None:
    """The quantized network, small enough, of the highest restricted top-1; among equals the smallest."""
    fitting = [row for row in rows if row["method"] != "float" and row["size_bytes"] <= most_bytes]
    return max(fitting, key=rank, default=None)


def root_description(results: Results, summary: pd.DataFrame, title: str) -> str:
    """The whole result: findings, the best network of each subset, what it was made from, a table."""
    found = "\n\n".join([f"# {title}", findings(summary), *_winners(results), _provenance(results)])
    whole = f"{found}\n\n{accuracies(summary)}"
    return whole if len(whole) <= LONGEST else found[:LONGEST]


def _winners(results: Results) -> Iterable[str]:
    limit = results.params.track
    yield f"**Best network of each subset, of {limit.champion_kib:g} KiB at most**"
    rows = [line("subset", *_HEAD), line(*["---"] * (1 + len(_HEAD)))]
    for subset in results.subsets[:_MOST_SUBSETS]:
        winner = best(results.of(subset), limit.champion_bytes)
        rows.append(line(subset.name, *(_cells(winner) if winner else ["none is so small", *[""] * 6])))
    yield "\n".join(rows)
    if len(results.subsets) > _MOST_SUBSETS:
        yield f"And {len(results.subsets) - _MOST_SUBSETS} subsets more, each with a note on its run."


_HEAD: Final = ("network", "method", "bits", "top-1 of the subset (%)", "points lost", "KiB", "times smaller")


def _cells(row: Row) -> list[str]:
    return [
        str(BASE_OF.get(row["variant"], row["variant"])),
        label_of(row["method"]),
        str(row["bits"]),
        f"{row['top1_sub_percent']:.2f}",
        "" if row["method"] == "float" else f"{row['drop_sub_points']:z.2f}",
        f"{row['size_bytes'] / 1024:.1f}",
        f"{row['compression']:.1f}",
    ]


def _provenance(results: Results) -> str:
    """Which data and which code."""
    provenance = results.provenance
    made_from = "; ".join(f"{data.name} `{data.digest}`" for data in provenance.inputs)
    code = provenance.tags.get("laq.commit", "unknown")
    changed = ", with changes since" if provenance.tags.get("laq.dirty") == "True" else ""
    experiment = provenance.tags.get("laq.dvc_experiment")
    name = f"; DVC experiment `{experiment}`" if experiment else ""
    return f"Made from {made_from} (DVC's MD5s); commit `{code}`{changed}{name}."


def subset_description(subset: Subset, rows: Sequence[Row], limit: Track) -> str:
    """One subset: its classes, the best network, and all others."""
    winner = best(rows, limit.champion_bytes)
    if winner is None:
        found = f"No network is as small as {limit.champion_kib:g} KiB."
    else:
        network, method, bits, score, lost, size, _ = _cells(winner)
        found = (
            f"**{method} at {bits} bits** on the {network} network is best of those of "
            f"{limit.champion_kib:g} KiB at most: {score} % top-1 of the subset, {lost} points lost, "
            f"{size} KiB."
        )
    return "\n\n".join([f"Classes: {', '.join(subset.class_names)}", found, _table(rows)])[:LONGEST]


def cell_description(subset: Subset, rows: Sequence[Row]) -> str:
    """One method and bit-width for one subset, beside the networks as they are."""
    return "\n\n".join([f"Classes: {', '.join(subset.class_names)}", _table(rows)])[:LONGEST]


def _table(rows: Sequence[Row]) -> str:
    return "\n".join([line(*_HEAD), line(*["---"] * len(_HEAD)), *(line(*_cells(row)) for row in rows)])
