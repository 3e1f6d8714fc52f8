"""Measures cells of a published study again, and compares every digit.

Run it in a project whose pipeline has made `data/` of that study up to its network (`dvc repro network`)::

    python benchmarks/published.py results/cifar100 --cells 24

Cells are drawn from the published table, and the classes of their subsets are read from the published page.
Fine-tuned networks are trained again.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from laq.dataset.images import read_class_names
from laq.finetune import finetune
from laq.parallel import Workers
from laq.params import load_params
from laq.progress import progress
from laq.study import StudyInputs, measure_all, plan
from laq.study.results import read_measurement
from laq.subsets.subset import Subset

MEASURED = (
    "top1_all_percent", "top5_all_percent", "top1_sub_percent", "top5_sub_percent", "mean_bits", "levels",
    "sparsity_percent", "size_bytes", "compression", "relative_error_mean", "relative_error_logits",
)  # fmt: skip


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cells", "count", default=24, show_default=True, help="How many cells to draw.")
@click.option("--seed", default=0, show_default=True, help="The seed that draws them.")
def main(folder: Path, count: int, seed: int) -> None:
    """Measure cells of a published study again; ends with code 1 where a digit differs."""
    params = load_params()
    table = pd.read_csv(folder / "measurements.csv.gz", dtype={"bits": str})
    made = table[table.method != "float"]
    drawn = made.iloc[np.sort(np.random.default_rng(seed).choice(len(made), count, replace=False))]
    subsets = published_subsets(folder, drawn)
    cells = {cell.name: cell for cell in plan(list(subsets.values()), params.study)}
    if missing := sorted(set(drawn.cell) - cells.keys()):
        raise click.ClickException(f"params.yaml: its study has no cell {missing[0]}; ask for it there")
    tuned = [subsets[name] for name in drawn[drawn.variant == "finetuned_quantized"].subset.unique()]
    weights = finetune(tuned, params.finetune, Workers()) if tuned else {}
    inputs = StudyInputs(params.study, {subset.name: path for subset, path in weights.items()})
    differing = 0
    for row in progress(drawn.to_dict("records"), "published"):
        cell = cells[row["cell"]]
        found = read_measurement(measure_all([cell], inputs, Workers())[cell])
        other = [name for name in MEASURED if rounded(found.get(name)) != rounded(row[name])]
        differing += bool(other)
        told = ", ".join(f"{name} {found.get(name)} instead of {row[name]}" for name in other)
        click.echo(f"{row['cell']}: {told or 'the same'}")
    click.echo(f"{count - differing} of {count} cells of {folder} are the same in every digit")
    sys.exit(bool(differing))


def published_subsets(folder: Path, drawn: pd.DataFrame) -> dict[str, Subset]:
    """The subsets of some rows of the table, by name."""
    page = (folder / "page.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    if found is None:
        raise click.ClickException(f"{folder / 'page.html'}: holds no data")
    page_subsets = json.loads(found[1])["subsets"]
    classes = dict(zip(page_subsets["name"], page_subsets["classes"], strict=True))
    names = read_class_names(Path("data/dataset"))
    return {
        row.subset: Subset(
            row.subset, row.kind, tuple(classes[row.subset]),
            tuple(names[number] for number in classes[row.subset]), *[0.0] * 4,
        )
        for row in drawn.drop_duplicates("subset").itertuples()
    }  # fmt: skip


def rounded(value: Any) -> float | None:
    """A measurement with the six decimals of the published table; None if it is missing."""
    return None if pd.isna(value) else round(float(value), 6)


if __name__ == "__main__":
    main()
