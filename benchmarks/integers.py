"""How accurate and how fast are networks whose weights and activations are integers, in onnxruntime?

In the project's folder, after `laq dataset` and `laq network` of the study cifar100 (`study: cifar100` in
params.yaml), and again of cifar100_efficientnet::

    PYTHONPATH=. python benchmarks/integers.py accuracy --every 2
    PYTHONPATH=. python benchmarks/integers.py peers --every 2       # see integers_peers.py
    PYTHONPATH=. python benchmarks/integers.py speed
    PYTHONPATH=. python benchmarks/integers.py openvino --every 2    # after `pip install openvino`
    PYTHONPATH=. python benchmarks/integers.py table > results/integers.md

Accuracy is what onnxruntime predicts with each file. Beside ours stands onnxruntime's own static
quantization: with unsigned activations, likewise with weights of 7 bits (`reduce_range`), and with signed
ones, its default; and other tools' (`integers_peers.py`); all from the same calibration images. Speed is
the ratio to the float network's time, both measured in turn. Each measurement goes to a file as soon as it
is made, so that a killed run continues where it stopped.
"""

import copy
import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import click
import numpy as np
import onnxruntime
import pandas as pd
import torch
from integers_peers import PEERS as TOOLS
from integers_peers import Outputs, in_onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from records import Record, commit_of, read_records
from torch import Tensor, nn

from laq.architectures import Classifier, make_body
from laq.dataset.images import read_images
from laq.export.latency import ROUNDS, WARMING, in_turns
from laq.git import commit
from laq.machine import processor
from laq.network import load_network
from laq.paths import DATASET
from laq.progress import progress
from laq.quantization import Recipe, export_onnx, quantize
from laq.report.rendering import markdown_table
from laq.run.runtime import logits, open_file
from laq.subsets.subset import Subset, read_subsets

SUBSETS: Final = Path("results/cifar100_seeds/subsets.json")
IMAGES: Final = 128  # for calibration
_RESULTS: Final = Path("benchmarks/results/integers.jsonl")
# Bits of weights and of activations; None are floats.
OURS: Final[dict[str, tuple[int | None, int | None]]] = {
    "float": (None, None),
    "laq W7A8": (7, 8),
    "laq W4": (4, None),
    "laq W4A8": (4, 8),
    "laq W4A4": (4, 4),
}
_UNSIGNED: Final = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
_ELSEWHERE: Final = ("laq W7A8", "laq W4A8")  # the files that OpenVINO is asked to run
PEERS: Final[dict[str, dict[str, Any]]] = {
    "onnxruntime W8A8": _UNSIGNED,
    "onnxruntime W7A8": {**_UNSIGNED, "reduce_range": True},
    "onnxruntime W8A8, signed": {},
}
CASES: Final = {
    "ResNet-20, 32 px": ("resnet20", 32),
    "ResNet-18, 112 px": ("torchvision:resnet18", 112),
    "MobileNetV2, 112 px": ("torchvision:mobilenet_v2", 112),
    "EfficientNet-Lite0, 224 px": ("efficientnet_lite0", 224),
}
_TEXT: Final = """\
# Integer networks in onnxruntime

Measured by `benchmarks/integers.py`, whose first lines say how; commit {commit}, onnxruntime {runtime}.
W7A8 are weights of 7 and activations of 8 bits; ours are chosen by GPFQ.
"""
_ACCURACY: Final = """\
## Accuracy

Restricted top-1 on CIFAR-100 as onnxruntime computes it: subsets of 10 classes with 1,000 test images each,
{images} calibration images of the subset's classes. Points lost are paired by subset, with a normal 95 %
interval of their mean over subsets. NNCF's files are run by onnxruntime; AIMET and Brevitas run in their own
simulations, with what their documentation proposes.

{tables}
"""
_SPEED: Final = """\
## Speed

One image at a time, {processor}; how many times as fast as the float network in the same runtime: the
median of {rounds} rounds, in which all files run in turn, and the quartiles. Weights are random but for
EfficientNet's, which changes no time.

{table}
"""
_OPENVINO: Final = """\
## In a second runtime

The same files of ResNet-20 in OpenVINO {openvino}, {subsets} subsets, 1 thread, {processor}: how many of the
test images get the class that onnxruntime gives them, restricted top-1 in both, and the time of one image
beside the float network's there, in turn (medians; means over subsets).

{table}
"""
Pixels = NDArray[np.float32]
_results = click.option("--results", type=click.Path(dir_okay=False, path_type=Path), default=_RESULTS)


