"""What is it worth that quantization knows the classes, and how many calibration images does it take?

In the project's folder, after `laq dataset` and `laq network` of the study cifar100 (`study: cifar100` in
params.yaml)::

    PYTHONPATH=. python benchmarks/label_aware.py allocation
    PYTHONPATH=. python benchmarks/label_aware.py images
    PYTHONPATH=. python benchmarks/label_aware.py table > results/label_aware.md

Networks have the alphabet and the radii of `results/cifar100_seeds`, whose subsets are taken. Seeds draw the
calibration images. Whatever neither the images nor the bits of which know the subset is one network, which
is scored on every subset. Each measurement goes to a file as soon as it is made, so that a killed run
continues where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
import torch
from records import Record, commit_of, read_records
from torch import Tensor, nn
from two_bits import SUBSETS, write

from laq.architectures import Classifier
from laq.dataset.images import ImageSet, read_images
from laq.network import load_network
from laq.network.evaluation import predict, restrict, top_k
from laq.paths import DATASET
from laq.progress import progress
from laq.quantization import Recipe, parse_bits, quantize_each
from laq.quantization.bits.allocate import label_aware_bits
from laq.quantization.bits.sensitivity import sensitivities_each
from laq.quantization.methods.registry import label_of
from laq.report.divergences import members_of
from laq.report.mixed_model import Estimates, MixedModel
from laq.report.rendering import markdown_table
from laq.sections.report import Primary, Report
from laq.subsets.subset import Subset, read_subsets

_RESULTS: Final = Path("benchmarks/results/label_aware.jsonl")
_METHODS: Final = ("rtn", "gpfq", "qronos")
_USUAL: Final = 128  # calibration images
_COUNTS: Final = (32, 64, 128, 256, 512, 1024, 2048)
_UNIFORM, _BY_SUBSET, _BY_ALL = (
    "3 bits everywhere",
    "auto:3, loss of the subset",
    "auto:3, loss of all classes",
)
_OF_SUBSET, _OF_ALL = "subset", "all classes"
_PARAMS: Final = Report(
    primary=Primary(outcome="top1_sub", bits=2, method="gpfq", scale="points"),
    draws=19999, confidence=0.95, margin_points=0.5, seed=0,
)  # fmt: skip
# Of the networks that are compared: which bits from which images, first and second, and what it asks.
_QUESTIONS: Final = {
    "bits by layer, where this subset needs them": ((_BY_SUBSET, _OF_SUBSET), (_UNIFORM, _OF_SUBSET)),
    "the same by the loss of all classes": ((_BY_ALL, _OF_SUBSET), (_UNIFORM, _OF_SUBSET)),
    "the subset's loss rather than all classes'": ((_BY_SUBSET, _OF_SUBSET), (_BY_ALL, _OF_SUBSET)),
    "the same, images of all classes": ((_BY_SUBSET, _OF_ALL), (_BY_ALL, _OF_ALL)),
    "the subset's images, 3 bits everywhere": ((_UNIFORM, _OF_SUBSET), (_UNIFORM, _OF_ALL)),
    "the subset's images, its own bits": ((_BY_SUBSET, _OF_SUBSET), (_BY_SUBSET, _OF_ALL)),
    "both, against bits and images of all classes": ((_BY_SUBSET, _OF_SUBSET), (_BY_ALL, _OF_ALL)),
}
_TEXT: Final = """\
# What label-aware quantization is worth

Measured by `benchmarks/label_aware.py`, whose first lines say how; commit {commit}, {processor}. ResNet-20 on
CIFAR-100, {subsets} subsets of 5, 10 and 20 classes. Numbers are points of top-1 among a subset's classes on
the test images, which chose nothing; brackets hold 95 % intervals of the mean over subsets, by the
model of the report (`laq/report/mixed_model.py`: subsets share classes, and where one network serves all
subsets, they share its draw of images).

## Bits by layer and calibration images, {seeds} seeds, {usual} images

Points gained by the first of two ways to quantize over the second.

