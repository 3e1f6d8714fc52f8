"""Command ``verify``: whether the numbers of a published study come out again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from shutil import rmtree
from typing import Final

import pandas as pd

from laq.errors import LaqError
from laq.finetune import finetune
from laq.imports import package_versions
from laq.machine import processor
from laq.network.published import has_own_weights
from laq.parallel import Workers
from laq.paths import WEIGHTS
from laq.report.rendering import templates
from laq.report.unchanged import PROVENANCE
from laq.study import StudyInputs, measure_all, plan
from laq.study.cells import Cell
from laq.study.results import read_measurement
from laq.verify.comparison import Row
from laq.verify.published import Published, missing_files, read_published
from laq.verify.rebuild import is_own_dataset, rebuilt

__all__ = ["Verification", "run", "why_not"]

SHOWN: Final = "top1_sub_percent"
_VERSIONS: Final = ("python", "torch", "numpy", "numba")


@dataclass(frozen=True)
class Verification:
    """The outcome: a text for a terminal, and whether all rows came out again and all files are unchanged."""

    text: str
    equal: bool


def run(folder: Path, cells: int | None, seed: int | None, workers: Workers) -> Verification:
    """Measure cells of a published study again and compare all that was published of them.

    Args:
        folder: what `laq report --publish` wrote.
        cells: how many are drawn; 0 for all, None for what the published parameters say.
        seed: what draws them; None for what the published parameters say.
        workers: who measures.

    Raises:
        LaqError: the folder is not a published study, or what it was measured on cannot be had.
    """
    published = read_published(folder)
    usual = published.params.verify
    count, seed = usual.cells if cells is None else cells, usual.seed if seed is None else seed
    drawn = published.drawn(count or None, seed)
    with rebuilt(published):
        rows = _measured(published, drawn, workers)
    again = all(row.outcome in {"equal", "within tolerance"} for row in rows)
    return Verification(_text(published, rows, seed), again and not published.changed)


def why_not(folder: Path) -> str:
    """Why a published study cannot be measured again with what is on this machine; empty if it can be.

    Raises:
        LaqError: the folder is not a published study.
    """
    missing = missing_files(folder)
    if missing and PROVENANCE not in missing:
        return f"it was published without {', '.join(missing)}"
    published = read_published(folder)
    if has_own_weights(published.params.network) and not (folder / WEIGHTS).is_file():
        return f"it was published without {WEIGHTS}"
    dataset = published.params.dataset
    if is_own_dataset(published) or dataset.source.is_at_hand(dataset.options):
        return ""
    return f"the images of {dataset.name} are not at hand"


def _measured(published: Published, drawn: pd.DataFrame, workers: Workers) -> list[Row]:
    """The drawn rows with what is measured for each; nothing that was measured before is read."""
    params = published.params
    cells = {cell.name: cell for cell in plan(published.subsets, params.study)}
    if unknown := sorted(set(drawn.cell) - cells.keys()):
        raise LaqError(f"{published.folder / 'params.yaml'}: its study has no cell {unknown[0]}")
    wanted = [cells[name] for name in drawn.cell]
    tuned, failure = _fine_tuned(published, wanted, workers)
    inputs = StudyInputs(params.study, tuned, purpose="verify")
    measurable = [cell for cell in wanted if cell.base == "original" or not failure]
    folders = measure_all(measurable, inputs, workers)
    found = {cell.name: read_measurement(folder) for cell, folder in folders.items()}
    for folder in folders.values():
        rmtree(folder)  # so that the next verification measures again
    rows = [{str(name): value for name, value in row.items()} for row in drawn.to_dict("records")]
    named = params.verify.tolerances
    return [
        Row(row, found[row["cell"]], tolerances=[t for t in named if t.names(row)])
        if row["cell"] in found
        else Row(row, {}, failure)
        for row in rows
    ]


def _fine_tuned(published: Published, cells: Sequence[Cell], workers: Workers) -> tuple[dict[str, Path], str]:
    """The weights of the networks that cells need fine-tuned, by subset, or why there are none."""
    subsets = list(dict.fromkeys(cell.subset for cell in cells if cell.base == "finetuned"))
    try:
        made = finetune(subsets, published.params.finetune, workers)
    except LaqError as error:
        return {}, str(error)
    return {subset.name: path for subset, path in made.items()}, ""


def _text(published: Published, rows: Sequence[Row], seed: int) -> str:
    """The table of all rows, those that differ with what differs, and the count of each outcome."""
    table = pd.DataFrame(
        {
            "cell": [row.published["cell"] for row in rows],
            "published top-1 (%)": [row.published[SHOWN] for row in rows],
            "measured": [row.measured.get(SHOWN) for row in rows],
            "difference": [row.measured.get(SHOWN, nan) - row.published[SHOWN] for row in rows],
            "outcome": [row.outcome for row in rows],
        }
    )
    versions = package_versions("laq.study.measure")
    used = [t.why for row in rows if row.outcome == "within tolerance" for t in row.tolerances]
    return (
        templates("laq.verify")
        .get_template("verification.txt")
        .render(
            folder=published.folder,
            rows=rows,
            changed=published.changed,
            table=table.to_markdown(index=False, tablefmt="simple", floatfmt=".2f"),
            counted=Counter(row.outcome for row in rows),
            reasons=list(dict.fromkeys(used)),
            cells=len(published.table),
            seed=seed,
            here=f"{processor()}; " + ", ".join(f"{name} {versions[name]}" for name in _VERSIONS),
            there=published.origin,
        )
    )
