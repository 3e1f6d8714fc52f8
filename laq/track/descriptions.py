"""What a run's page says in words: which network won, at what cost, made from what."""

from collections.abc import Iterable, Sequence
from math import nan
from typing import Final

import pandas as pd

from laq.quantization.methods.registry import label_of
from laq.report.markdown import accuracies, findings
from laq.report.rendering import markdown_table, number
from laq.report.tables import BASE_OF
from laq.sections.track import Track
from laq.study.tables import REPORTING
from laq.subsets.subset import Subset
from laq.track.results import Results, Row
from laq.track.run_specs import rank

LONGEST: Final = 8000  # of what MLflow keeps
_MOST_SUBSETS: Final = 24


def shortened(description: str) -> str:
    """As many lines as MLflow keeps."""
    rest = "\n\nThe rest is in the artifacts."
    if len(description) <= LONGEST:
        return description
    return description[: LONGEST - len(rest)].rpartition("\n")[0] + rest


def best(rows: Iterable[Row], most_bytes: float) -> Row | None:
    """The quantized network, small enough, that is best on the images that choose; of equals the smallest."""
    fitting = [row for row in rows if row["method"] != "float" and row["size_bytes"] <= most_bytes]
    return max(fitting, key=rank, default=None)


def root_description(results: Results, summary: pd.DataFrame, title: str) -> str:
    """The whole result: findings, the best network of each subset, what it was made from, a table."""
    found = "\n\n".join([f"# {title}", findings(summary), *_winners(results), _provenance(results)])
    whole = f"{found}\n\n{accuracies(summary)}"
    return whole if len(whole) <= LONGEST else found[:LONGEST]


def _winners(results: Results) -> Iterable[str]:
    limit = results.params.track
    yield (
        f"**Best network of each subset, of {limit.champion_kib:g} KiB at most** "
        "(half of the test images chose it, the others give its top-1)"
    )
    subsets = results.subsets[:_MOST_SUBSETS]
    winners = {subset.name: best(results.of(subset), limit.champion_bytes) for subset in subsets}
    rows = [
        {"subset": name, **(_winner(row) if row else {"network": "none is so small"})}
        for name, row in winners.items()
    ]
    yield markdown_table(pd.DataFrame(rows))
    if len(results.subsets) > _MOST_SUBSETS:
        yield f"And {len(results.subsets) - _MOST_SUBSETS} subsets more, each with a note on its run."


def _cells(row: Row) -> dict[str, str]:
    return {
        "network": str(BASE_OF.get(row["variant"], row["variant"])),
        "method": label_of(row["method"]),
        "bits": str(row["bits"]),
        "top-1 of the subset (%)": f"{row['top1_sub_percent']:.2f}",
        **(
            {"balanced (%)": f"{row[balanced]:.2f}"}
            if (balanced := "balanced_top1_sub_percent") in row
            else {}
        ),
        "points lost": "" if row["method"] == "float" else f"{row['drop_sub_points']:z.2f}",
        "KiB": f"{row['size_bytes'] / 1024:.1f}",
        "times smaller": f"{row['compression']:.1f}",
    }


def _winner(row: Row) -> dict[str, str]:
    """The cells of a network that was chosen, with its top-1 on the images that did not choose it."""
    others = ("balanced (%)", "points lost")  # which all test images give
    chosen = {"top-1 of the subset (%)": number(row.get(REPORTING, nan), ".2f")}
    return {name: text for name, text in {**_cells(row), **chosen}.items() if name not in others}


def _provenance(results: Results) -> str:
    """Which data and which code."""
    provenance = results.provenance
    made_from = "; ".join(f"{data.name} `{data.digest}`" for data in provenance.inputs)
    code = provenance.tags.get("laq.commit", "unknown")
    files = provenance.tags.get("laq.uncommitted")
    changed = f" with uncommitted changes of {files}" if files else ""
    experiment = provenance.tags.get("laq.dvc_experiment")
    name = f"; DVC experiment `{experiment}`" if experiment else ""
    return f"Made from {made_from} (DVC's MD5s); commit `{code}`{changed}{name}."


def subset_description(subset: Subset, rows: Sequence[Row], limit: Track) -> str:
    """One subset: its classes, the best network, and all others."""
    winner = best(rows, limit.champion_bytes)
    if winner is None:
        found = f"No network is as small as {limit.champion_kib:g} KiB."
    else:
        cells = _winner(winner)
        found = (
            f"**{cells['method']} at {cells['bits']} bits** on the {cells['network']} network is best of "
            f"those of {limit.champion_kib:g} KiB at most, on half of the test images. On the others it has "
            f"{cells['top-1 of the subset (%)']} % top-1 of the subset; it takes {cells['KiB']} KiB."
        )
    return "\n\n".join([f"Classes: {', '.join(subset.class_names)}", found, _table(rows)])[:LONGEST]


def cell_description(subset: Subset, rows: Sequence[Row]) -> str:
    """One method and bit-width for one subset, beside the networks as they are."""
    return f"Classes: {', '.join(subset.class_names)}\n\n{_table(rows)}"[:LONGEST]


def _table(rows: Sequence[Row]) -> str:
    return markdown_table(pd.DataFrame([_cells(row) for row in rows]))
