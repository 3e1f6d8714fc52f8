"""Tests whether the subsets are the same on every processor.

Run it in a project whose pipeline has made `data/dataset` and `data/network` (`dvc repro network`)::

    python benchmarks/processors.py run

Each row shows the results of the stages embeddings, divergence and subsets for that network, while the
numerical libraries compute as on an older processor or with another number of threads. `noise` is the largest
relative difference of a divergence from the first row before rounding. `margin` is the smallest relative
distance of a divergence from a value that is rounded differently: as long as it is far larger than the noise,
the matrices have the same bytes, and so have the subsets chosen from them. `differ` counts the pairs of
classes whose rounded divergences differ from the first row, and `subsets` says how many of the subsets are
the same.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np
import torch

from laq.dataset.images import read_images
from laq.divergence import DIGITS, class_divergence, rounded
from laq.divergence.reduction import reduce
from laq.embeddings import embed
from laq.git import commit
from laq.network import load_network
from laq.params import load_params
from laq.paths import DATASET
from laq.subsets import choose_subsets

PROCESSORS: Final = {
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2, 1 thread": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "AVX, 2 threads": {
        "OMP_NUM_THREADS": "2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "AVX",
        "OPENBLAS_CORETYPE": "Sandybridge",
    },
    "SSE, 1 thread": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Prescott",
        "MKL_CBWR": "COMPATIBLE",
    },
}
Record = dict[str, Any]


@click.group()
def main() -> None:
    """Compare the results of different processors."""


@main.command()
@click.option("--images", default=10**9, help="The number of training images of each class.  [default: all]")
@click.option(
    "--way", "ways", multiple=True, help="A divergence, such as umap-gaussian.  [default: the study's]"
)
def run(images: int, ways: tuple[str, ...]) -> None:
    """Print a table for each divergence."""
    ways = ways or (load_params().divergence.name,)
    click.echo(f"study {load_params().name}, commit {commit()['commit']}, torch {torch.__version__}")
    records: list[Record] = []
    for name, variables in PROCESSORS.items():
        begin = time.perf_counter()
        records.append(_on(variables, ["one", "--images", str(images), *(f"--way={way}" for way in ways)]))
        click.echo(f"{name}: {time.perf_counter() - begin:.0f} s", err=True)
    for way in ways:
        click.echo(f"\n{way:<24}{'noise':>10}{'margin':>10}{'differ':>8}  subsets")
        for name, record in zip(PROCESSORS, records, strict=True):
            click.echo(_row(name, record[way], records[0][way]))


def _on(variables: dict[str, str], arguments: list[str]) -> Record:
    """The record of a new process with these environment variables."""
    with TemporaryDirectory() as folder:
        target = Path(folder, "found.json")
        command = [sys.executable, __file__, *arguments, str(target)]
        subprocess.run(command, env={**os.environ, **variables}, check=True)
        found: Record = json.loads(target.read_text(encoding="utf-8"))
    return found


def _row(name: str, found: Record, first: Record) -> str:
    exact, reference = np.array(found["exact"]), np.array(first["exact"])
    pairs = np.triu_indices(len(exact), 1)
    noise = np.abs(exact[pairs] / reference[pairs] - 1).max()
    differ = int((rounded(exact) != rounded(reference))[pairs].sum())
    same = sum(one == other for one, other in zip(found["subsets"], first["subsets"], strict=True))
    return (
        f"{name:<24}{noise:>10.0e}{_margin(exact[pairs]):>10.0e}{differ:>8}  "
        f"{same} of {len(first['subsets'])} the same"
    )


def _margin(values: np.ndarray) -> float:
    """The smallest relative distance of a value from one that is halfway between two rounded ones."""
    step = 10.0 ** (np.floor(np.log10(np.abs(values))) - DIGITS + 1)
    return float((np.abs(values / step % 1 - 0.5) * step / np.abs(values)).min())


@main.command()
@click.option("--images", type=int)
@click.option("--way", "ways", multiple=True)
@click.argument("target", type=click.Path(path_type=Path))
def one(images: int, ways: tuple[str, ...], target: Path) -> None:
    """Write the divergences and subsets that this process computes."""
    params = load_params()
    data = read_images(DATASET, "train")
    first = [(data.labels == label).nonzero()[:images, 0] for label in range(len(data.class_names))]
    data = data.take(torch.cat(first).sort().values)
    features = np.concatenate(list(embed(load_network(), data)))
    record: Record = {}
    for way in ways:
        reduction, _, estimator = way.replace("features", "none").partition("-")
        own = params.divergence.model_copy(update={"reduction": reduction, "estimator": estimator})
        exact, _ = class_divergence(reduce(features, own), data.labels.numpy(), own)
        chosen = choose_subsets(rounded(exact), data.class_names, params.subsets)
        record[way] = {"exact": exact.tolist(), "subsets": [subset.classes for subset in chosen]}
    target.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
