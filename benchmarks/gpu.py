"""How fast does a GPU quantize, beside the processor's cores of the same machine?

There are no figures yet: what runs on a GPU was built and tested where there was none. Where there is one,
in the project's folder::

    PYTHONPATH=. .venv-bench/bin/python benchmarks/gpu.py > results/gpu.md

One run measures both devices in turn, on the same networks, images and recipes, and prints a table: seconds
(the best of several repeats, which include moving a network there and back), the GPU's peak of memory, how
far codes and layers' errors agree, whether two runs on the GPU give the same bytes, and which device ``auto``
takes. A code that differs early changes what later layers are given, and with it many of their codes; so
there is also how far the CPU agrees with itself in batches of four times the size. What is repeated for many
subsets, cores do in a process each, as `laq study` does. Brevitas (`make bench` installs it) is measured on
the same GPU. ``--device cpu`` tries the script without a GPU.
"""

import importlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, Final

import click
import pandas as pd
import torch
from speed_cases import load
from speed_one import machine, peak, synchronize, versions
from torch import Tensor, nn

from laq.git import commit
from laq.parallel import run_all, workers
from laq.progress import progress
from laq.quantization import QuantizedNetwork, Recipe, quantize_each
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.devices import chosen_device
from laq.report.rendering import markdown_table

_GIB_IN_MIB: Final = 1024
_STUDY_BITS: Final = (2, 3, 4, 8)
_STUDY_METHODS: Final = ("gpfq", "gptq", "qronos")


@dataclass(frozen=True)
class Work:
    """Images of a case of ``speed_cases.py`` and what is made of them in one pass, so many ``times`` over."""

    title: str
    case: str
    images: int
    recipes: tuple[Recipe, ...]
    times: int = 1


def recipe(method: str, bits: int = 4) -> Recipe:
    """A method with every patch of its images."""
    return Recipe(bits, method, radius=1.0)


_STUDY: Final = tuple(recipe(method, bits) for method in _STUDY_METHODS for bits in _STUDY_BITS)
WORKS: Final = {
    "resnet20": Work("ResNet-20@32, 64 pictures, GPFQ", "resnet20", 64, (recipe("gpfq"),)),
    "resnet20-qronos": Work("ResNet-20@32, 64 pictures, Qronos", "resnet20", 64, (recipe("qronos"),)),
    "resnet18": Work("ResNet-18@112, 64 pictures, GPFQ", "resnet18", 64, (recipe("gpfq"),)),
    "resnet50-gpfq": Work("ResNet-50@224, 512 pictures, GPFQ", "resnet50-512", 512, (recipe("gpfq"),)),
    "resnet50-qronos": Work("ResNet-50@224, 512 pictures, Qronos", "resnet50-512", 512, (recipe("qronos"),)),
    "study": Work("ResNet-20, 36 subsets × 4 bits × 3 methods", "resnet20", 64, _STUDY, times=36),
}