@click.group()
def main() -> None:
    """Measure integer networks, and print what was found."""


@main.command()
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
@_results
def accuracy(results: Path, every: int) -> None:
    """Measure restricted top-1 on the test images of each subset."""

    def answers(body: nn.Module, X: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Outputs]]:
        for name, path in files(body, X, wanted):
            yield name, in_onnxruntime(path)

    measure_top1(results, every, (*OURS, *PEERS), answers)


@main.command()
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
@_results
def peers(results: Path, every: int) -> None:
    """Measure the same of other tools' networks."""

    def answers(body: nn.Module, X: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Outputs]]:
        for _, in_float in files(body, X, ["float"] if wanted else []):
            for name in wanted:
                yield name, TOOLS[name](copy.deepcopy(body), X, in_float)

    measure_top1(results, every, tuple(TOOLS), answers)


Answers = Callable[[nn.Module, Tensor, Sequence[str]], Iterator[tuple[str, Outputs]]]


def measure_top1(results: Path, every: int, names: Sequence[str], answers: Answers) -> None:
    """Measure what is missing of these networks, which ``answers`` makes of calibration images."""
    network = load_network()
    architecture = network.design.architecture
    scored = (r for r in read_records(results) if "top1" in r and r["network"] == architecture)
    known = {(r["subset"], r["file"]) for r in scored}
    for subset, X, X_test, labels in pictures(network, every, "accuracy"):
        wanted = [name for name in names if (subset.name, name) not in known]
        for name, outputs in answers(network.body, X, wanted):
            found = best_of(np.concatenate([outputs(part) for part in X_test.split(100)]), subset)
            top1 = 100 * float((found == labels).mean())
            write(results, {"network": architecture, "subset": subset.name, "file": name, "top1": top1})


