"""Measures how many cells a minute the study takes, with shared work and with each cell alone.

Run it in a project whose pipeline has made `data/` up to its subsets (`dvc repro subsets`), on an idle
machine::

    python benchmarks/study.py --subsets 3 --alone 8

*Shared* is the way of `laq finetune` and `laq study`, from an empty cache, with one process and with two.
*Alone* is the naive way: for each cell the network is fine-tuned if the cell needs it, scored in float,
quantized and scored again. A sample of cells, drawn evenly, represents all.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from laq.finetune import finetune
from laq.git import commit
from laq.parallel import Workers
from laq.params import Params, load_params
from laq.progress import progress
from laq.study import Cell, StudyInputs, measure_all, plan
from laq.subsets.subset import Subset, read_subsets


@click.command()
@click.option("--subsets", "count", default=3, show_default=True, help="The number of subsets, drawn evenly.")
@click.option("--alone", default=8, show_default=True, help="The number of cells measured alone.")
def main(count: int, alone: int) -> None:
    """Print the cells per minute of each way, and the ratios."""
    params, every = load_params(), read_subsets()
    subsets = [every[place] for place in np.linspace(0, len(every) - 1, count).astype(int)]
    cells = plan(subsets, params.study)
    one, two = (seconds(lambda jobs=jobs: shared(params, subsets, jobs)) for jobs in (1, 2))
    sample = [cells[place] for place in np.linspace(0, len(cells) - 1, alone).astype(int)]
    times = [seconds(lambda cell=cell: by_itself(params, cell)) for cell in progress(sample, "alone")]
    naive = len(cells) * float(np.mean(times))
    click.echo(f"{len(cells)} cells of {len(subsets)} subsets, commit {commit()['commit']}")
    for name, took in (("shared, 1 process", one), ("shared, 2 processes", two), ("each alone", naive)):
        click.echo(f"{name:<20} {60 * len(cells) / took:8.1f} cells a minute, {took:8.1f} s in all")
    click.echo(f"shared / alone, both in 1 process: {naive / one:.1f}")
    click.echo(f"2 processes / 1: {one / two:.2f}")
    spread = f"{min(times):.1f} to {max(times):.1f}"
    click.echo(f"alone: mean of {len(times)} cells, {spread} s each")


def seconds(work: Callable[[], Any]) -> float:
    """The seconds that ``work`` takes with an empty cache."""
    with TemporaryDirectory() as empty:
        os.environ["DVC_ROOT"] = empty  # the folder of the cache
        begin = time.perf_counter()
        work()
        took = time.perf_counter() - begin
        del os.environ["DVC_ROOT"]
    return took


def shared(params: Params, subsets: Sequence[Subset], jobs: int) -> None:
    """Fine-tune and measure all cells as the study does."""
    weights = finetune(subsets, params.finetune, Workers(jobs))
    inputs = StudyInputs(params.study, _by_name(weights))
    measure_all(plan(subsets, params.study), inputs, Workers(jobs))


def by_itself(params: Params, cell: Cell) -> None:
    """Do everything that one cell needs, for it alone."""
    known = finetune([cell.subset], params.finetune, Workers()) if cell.base == "finetuned" else {}
    inputs = StudyInputs(params.study, _by_name(known))
    for one in (Cell(cell.subset, cell.base), cell):
        measure_all([one], inputs, Workers())


def _by_name(weights: dict[Subset, Path]) -> dict[str, Path]:
    return {subset.name: path for subset, path in weights.items()}


if __name__ == "__main__":
    main()