@click.command()
@click.option("--works", type=click.Choice(list(WORKS)), multiple=True, help="Default: all.")
@click.option("--images", type=click.IntRange(2), help="Fewer images than each work's own.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
def main(works: Sequence[str], images: int | None, repeats: int, device: str) -> None:
    """Measure a GPU beside the CPU, and print a table in Markdown."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("torch sees no GPU here, so that there is nothing to measure")
    rows = []
    for name in progress(works or tuple(WORKS), "gpu", unit="work"):
        work = WORKS[name]
        rows.append(measure(work, min(images or work.images, work.images), repeats, device))
    click.echo(f"{told(device)}\n\n{markdown_table(pd.DataFrame(rows))}")


def told(device: str) -> str:
    """A sentence on the machine, the code and the packages."""
    found, used, made = machine(device), versions(), commit()
    gpu = found["gpu"] or "The CPU once more, as no GPU was asked for,"
    code = f"{(made['commit'] or 'unknown')[:9]}{' with changes' * bool(made['dirty'])}"
    return (
        f"{gpu} beside {found['cores']} cores ({found['cpu']}), of which torch takes {found['threads']}; "
        f"commit {code}; torch {used['torch']}."
    )


def measure(work: Work, images: int, repeats: int, device: str) -> dict[str, Any]:
    """A row of the table."""
    network, given = load(work.case, images)
    auto = chosen_device("auto", network, [Batch((given,))]).type
    cpu_seconds, by_cpu = best_of(repeats, lambda: quantized(work, network, given, "cpu"))
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, by_gpu = best_of(repeats, lambda: quantized(work, network, given, device))
    memory = peak(device) / _GIB_IN_MIB if device != "cpu" else math.nan
    again = quantized(work, network, given, device)
    batches = tuple(replace(one, batch_size=4 * one.batch_size) for one in work.recipes)
    otherwise = quantized(replace(work, recipes=batches), network, given, "cpu")
    rival = math.nan
    if work.case.startswith("resnet50"):
        rival = best_rival(work.recipes[0].method, network.to(device), given.to(device), repeats)
    return {
        "work": work.title + (f" (of which {images})" if images < work.images else ""),
        "CPU, s": f"{cpu_seconds:.2f}",
        "GPU, s": f"{seconds:.2f}",
        "CPU / GPU": f"{cpu_seconds / seconds:.2f}",
        "memory, GiB": round(memory, 2),
        "codes alike, %": f"{100 * codes_alike(by_cpu, by_gpu):.2f}",
        "in other batches on the CPU, %": f"{100 * codes_alike(by_cpu, otherwise):.2f}",
        "errors differ by, %": f"{100 * errors_apart(by_cpu, by_gpu):.4f}",
        "same bytes twice": "yes" if codes_alike(by_gpu, again) == 1 else "no",
        "auto takes": auto,
        "Brevitas, s": round(rival, 2),
    }


def quantized(work: Work, network: nn.Module, images: Tensor, device: Any) -> list[QuantizedNetwork]:
    """The networks of the work; for every time but the first its images come in another order."""
    once = partial(quantized_once, work, network, images, device)
    if device == "cpu" and work.times > 1:
        outcomes = sorted(run_all(once, range(work.times), workers(None, "")), key=attrgetter("item"))
        if failed := [outcome.failure for outcome in outcomes if outcome.failure]:
            raise click.ClickException(failed[0])
        return [result for outcome in outcomes for result in outcome.result or ()]
    made = [result for number in range(work.times) for result in once(number)]
    synchronize(device)
    return made


def quantized_once(
    work: Work, network: nn.Module, images: Tensor, device: Any, number: int
) -> tuple[QuantizedNetwork, ...]:
    """One of the work's times."""
    order = torch.arange(len(images))
    if number:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(number))
    return quantize_each(network, images[order], work.recipes, device=device)


def best_of(repeats: int, function: Callable[[], Any]) -> tuple[float, Any]:
    """The least seconds of several calls, after one that compiles, and what the last one returned."""
    made, seconds = function(), []
    for _ in range(repeats):
        start = time.perf_counter()
        made = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), made


def best_rival(method: str, network: nn.Module, images: Tensor, repeats: int) -> float:
    """Seconds that Brevitas takes on the images' device for the same; none where it is not installed."""
    try:
        contender = importlib.import_module("speed_brevitas").contender(method)
    except ImportError:
        return math.nan

    def run() -> None:
        contender(network, images, 4)
        synchronize(images.device.type)

    return best_of(repeats, run)[0]


def codes_alike(some: Sequence[QuantizedNetwork], others: Sequence[QuantizedNetwork]) -> float:
    """The fraction of codes that are the same."""
    pairs = list(layers_of(some, others))
    alike = sum(int((one.codes == other.codes).sum()) for one, other in pairs)
    return alike / sum(one.codes.numel() for one, _ in pairs)


def errors_apart(some: Sequence[QuantizedNetwork], others: Sequence[QuantizedNetwork]) -> float:
    """The largest difference between two errors of a layer, as a fraction of the one on the CPU."""
    pairs = ((one.relative_error, other.relative_error) for one, other in layers_of(some, others))
    return max(abs(one - other) / max(one, 1e-30) for one, other in pairs)


def layers_of(some: Sequence[QuantizedNetwork], others: Sequence[QuantizedNetwork]) -> Iterator[Any]:
    """The layers of all networks, in pairs."""
    for one, other in zip(some, others, strict=True):
        yield from zip(one.layers, other.layers, strict=True)


if __name__ == "__main__":
    main()
