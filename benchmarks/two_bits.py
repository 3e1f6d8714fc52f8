"""How much of what 2 and 3 bits lose does tuning give back, and what of it does that?

In the project's folder, after `laq dataset` and `laq network` of the study cifar100 (`study: cifar100` in
params.yaml)::

    PYTHONPATH=. python benchmarks/two_bits.py measure --every 4 --images 128 --images 1024
    PYTHONPATH=. python benchmarks/two_bits.py measure --every 4 --bits 3 --case Qronos --case tuned
    PYTHONPATH=. python benchmarks/two_bits.py table > results/two_bits.md

Networks have the alphabet and the radii of `results/cifar100_seeds`. Beside restricted top-1 on the test
images stands the divergence on training images that nobody learned from: options were chosen by that. Each
measurement goes to a file as soon as it is made, so that a killed run continues where it stopped.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from records import Record, commit_of, read_records
from scipy import stats
from torch import Tensor

from laq.architectures import Classifier
from laq.dataset.images import ImageSet, read_images
from laq.git import commit
from laq.machine import processor
from laq.network import load_network
from laq.network.evaluation import predict, restrict, top_k
from laq.paths import DATASET
from laq.progress import progress
from laq.quantization import Recipe, Tuning, quantize
from laq.report.rendering import markdown_table
from laq.subsets.subset import Subset, read_subsets

SUBSETS: Final = Path("results/cifar100_seeds/subsets.json")
_RESULTS: Final = Path("benchmarks/results/two_bits.jsonl")
_OTHERS: Final = 500  # training images that nobody learned from
_REFERENCE: Final = "Qronos"  # which differences are to
# The method and the tuning of each case; the first ones are what the others are compared with.
CASES: Final[dict[str, tuple[str, Tuning | None]]] = {
    "Qronos": ("qronos", None),
    "round-to-nearest": ("rtn", None),
    "GPFQ": ("gpfq", None),
    "AdaRound": ("adaround", None),
    "BRECQ": ("brecq", None),
    "tuned": ("qronos", Tuning()),
    "tuned to all classes": ("qronos", Tuning(loss="all")),
    "tuned without mixtures": ("qronos", Tuning(mix=False)),
    "tuned, codes kept": ("qronos", Tuning(codes_rate=0)),
    "tuned, codes alone": ("qronos", Tuning(scales_rate=0)),
    "tuned, codes twice as fast": ("qronos", Tuning(codes_rate=0.04)),
    "tuned at temperature 1": ("qronos", Tuning(temperature=1.0)),
    "tuned at temperature 4": ("qronos", Tuning(temperature=4.0)),
    "GPFQ, tuned": ("gpfq", Tuning()),
}
_TEXT: Final = """\
# Two bits

Measured by `benchmarks/two_bits.py`, whose first lines say how; commit {commit}, {processor}, {threads}
threads. ResNet-20 on CIFAR-100, calibration images of the subset's classes. *Points lost* of restricted top-1
are against the float network. *Gained* is restricted top-1 beyond Qronos from the same images, and *nearer*
how much smaller the divergence from the float network is on {others} training images that nobody learned
from; both are paired by subset, with Student's 95 % interval of the mean over subsets, which share classes.
Tuning holds an eighth of the images back, from the method too; *codes moved* and *taken* tell what it did.
*Seconds* are processor time.