{allocation}

## How many calibration images

Points lost against the float network.

{images}
"""
_results = click.option("--results", type=click.Path(dir_okay=False, path_type=Path), default=_RESULTS)
_every = click.option(
    "--every", type=click.IntRange(1), default=3, show_default=True, help="Take every n-th subset."
)
_seeds = click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)


@dataclass(frozen=True)
class Ground:
    """The float network, the subsets, and the images: what calibration draws from, and what scores."""

    network: Classifier
    subsets: tuple[Subset, ...]
    train: ImageSet
    test: ImageSet

    @classmethod
    def of(cls, every: int) -> "Ground":
        """The project's network and data set, and every n-th subset."""
        subsets = tuple(read_subsets(SUBSETS)[::every])
        classes = sorted({number for subset in subsets for number in subset.classes})
        train, test = (read_images(DATASET, split) for split in ("train", "test"))
        return cls(load_network(), subsets, train, test.select(classes))

    def scores(self, network: nn.Module, subsets: Sequence[Subset]) -> Iterator[tuple[str, float]]:
        """Restricted top-1 in percent of each subset, by its name; the network is run once."""
        images = self.test.select(sorted({number for subset in subsets for number in subset.classes}))
        logits = predict(network, images)
        for subset in subsets:
            yield subset.name, top_k(*restrict(logits, images.labels, subset.classes), 1)

    def drawn(self, subset: Subset | None, count: int, seed: int) -> Tensor:
        """Calibration images of a subset's classes, or of all."""
        images = self.train if subset is None else self.train.select(subset.classes)
        return images.sample(count, torch.Generator().manual_seed(seed)).images


@click.group()
def main() -> None:
    """Measure what the classes' images and losses are worth, and print it."""


@main.command()
@_results
@_every
@_seeds
def allocation(results: Path, every: int, seeds: int) -> None:
    """Measure 3 bits on average: everywhere, or where the subset or all classes need them."""
    _measure(results, Ground.of(every), seeds, "allocation")


@main.command()
@_results
@_every
@_seeds
def images(results: Path, every: int, seeds: int) -> None:
    """Measure 2 and 3 bits with 32 to 2,048 calibration images."""
    _measure(results, Ground.of(every), seeds, "images")


@dataclass(frozen=True)
class Order:
    """Networks to make of one draw of images: those of a subset's classes, or of all if there is none."""

    method: str
    images: int
    seed: int
    subset: Subset | None

    @property
    def recipe(self) -> Recipe:
        """The recipe that all of them share."""
        return Recipe(bits=3, method=self.method, alphabet="twos_complement", radius="error")

    def key(self, part: str) -> tuple[Any, ...]:
        """What tells it from others in the file."""
        name = self.subset.name if self.subset else ""
        return part, self.method, self.images, self.seed, name


def _measure(results: Path, ground: Ground, seeds: int, part: str) -> None:
    counts, make = ((_USUAL,), allocated) if part == "allocation" else (_COUNTS, uniform)
    drawn = product(range(seeds), counts, _METHODS, (None, *ground.subsets))
    orders = [Order(method, count, seed, subset) for seed, count, method, subset in drawn]
    known = {tuple(record["order"]) for record in read_records(results)}
    floats = dict(ground.scores(ground.network, ground.subsets))
    for order in progress([o for o in orders if o.key(part) not in known], part, unit="draw"):
        about = {"order": order.key(part), "method": order.method, "images": order.images, "seed": order.seed}
        about["calibration"] = _OF_SUBSET if order.subset else _OF_ALL
        cells = [
            {"bits": bits, "subset": name, "top1": top1, "float_top1": floats[name]}
            for bits, served, network in make(ground, order)
            for name, top1 in ground.scores(network, served)
        ]
        write(results, {**about, "cells": cells})


_Made = Iterator[tuple[str, Sequence[Subset], nn.Module]]


