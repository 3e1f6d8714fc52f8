"""Which radius loses least? Restricted top-1 of the study's network by bits, radius and method.

Run in the project's folder once the stages up to `subsets` have run::

    python benchmarks/radius.py --every 4

Prints a Markdown table: mean over every 4th of the study's subsets, calibrated as the study says.
"""

from dataclasses import replace
from typing import Final

import click
import numpy as np

from laq.network import evaluate
from laq.params import load_params
from laq.progress import progress
from laq.quantization import Recipe, quantize
from laq.study import Bench, plan
from laq.study.cells import Cell
from laq.subsets import read_subsets

BITS: Final = (2, 3, 4)
RADII: Final = (0.6, 0.7, 0.8, 0.9, 1.0)


@click.command()
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
def main(every: int) -> None:
    """Measure and print."""
    bench = Bench(load_params().study)
    cells = [
        c for c in plan(read_subsets()[::every], bench.params) if c.base == "original" and c.recipe is None
    ]
    settings = [(bits, method, radius) for bits in BITS for method in ("rtn", "gpfq") for radius in RADII]
    base = next(c.recipe for c in plan(read_subsets(), bench.params) if c.recipe)
    found = {
        (bits, method, radius): score(bench, cells, replace(base, bits=bits, method=method, radius=radius))
        for bits, method, radius in progress(settings, "radius", unit="recipe")
    }
    click.echo(f"n = {len(cells)} subsets; float {np.mean([float_score(bench, c) for c in cells]):.1f} %")
    click.echo(f"| bits | method | {' | '.join(map(str, RADII))} |\n|---|---|{'---|' * len(RADII)}")
    for bits in BITS:
        for method in ("rtn", "gpfq"):
            row = " | ".join(f"{found[bits, method, radius]:.1f}" for radius in RADII)
            click.echo(f"| {bits} | {method} | {row} |")


def score(bench: Bench, cells: list[Cell], recipe: Recipe) -> float:
    """Mean restricted top-1 (%) of the quantized networks."""
    return float(np.mean([cell_score(bench, cell, recipe) for cell in cells]))


def cell_score(bench: Bench, cell: Cell, recipe: Recipe) -> float:
    """Restricted top-1 (%) on one subset."""
    result = quantize(bench.network(cell), bench.calibration_images(cell.subset), recipe)
    return evaluate(result.network, bench.test, cell.subset.classes).top1_sub


def float_score(bench: Bench, cell: Cell) -> float:
    """Restricted top-1 (%) before quantization."""
    return evaluate(bench.network(cell), bench.test, cell.subset.classes).top1_sub


if __name__ == "__main__":
    main()