{table}
"""
_results = click.option("--results", type=click.Path(dir_okay=False, path_type=Path), default=_RESULTS)


@click.group()
def main() -> None:
    """Measure tuned networks, and print what was found."""


@main.command()
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
@click.option("--subset", "names", multiple=True, help="Subsets' names instead.")
@click.option("--images", "counts", type=int, multiple=True, default=[128], show_default=True)
@click.option("--bits", type=int, multiple=True, default=[2], show_default=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="All, if none.")
@_results
def measure(results: Path, every: int, names: Sequence[str], **asked: Sequence[Any]) -> None:
    """Measure restricted top-1, and the divergence on other images, of each case."""
    known = {(r["subset"], r["images"], r["bits"], r["case"]) for r in read_records(results)}
    subsets = [s for s in read_subsets(SUBSETS) if not names or s.name in names][:: 1 if names else every]
    orders = [
        (subset, images, bits, case)
        for images in asked["counts"]
        for bits in asked["bits"]
        for subset in subsets
        for case in asked["cases"] or CASES
        if (subset.name, images, bits, case) not in known
    ]
    network = load_network()
    for order in progress(orders, "two bits", unit="network"):
        write(results, measured(network, *order))


def measured(network: Classifier, subset: Subset, images: int, bits: int, case: str) -> Record:
    """What a case comes to for a subset."""
    method, tuning = CASES[case]
    train, test = (read_images(DATASET, split).select(subset.classes) for split in ("train", "test"))
    drawn = train.sample(images, torch.Generator().manual_seed(0))
    classes = tuple(sorted(subset.classes))
    recipe = Recipe(
        bits=bits,
        method=method,
        alphabet="twos_complement",
        radius="error",
        tune=tuning and (tuning if tuning.loss == "all" else replace(tuning, classes=classes)),
    )
    begin = time.process_time()
    result = quantize(network, drawn.images, recipe)
    seconds = time.process_time() - begin
    others = unseen(train, images)
    told = result.tuned
    return {
        "subset": subset.name, "kind": subset.kind, "images": images, "bits": bits, "case": case,
        "float_top1": top1(network, test, classes), "top1": top1(result.network, test, classes),
        "divergence": divergence(network, result.network, others, classes), "seconds": seconds,
        "codes_moved_percent": told and 100 * told.codes_moved / result.weights,
        "taken": told and told.taken, "passes": told and told.passes,
    }  # fmt: skip


def unseen(train: ImageSet, images: int) -> ImageSet:
    """Training images of the subset's that are not among the first ones that calibration draws."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return train.take(order[images:][:_OTHERS])


def among(network: Classifier, images: ImageSet, classes: Sequence[int]) -> Tensor:
    """The logits (n, classes) of the subset's classes alone."""
    return predict(network, images)[:, list(classes)]


def top1(network: Classifier, images: ImageSet, classes: Sequence[int]) -> float:
    """Restricted top-1 in percent."""
    return top_k(*restrict(predict(network, images), images.labels, classes), 1)


def divergence(network: Classifier, other: Classifier, images: ImageSet, classes: Sequence[int]) -> float:
    """The mean KL divergence from the float network's restricted probabilities, in nats."""
    p, q = (among(n, images, classes).double().log_softmax(1) for n in (network, other))
    return float(F.kl_div(q, p, reduction="batchmean", log_target=True))


@main.command()
@_results
def table(results: Path) -> None:
    """Print the table."""
    found = pd.DataFrame(read_records(results))
    rows = [
        row
        for (bits, images), part in found.groupby(["bits", "images"])
        for row in rows_of(part.set_index(["case", "subset"]), f"{bits} bits, {images} images")
    ]
    about = found.iloc[-1].to_dict()
    parts = {"commit": commit_of(about), "processor": about["processor"], "threads": about["threads"]}
    click.echo(_TEXT.format(table=markdown_table(pd.DataFrame(rows)), others=_OTHERS, **parts), nl=False)


def rows_of(part: pd.DataFrame, of: str) -> list[dict[str, str]]:
    """A row for each case that was measured."""
    rows, reference = [], part.loc[_REFERENCE]
    for case in [name for name in CASES if name in part.index]:
        own = part.loc[case]
        beside = reference.loc[own.index.intersection(reference.index)]
        here = own.loc[beside.index]
        moved = own.codes_moved_percent.dropna()
        rows.append(
            {
                "networks": of,
                "case": case,
                "subsets": str(len(own)),
                "points lost": f"{(own.float_top1 - own.top1).mean():.2f}",
                "gained": with_interval(here.top1 - beside.top1, 2),
                "nearer (nats)": with_interval(beside.divergence - here.divergence, 4),
                "codes moved": f"{moved.mean():.2f} %" if len(moved) else "",
                "taken": f"{int(own.taken.sum())} of {len(own)}" if len(moved) else "",
                "seconds": f"{own.seconds.median():.0f}",
            }
        )
    return rows


def with_interval(differences: "pd.Series[float]", digits: int) -> str:
    """The mean, and its interval if there are two differences or more."""
    mean = f"{differences.mean():+.{digits}f}"
    if len(differences) < 2:
        return mean
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std() / len(differences) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


def write(results: Path, record: Record) -> None:
    """Add a record, with the commit, the processor and the threads that it was measured by."""
    results.parent.mkdir(parents=True, exist_ok=True)
    about = {"processor": processor(), "threads": torch.get_num_threads(), **commit()}
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**record, **about}) + "\n")


if __name__ == "__main__":
    main()