@main.command()
@click.option("--threads", type=click.IntRange(1), multiple=True, default=[1, 2], show_default=True)
@_results
def speed(results: Path, threads: Sequence[int]) -> None:
    """Measure milliseconds for an image, the float network's and another's in turn."""
    generator = torch.Generator().manual_seed(0)
    known = {(r["case"], r["threads"]) for r in read_records(results) if "case" in r}
    for case, (architecture, side) in CASES.items():
        wanted = [count for count in threads if (case, count) not in known]
        # Coarse noise, as images are: in fine noise EfficientNet sees nothing, and its features are 0.
        noise = torch.randn(32, 3, side // 16, side // 16, generator=generator)
        X = nn.functional.interpolate(noise, size=side, mode="bilinear")
        body = make_body(architecture, {}, 1000).eval() if wanted else nn.Identity()
        made = files(body, X, ["float", "laq W7A8", *PEERS]) if wanted else iter(())
        with TemporaryDirectory() as folder:
            # Copies: the float network's file is what the peers' are made of.
            kept = {
                name: Path(shutil.copy(path, Path(folder) / f"{number}.onnx"))
                for number, (name, path) in enumerate(made)
            }
            for count in wanted:
                for name, ratios in times(kept, X[:1].numpy(), count).items():
                    write(results, {"case": case, "threads": count, "file": name, **ratios})


@main.command()
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take every n-th subset.")
@_results
def openvino(results: Path, every: int) -> None:
    """Measure in OpenVINO how often our files give onnxruntime's class, and how fast they are there."""
    network = load_network()
    known = {(r["subset"], r["file"]) for r in read_records(results) if "same" in r}
    for subset, X, X_test, labels in pictures(network, every, "openvino"):
        missing = [name for name in _ELSEWHERE if (subset.name, name) not in known]
        made = files(network.body, X, ["float", *missing] if missing else [])
        there: dict[str, OpenVinoSession] = {}
        for name, path in made:
            there[name] = OpenVinoSession(path)
            answers = [among(session, X_test, subset) for session in (open_file(path), there[name])]
            here_top1, there_top1 = (100 * float((one == labels).mean()) for one in answers)
            in_float, seconds = in_turns([there["float"], there[name]], X_test[:1].numpy()).T
            record = {
                "same": 100 * float((answers[0] == answers[1]).mean()),
                "here": here_top1,
                "there": there_top1,
                "ms": 1000 * float(np.median(seconds)),
                "faster": float(np.median(in_float / seconds)),
                "processor": processor(),
                "openvino": importlib.import_module("openvino").__version__.partition("-")[0],
            }
            if name in missing:
                write(results, {"subset": subset.name, "file": name, **record})


class OpenVinoSession:
    """A file in OpenVINO, one thread, floats of 32 bits, as ``logits`` runs a session of onnxruntime."""

    def __init__(self, path: Path) -> None:
        core = importlib.import_module("openvino").Core()
        config = {
            "INFERENCE_NUM_THREADS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._model = core.compile_model(core.read_model(path), "CPU", config)

    def run(self, _: None, inputs: dict[str, Pixels]) -> list[Pixels]:
        """The file's outputs."""
        return list(self._model(list(inputs.values())).values())

    def get_inputs(self) -> Sequence[Any]:
        """The file's one input."""
        return [SimpleNamespace(name="pixels")]


@main.command()
@_results
def table(results: Path) -> None:
    """Print the tables as Markdown."""
    records = read_records(results)
    if not records:
        raise click.ClickException(f"{results}: no measurements; accuracy and speed take them")
    click.echo(rendered(pd.DataFrame(records), records))


def pictures(
    network: Classifier, every: int, title: str
) -> Iterator[tuple[Subset, Tensor, Tensor, NDArray[np.int64]]]:
    """Every n-th subset of 10 classes, with calibration images, test images and these images' classes."""
    train, test = (read_images(DATASET, split) for split in ("train", "test"))
    subsets = [subset for subset in read_subsets(SUBSETS) if len(subset.classes) == 10][::every]
    for subset in progress(subsets, title, unit="subset"):
        drawn = train.select(subset.classes).sample(IMAGES, torch.Generator().manual_seed(0))
        own = test.select(subset.classes)
        X, X_test = (network.preprocess(images) for images in (drawn.images, own.images))
        yield subset, X, X_test, own.labels.numpy()


def files(body: nn.Module, X: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """ONNX files of a network, calibrated on images X (n, 3, h, w); they are there until the end."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        if wanted:
            export_onnx(path, body, X[:2])
        for name in wanted:
            yield name, made(name, body, X, path)


def made(name: str, body: nn.Module, X: Tensor, in_float: Path) -> Path:
    """The file of this name."""
    path = in_float.with_name(f"{name}.onnx")
    if name in PEERS:
        prepared = in_float.with_name("prepared.onnx")
        quant_pre_process(in_float, prepared)
        quantize_static(prepared, path, Reader(X.numpy()), QuantFormat.QDQ, per_channel=True, **PEERS[name])
        return path
    bits, activations = OURS[name]
    if bits is None:
        export_onnx(path, body, X[:2])
    else:
        recipe = Recipe(bits=bits, method="gpfq", activations=activations, fuse=True)
        export_onnx(path, quantize(body, X, recipe), X[:2])
    return path


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as onnxruntime reads them: a batch of 16 at a time."""

    def __init__(self, X: Pixels) -> None:
        self._batches = iter(np.split(X, max(1, len(X) // 16)))

    def get_next(self) -> dict[str, Pixels] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def predicted(path: Path, X: Tensor, subset: Subset) -> NDArray[np.int64]:
    """The class, among those of the subset, that the file says of each image."""
    return among(open_file(path), X, subset)


def among(session: Any, X: Tensor, subset: Subset) -> NDArray[np.int64]:
    """The class, among those of the subset, that a session says of each image."""
    return best_of(np.concatenate([logits(session, part.numpy()) for part in X.split(100)]), subset)


def best_of(outputs: Pixels, subset: Subset) -> NDArray[np.int64]:
    """The class of the subset whose logit is largest, for each image."""
    classes = np.array(subset.classes)
    chosen: NDArray[np.int64] = classes[outputs[:, classes].argmax(1)]
    return chosen


def times(paths: dict[str, Path], X: Pixels, threads: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of each file, and the float network's time divided by its own: quartiles over rounds."""
    sessions = [open_file(path, threads) for path in paths.values()]
    taken = pd.DataFrame(in_turns(sessions, X), columns=list(paths))
    ratios = taken.rdiv(taken["float"], axis=0).quantile([0.25, 0.5, 0.75])
    return {
        name: {"ms": 1000 * taken[name].median(), "ratio": ratios[name].tolist(), "processor": processor()}
        for name in paths
    }


def write(results: Path, record: Record) -> None:
    """Add a record to the file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({**record, **commit()}) + "\n")


def rendered(found: pd.DataFrame, records: Sequence[Record]) -> str:
    """The page."""
    commits = ", ".join(sorted({commit_of(record) for record in records}))
    parts = [_TEXT.format(commit=commits, runtime=onnxruntime.__version__)]
    if "top1" in found:
        parts.append(accuracies(found.dropna(subset="top1")))
    if "case" in found:
        parts.append(speeds(found.dropna(subset="case")))
    if "same" in found:
        parts.append(elsewhere(found.dropna(subset="same")))
    return "\n".join(parts).rstrip()


def accuracies(found: pd.DataFrame) -> str:
    """A table for each network."""
    tables = [accuracies_of(str(name), rows) for name, rows in found.groupby("network", sort=False)]
    return _ACCURACY.format(images=IMAGES, tables="\n\n".join(tables))


def accuracies_of(network: str, found: pd.DataFrame) -> str:
    """Points of restricted top-1 lost against float, paired by subset."""
    wide = found.pivot_table(index="subset", columns="file", values="top1").dropna()
    lost = wide.rsub(wide["float"], axis=0)
    order = [name for name in (*OURS, *PEERS, *TOOLS) if name in wide and name != "float"]
    interval = 1.96 * lost.std() / np.sqrt(len(wide))
    rows = pd.DataFrame(
        {
            "file": order,
            "points lost": [f"{lost[name].mean():.2f} ± {interval[name]:.2f}" for name in order],
            "worst subset": [f"{lost[name].max():.1f}" for name in order],
        }
    )
    about = f"{network}, {len(wide)} subsets; float: {wide['float'].mean():.2f} % on average."
    return f"{about}\n\n{markdown_table(rows)}"


def speeds(found: pd.DataFrame) -> str:
    """How many times as fast as the float network."""
    rows = [
        {
            "network": row.case,
            "threads": int(row.threads),
            "file": row.file,
            "ms": f"{row.ms:.2f}",
            "times as fast": f"{row.ratio[1]:.2f} ({row.ratio[0]:.2f} to {row.ratio[2]:.2f})",
        }
        for row in found.itertuples()
    ]
    named = ", ".join(found.processor.unique())
    return _SPEED.format(processor=named, rounds=ROUNDS - WARMING, table=markdown_table(pd.DataFrame(rows)))


def elsewhere(found: pd.DataFrame) -> str:
    """The files in OpenVINO."""
    means = found.groupby("file")[["same", "here", "there", "ms", "faster"]].mean()
    least = found.groupby("file").same.min()
    rows = [
        {
            "file": name,
            "same class (%)": f"{row.same:.2f}, at least {least[name]:.1f}",
            "top-1 in onnxruntime (%)": f"{row.here:.2f}",
            "top-1 in OpenVINO (%)": f"{row.there:.2f}",
            "ms": f"{row.ms:.2f}",
            "times as fast as float": f"{row.faster:.2f}",
        }
        for name, row in means.iterrows()
    ]
    given = {"subsets": found.subset.nunique(), "processor": ", ".join(found.processor.unique())}
    version = ", ".join(found.openvino.unique())
    return _OPENVINO.format(openvino=version, table=markdown_table(pd.DataFrame(rows)), **given)


if __name__ == "__main__":
    main()