def uniform(ground: Ground, order: Order) -> _Made:
    """Networks of 2 and 3 bits, with the subsets that they serve."""
    served = [order.subset] if order.subset else ground.subsets
    images = ground.drawn(order.subset, order.images, order.seed)
    recipes = [replace(order.recipe, bits=bits) for bits in (2, 3)]
    for bits, result in zip(("2", "3"), quantize_each(ground.network, images, recipes), strict=True):
        yield bits, served, result.network


def allocated(ground: Ground, order: Order) -> _Made:
    """Networks of 3 bits on average, by every allocation, with the subsets that they serve."""
    served = [order.subset] if order.subset else ground.subsets
    images = ground.drawn(order.subset, order.images, order.seed)
    precision, recipe = parse_bits("auto:3"), order.recipe
    trials = quantize_each(ground.network, images, [replace(recipe, bits=b) for b in precision.choices])
    everyone = [None, *(sorted(subset.classes) for subset in served)]
    losses = sensitivities_each(ground.network, images, trials, everyone)
    by_all, *by_subset = (label_aware_bits(precision, loss, recipe.alphabet) for loss in losses)
    plans: list[tuple[str, Sequence[Subset], int | Mapping[str, int]]] = [(_UNIFORM, served, 3)]
    plans.append((_BY_ALL, served, by_all))
    plans += [(_BY_SUBSET, [subset], bits) for subset, bits in zip(served, by_subset, strict=True)]
    results = quantize_each(ground.network, images, [replace(recipe, bits=bits) for *_, bits in plans])
    for (name, subsets, _), result in zip(plans, results, strict=True):
        yield name, subsets, result.network


@main.command()
@_results
@_every
def table(results: Path, every: int) -> None:
    """Print the tables."""
    records = read_records(results)
    cells = pd.DataFrame([{**r, **cell, "part": r["order"][0]} for r in records for cell in r["cells"]])
    cells = cells.assign(lost=cells.float_top1 - cells.top1)
    subsets = read_subsets(SUBSETS)[::every]
    model = MixedModel(np.ones((len(subsets), 1)), members_of(subsets).to_numpy(), _PARAMS)
    names = [subset.name for subset in subsets]
    compared = pd.DataFrame(_compared(cells[cells.part == "allocation"], model, names))
    counted = pd.DataFrame(_counted(cells[cells.part == "images"], model, names))
    about: Record = records[-1]
    text = _TEXT.format(
        commit=commit_of(about), processor=about["processor"], subsets=len(subsets), usual=_USUAL,
        seeds=cells[cells.part == "allocation"].seed.nunique(),
        allocation=markdown_table(compared), images=markdown_table(counted),
    )  # fmt: skip
    click.echo(text, nl=False)


def _compared(cells: pd.DataFrame, model: MixedModel, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """A row for each question, a column for each method."""
    for question, (first, second) in _QUESTIONS.items():
        row = {"question": question}
        for method in _METHODS:
            own = cells[cells.method == method].pivot_table(
                "top1", ["bits", "calibration", "seed"], "subset", sort=False
            )[list(names)]
            row[label_of(method)] = _told(model, own.loc[first] - own.loc[second])
        yield row


def _counted(cells: pd.DataFrame, model: MixedModel, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """A row for each number of bits, method and origin of the images, a column for each number of images."""
    for (bits, method, calibration), part in cells.groupby(["bits", "method", "calibration"], sort=False):
        wide = part.pivot_table("lost", ["images", "seed"], "subset")[list(names)]
        counts = {str(count): _told(model, wide.loc[count]) for count in sorted(set(part.images))}
        yield {"bits": bits, "method": label_of(method), "images of": calibration, **counts}


def _told(model: MixedModel, by_seed: pd.DataFrame) -> str:
    """The mean over seeds (rows) and subsets (columns), and its interval."""
    values = by_seed.to_numpy(dtype=np.float64)
    found: Estimates = model.estimate(values.mean(0)[None], [values])
    return f"{found.effect[0]:.2f} ({found.low[0]:.2f} to {found.high[0]:.2f})"


if __name__ == "__main__":
    main()
