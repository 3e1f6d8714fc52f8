"""What do cross-layer equalization and bias correction give a network with depthwise convolutions?

In the project's folder, after `laq dataset` and `laq network` of the study cifar100_efficientnet (`study:
cifar100_efficientnet` in params.yaml)::

    PYTHONPATH=. python benchmarks/equalization.py measure --every 6
    PYTHONPATH=. python benchmarks/equalization.py table >> results/integers.md

Accuracy is what onnxruntime predicts with each file, as in `benchmarks/integers.py`. Each measurement goes to
a file as soon as it is made, so that a killed run continues where it stopped.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
import numpy as np
import pandas as pd
from integers import IMAGES, pictures, predicted, write
from records import commit_of, read_records
from torch import Tensor, nn

from laq.machine import adds_in_32_bits
from laq.network import load_network
from laq.quantization import Recipe, export_onnx, quantize_each
from laq.report.rendering import markdown_table

_RESULTS: Final = Path("benchmarks/results/equalization.jsonl")
KINDS: Final = {"W4": (4, None), "W4A8": (4, 8), "W8A8": (8, 8)}
GRANULARITIES: Final = ("channel", "layer")
WAYS: Final = {
    (False, False): "neither",
    (False, True): "bias correction",
    (True, False): "equalization",
    (True, True): "both",
}  # equalize and bias_correction
Setting = tuple[str, str, str]  # kind, granularity, way
_TEXT: Final = """

## Cross-layer equalization and bias correction

Measured by `benchmarks/equalization.py`; commit {commit}. {network}, {subsets} of 10 classes
of CIFAR-100 with 1,000 test images each, {images} calibration images of the subset's classes, weights by
GPFQ: points of restricted top-1 lost against float ({original:.2f} % on average) as onnxruntime computes it,
paired by subset{interval}.

{table}"""
_results = click.option("--results", type=click.Path(dir_okay=False, path_type=Path), default=_RESULTS)


@click.group()
def main() -> None:
    """Measure what equalization gives, and print what was found."""


@main.command()
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
@_results
def measure(results: Path, every: int) -> None:
    """Measure restricted top-1 on the test images of each subset."""
    if not adds_in_32_bits():
        raise click.ClickException("8-bit weights overflow on this processor, which has no VNNI")
    network = load_network()
    known = {(r["subset"], r["kind"], r["granularity"], r["way"]) for r in read_records(results)}
    for subset, X, X_test, labels in pictures(network, every, "equalization"):
        wanted = [s for s in product(KINDS, GRANULARITIES, WAYS.values()) if (subset.name, *s) not in known]
        wanted += [("float", "", "")] if (subset.name, "float", "", "") not in known else []
        for (kind, granularity, way), path in files(network.body, X, wanted):
            top1 = 100 * float((predicted(path, X_test, subset) == labels).mean())
            about = {"kind": kind, "granularity": granularity, "way": way}
            write(
                results,
                {"network": network.design.architecture, "subset": subset.name, **about, "top1": top1},
            )


def files(body: nn.Module, X: Tensor, wanted: list[Setting]) -> Iterator[tuple[Setting, Path]]:
    """ONNX files of a network for these settings, of which those that may share a pass do."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file.onnx"
        if ("float", "", "") in wanted:
            export_onnx(path, body, X[:2])
            yield ("float", "", ""), path
        for equalize, rounded in product((False, True), repeat=2):
            shared = [s for s in wanted if s[0] in KINDS and _shares(s, equalize=equalize, rounded=rounded)]
            for setting, result in zip(
                shared, quantize_each(body, X, list(map(_recipe, shared))), strict=True
            ):
                export_onnx(path, result, X[:2], vnni=True)
                yield setting, path


def _shares(setting: Setting, *, equalize: bool, rounded: bool) -> bool:
    recipe = _recipe(setting)
    return recipe.equalize == equalize and (recipe.activations is not None) == rounded


def _recipe(setting: Setting) -> Recipe:
    kind, granularity, way = setting
    (bits, activations) = KINDS[kind]
    equalize, corrected = next(options for options, name in WAYS.items() if name == way)
    return Recipe(
        bits=bits,
        activations=activations,
        granularity=granularity,  # type: ignore[arg-type]
        fuse=True,
        equalize=equalize,
        bias_correction=corrected,
    )


@main.command()
@_results
def table(results: Path) -> None:
    """Print the table as Markdown."""
    records = read_records(results)
    if not records:
        raise click.ClickException(f"{results}: no measurements; measure takes them")
    found = pd.DataFrame(records)
    wide = found.pivot_table(index="subset", columns=["kind", "granularity", "way"], values="top1").dropna()
    original = wide["float", "", ""]
    lost = wide.rsub(original, axis=0)
    rows = [
        {
            "weights and activations": kind,
            "a step for each": granularity,
            **{way: _points(lost, (kind, granularity, way)) for way in WAYS.values()},
        }
        for kind, granularity in product(KINDS, GRANULARITIES)
    ]
    about = {
        "commit": ", ".join(sorted({commit_of(record) for record in records})),
        "network": found.network.iloc[0],
        "subsets": f"{len(wide)} subset{'s' * (len(wide) > 1)}",
        "images": IMAGES,
        "original": original.mean(),
        "interval": ", with a normal 95 % interval of their mean over subsets" if len(wide) > 1 else "",
    }
    click.echo(_TEXT.format(table=markdown_table(pd.DataFrame(rows)), **about))


def _points(lost: pd.DataFrame, setting: Setting) -> str:
    """The mean over subsets of the points lost, with its interval where there are several."""
    if setting not in lost:
        return "not measured"
    points = lost[setting]
    interval = f" ± {1.96 * points.std() / np.sqrt(len(points)):.2f}" if len(points) > 1 else ""
    return f"{points.mean():.2f}{interval}"


if __name__ == "__main__":
    main()
