"""Measures the accuracy of each method by bits and calibration, beside Brevitas.

It needs the environment of `make bench`, and runs in the project's folder after the stages up to `subsets`
of a study (`study: cifar100` in params.yaml)::

    .venv-bench/bin/python benchmarks/accuracy.py run --questions radius --every 3
    .venv-bench/bin/python benchmarks/accuracy.py table

Networks are calibrated on images of each subset's classes, and once on as many images of all classes. Each
measurement goes to a file as soon as it is made, so that a killed run continues where it stopped.
"""

import copy
import importlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import click
import torch
from accuracy_plan import FLOAT, QUESTIONS, Trial, plan
from accuracy_table import render
from records import Record, read_records
from torch import Tensor, nn

from laq.git import commit
from laq.network import Classifier, evaluate, load_network
from laq.params import load_params
from laq.progress import progress
from laq.quantization import METHODS, Recipe, choose_bits, parse_bits, quantize
from laq.study import Cell, StudyInputs
from laq.subsets.subset import Subset, read_subsets

Job = tuple[Trial, list[Subset]]
_RESULTS: Final = Path("benchmarks/results/accuracy.jsonl")
_results = click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_RESULTS,
    show_default=True,
    help="The file of records, JSON lines.",
)


@click.group()
def main() -> None:
    """Measure the accuracy of quantized networks, and print it."""


@main.command()
@click.option("--questions", type=click.Choice(list(QUESTIONS)), multiple=True, help="Default: all.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
@click.option("--workers", type=click.IntRange(1), default=torch.get_num_threads(), help="Default: cores.")
@_results
def run(questions: Sequence[str], every: int, workers: int, results: Path) -> None:
    """Take the measurements that are missing, a trial per core."""
    results.parent.mkdir(parents=True, exist_ok=True)
    missing = list(jobs(plan(questions or list(QUESTIONS)), read_subsets()[::every], read_records(results)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as executor:
        running = [executor.submit(measure, job) for job in missing]
        for done in progress(as_completed(running), "accuracy", unit="network", total=len(running)):
            with results.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(record) + "\n" for record in done.result())


@main.command()
@_results
def table(results: Path) -> None:
    """Print the answers as Markdown."""
    records = read_records(results)
    if not records:
        raise click.ClickException(f"{results}: no measurements; `accuracy.py run` takes them")
    click.echo(render(records))


def jobs(trials: Sequence[Trial], subsets: Sequence[Subset], records: Sequence[Record]) -> Iterator[Job]:
    """The trials and subsets without a record; a network calibrated on all classes serves all subsets."""
    for trial in trials:
        done = {record["subset"] for record in records if trial.made(record)}
        missing = [subset for subset in subsets if subset.name not in done]
        if trial.calibration == "subset":
            yield from ((trial, [subset]) for subset in missing)
        elif missing:
            yield trial, missing


def measure(job: Job) -> list[Record]:
    """A record per subset of the job."""
    trial, subsets = job
    with torch.no_grad():
        network = quantized(trial, subsets[0])
    test = study_inputs(1).images("test")
    return [
        {
            **asdict(trial),
            "subset": subset.name,
            "kind": subset.kind,
            **asdict(evaluate(network, test, subset.classes)),
            **commit(),
        }
        for subset in subsets
    ]


@cache
def study_inputs(images: int) -> StudyInputs:
    """The study's inputs with ``images`` calibration images."""
    return StudyInputs(load_params().study.model_copy(update={"calibration_images": images}))


@cache
def original() -> Classifier:
    """The study's network."""
    return load_network()


def quantized(trial: Trial, subset: Subset) -> nn.Module:
    """The original network, quantized as the trial says."""
    if trial == FLOAT:
        return original()
    cell = Cell(subset, "original", Recipe(), calibration=trial.calibration)
    images = study_inputs(trial.images).calibration_images(cell)
    if trial.engine == "brevitas":
        return _by_brevitas(trial, images)
    known: dict[str, Any] = {name: getattr(trial, name) for name in ("method", "alphabet", "radius")}
    own = {"threshold": trial.threshold} if "threshold" in METHODS[trial.method].options else {}
    recipe = Recipe(**known, options=own)
    precision = parse_bits(trial.bits)
    bits = choose_bits(precision, original(), images, recipe, sorted(subset.classes))
    return quantize(original(), images, replace(recipe, bits=bits)).network


def _by_brevitas(trial: Trial, images: Tensor) -> nn.Module:
    # Brevitas writes into flattened weights, which would be copies in channels-last memory.
    network = copy.deepcopy(original()).to(memory_format=torch.contiguous_format)
    outcome = importlib.import_module("speed_brevitas").contender(trial.method)(network, images, trial.bits)
    for name, weight in outcome.weights().items():
        network.get_submodule(name).get_parameter("weight").copy_(weight)
    return network


if __name__ == "__main__":
    main()
