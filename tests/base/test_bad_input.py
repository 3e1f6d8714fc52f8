"""Bad input of every kind: the command ends with code 2, says exactly these lines, and writes nothing."""

import random
import re
import shutil
from collections.abc import Callable
from contextlib import chdir, nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner

from laq.architectures import NetworkDesign, build
from laq.cli import main
from laq.divergence import read_embeddings
from laq.divergence.files import read_name
from laq.errors import LaqError
from laq.files import replacing_folder, write_json
from laq.network.weights import load_network, read_design, save_tensors
from laq.paths import DATASET
from laq.report.divergences import read_plane
from laq.study.cells import Cell
from laq.study.results import layer_rows, read_measurement, read_seconds
from laq.study.tables import read_measurements
from laq.subsets.matrix import read_divergence
from laq.subsets.subset import Subset, read_subsets
from tests.conftest import tiny_params, write_params

GLYPHS = tiny_params()["glyphs"]

NAME = "must be a name of at most 60 letters, digits, _ and -, that begins with a letter"
BITS = (
    "must be a whole number from 2 to 24, or a text such as auto:3, auto:96000B, asc:4, desc:4, "
    '"3 first:8 last:8", "8,4,4" or "body.fc=8 *=3", whose numbers of bits are within that'
)
METHODS = (
    "must be rtn, gpfq, sgpfq, gpfq_l0, gpfq_l1, gptq, qronos, adaround, brecq, or one of these with -tuned or "
    "-tuned-all"
)
ARCHITECTURES = (
    "must be resnet8, resnet20, resnet20x2, resnet32, resnet44, resnet56, a torchvision classifier such as "
    "resnet50, efficientnet_lite0, timm:NAME, torchhub:OWNER/REPO:MODEL, python:MODULE:FUNCTION or FILE.pt2"
)
TEXT = "must be a text, not empty and without null characters"
COLOURS = "must be a list of three numbers, each a number"
TRAINING = (
    "unknown key; known here: batch_size, crop, device, epochs, flip, learning_rate, optimizer, precision, "
    "schedule, seed, weight_decay"
)
STUDY = (
    "unknown key; known here: activation_range, activations, alphabet, also, bases, batch_size, "
    "bias_correction, bits, calibration_images, calibrations, device, equalize, fuse, granularity, held_back, ignore, keep_networks, methods, options, percentile, radius, "
    "retain_rate, seeds, tune"
)
SECTIONS = (
    "unknown key; known here: advise, compare, dataset, divergence, embeddings, export, finetune, network, "
    "quantize, report, study, subsets, track, verify"
)
ABSENT = object()


def told(*command: str) -> list[str]:
    """What ``laq`` says of bad input; the current folder must be as it was."""
    before = files()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2, (done.output, done.exception)
    assert files() == before
    assert all(line.startswith("laq: ") for line in done.stderr.splitlines())
    return [line.removeprefix("laq: ") for line in done.stderr.splitlines()]


def with_key(key: str, value: Any) -> dict[str, Any]:
    """The study's block with another value of a key, or without it."""
    block = deepcopy(GLYPHS)
    *above, last = key.split(".")
    section = block
    for part in above:
        section = section[part]
    section[last] = value
    if value is ABSENT:
        del section[last]
    return block


def files() -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}


# A key of the study's block, what it holds instead, and what is said of it, the key's first.
KEYS: list[tuple[str, Any, str]] = [
    ("dataset", ABSENT, "dataset: missing; must be given"),
    ("dataset", 3, "dataset: found 3; must be keys and values"),
    ("dataset.name", "glyph", "dataset.name: found 'glyph'; must be glyphs, folder, torchvision, cifar100; did you mean glyphs?"),
    ("dataset", {"name": "folder", "size": 32}, "dataset.path: missing; folder needs path and size"),
    ("dataset", {"name": "folder", "path": "", "size": 32}, "dataset.path: found ''; must be a text, not empty and without null characters"),
    ("dataset", {"name": "folder", "path": "x", "size": 0}, "dataset.size: found 0; must be a whole number from 1 to 4096"),
    ("dataset", {"name": "folder", "path": "x", "size": 32, "resize": "corp"}, "dataset.resize: found 'corp'; must be crop, squash, pad; did you mean crop?"),
    ("dataset", {"name": "folder", "path": "x", "size": 32, "interpolation": "cubic"}, "dataset.interpolation: found 'cubic'; must be bilinear, bicubic, lanczos, box, nearest; did you mean bicubic?"),
    ("dataset", {"name": "folder", "path": "x", "size": 32, "test_share": 0}, "dataset.test_share: found 0; must be a number above 0, at most 0.5"),
    ("dataset", {"name": "folder", "path": "x", "size": 32, "skip_broken": "yes"}, "dataset.skip_broken: found 'yes'; must be true or false"),
    ("dataset", {"name": "folder", "path": "x", "size": 32, "seeds": 1}, "dataset.seeds: unknown key; folder has path, size, resize, interpolation, test_share, validation_share, seed and skip_broken; did you mean seed?"),
    ("dataset", {"name": "torchvision", "class": "CIFAR10", "root": "x", "size": 32, "arguments": 3}, "dataset.arguments: found 3; must be keys and values, which torchvision's class takes"),
    ("dataset.train_per_clas", 3, "dataset.train_per_clas: unknown key; glyphs has train_per_class, test_per_class and seed; did you mean train_per_class?"),
    ("dataset.seed", 2**32, "dataset.seed: found 4294967296; must be a whole number from 0 to 4294967295"),
    ("dataset.train_per_class", 1, "dataset.train_per_class: found 1; must be at least 2, which a class's divergence needs"),
    ("network.source", "trian", "network.source: found 'trian'; must be train, file, pretrained; did you mean train?"),
    *(
        ("network.architecture", name, f"network.architecture: found {name!r}; {ARCHITECTURES}{hint}")
        for name, hint in (
            ("", ""), ("resnet-8", "; did you mean resnet8?"), ("resnet21", "; did you mean resnet32?"),
            ("efficientnet-lite0", "; did you mean efficientnet_lite0?"), ("torchhub:x", ""), ("python:net.py", ""),
            ("tim:resnet18", "; did you mean resnet18?"),
        )
    ),
    ("network.arguments", {"width": 2}, "network.arguments: found {'width': 2}; resnet8 takes none"),
    ("network.weights", "a\0b", rf"network.weights: found 'a\x00b'; {TEXT}"),
    ("network.sha256", "abc", "network.sha256: found 'abc'; must be a SHA-256, 64 hexadecimal digits"),
    ("network.input_size", 10**6, "network.input_size: found 1000000; must be at most 4096"),
    ("network.mean", [0.1, 0.2], f"network.mean: found [0.1, 0.2]; {COLOURS} at least 0, at most 1"),
    ("network.std", [0, 1, 1], f"network.std: found [0, 1, 1]; {COLOURS} above 0"),
    ("network.training", None, "network.training: missing; must be given where source is train"),
    ("network.training.optimizer", "adam", "network.training.optimizer: found 'adam'; must be sgd, adamw; did you mean adamw?"),
    ("network.training.epochs", 8.0, "network.training.epochs: found 8.0; must be a whole number"),
    ("network.training.crop", 17, "network.training.crop: found 17; must be at most 16"),
    ("network.training.flip", 0, "network.training.flip: found 0; must be true or false"),
    ("network.transfer", {}, "network.transfer: found one; must be left out where source is train"),
    ("network.outputs", {"a": -1}, "network.outputs: found {'a': -1}; must be the path of a file with the names of all outputs, or a map of classes to outputs' numbers or names"),
    ("embeddings", {"network": "resnet50", "mean": [0.5, 0.5, 0.5]}, "embeddings.std: missing; give both mean and std"),
    *(
        ("embeddings", {"network": "own", **given}, f"embeddings.{told}; must be left out where network is own: the section network tells it")
        for given, told in (
            ({"input_size": 64}, "input_size: found 64"),
            ({"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}, "mean: found [0.5, 0.5, 0.5]"),
            ({"std": [0.5, 0.5, 0.5]}, "std: found [0.5, 0.5, 0.5]"),
        )
    ),
    ("embeddings.network", "resnet500", "embeddings.network: found 'resnet500'; must be own, a torchvision classifier such as resnet50, efficientnet_lite0, timm:NAME, torchhub:OWNER/REPO:MODEL, python:MODULE:FUNCTION or FILE.pt2; did you mean resnet50?"),
    ("embeddings.arguments", {"width": 2}, "embeddings.arguments: found {'width': 2}; own takes none"),
    ("embeddings", {"network": "net.pt2", "arguments": {"width": 2}}, "embeddings.arguments: found {'width': 2}; net.pt2 takes none"),
    ("divergence.components", 0, "divergence.components: found 0; must be at least 1"),
    ("divergence.estimator", "knn", "divergence.knn_neighbours: found 5; must be below 4, the training images of a class"),
    ("divergence.alternatives", ["umap-knn"], "divergence.knn_neighbours: found 5; must be below 4, the training images of a class"),
    ("divergence.alternatives", ["pca-gauss"], "divergence.alternatives.0: found 'pca-gauss'; must be umap-gaussian, umap-knn, pca-gaussian, pca-knn, features-gaussian, features-knn; did you mean pca-gaussian?"),
    ("divergence.given", {"theirs": {"path": "theirs.npy"}}, "divergence.given.theirs.sha256: missing; must be given"),
    ("divergence.given", {"pca-gaussian": {"path": "x", "sha256": "0" * 64}}, "divergence.given: found pca-gaussian, the name of a way of its own; take another"),
    ("divergence.umap_neighbors", 3, "divergence.umap_neighbors: unknown key; known here: alternatives, components, estimator, given, knn_neighbours, reduction, seed, umap_neighbours; did you mean umap_neighbours?"),
    ("subsets", {"sizes": [3], "similar": 0, "dissimilar": 0, "random": 0, "seed": 0}, "subsets: none is asked for; give a count of similar, dissimilar, random or even above 0"),
    ("subsets.sizes", [], "subsets.sizes: found []; must be a list of 1 or more"),
    ("subsets.sizes", 10, "subsets.sizes: found 10; must be a list"),
    ("subsets.sizes", [101], "subsets.sizes: found 101; must be at most 100, the classes of glyphs"),
    ("subsets.dissimilar", 101, "subsets.dissimilar: found 101; must be at most 100, the classes of glyphs"),
    ("subsets.given", [["a"]], "subsets.given.0: found ['a']; must be a list of 2 or more"),
    ("subsets.given", [[1, 1]], "subsets.given.0: found [1, 1]; each may stand but once"),
    ("subsets.given", [[1, 2.5]], "subsets.given.0.1: found 2.5; must be a class's name, or a whole number of at least 0"),
    ("subsets.given", [[1, 100]], "subsets.given: found 100; must be below 100, the classes of glyphs"),
    ("subsets.log", "log.csv", "subsets.log: found 'log.csv'; must be keys and values"),
    ("subsets.log", {"path": "log.csv"}, "subsets.log.sha256: missing; must be given"),
    ("subsets.bands", [{"count": 1, "minimum": 1}], "subsets.bands.0.maximum: missing; must be given"),
    ("finetune.learning_rate", "1e-4x", "finetune.learning_rate: found '1e-4x'; must be a number"),
    ("finetune.learning_rate", 0, "finetune.learning_rate: found 0; must be above 0"),
    ("finetune.lr", 1, f"finetune.lr: {TRAINING}"),
    ("study.bits", [2.0], f"study.bits.0: found 2.0; {BITS}"),
    ("study.bits", ["asc:2"], f"study.bits.0: found 'asc:2'; {BITS}"),
    ("study.bits", ["3 first:99"], f"study.bits.0: found '3 first:99'; {BITS}"),
    ("study.bits", ["8,99"], f"study.bits.0: found '8,99'; {BITS}"),
    ("study.bits", ["auto:1.5"], f"study.bits.0: found 'auto:1.5'; {BITS}"),
    ("study.bits", ["auto:25"], f"study.bits.0: found 'auto:25'; {BITS}"),
    ("study.bits", ["fc=3 fc=4"], f"study.bits.0: found 'fc=3 fc=4'; {BITS}"),
    ("study.bits", ["*=3 body.fc=8"], "study.bits.0: found '*=3 body.fc=8'; body.fc never counts after *, which matches all that it does: put it first"),
    ("study.bits", ["body.*=3 body.?=8"], "study.bits.0: found 'body.*=3 body.?=8'; body.? never counts after body.*, which matches all that it does: put it first"),
    ("study.bits", ["9" * 5000], f"study.bits.0: found '{'9' * 5000}'; {BITS}"),
    ("study.bits", ["3 first:8", "3  first:8"], "study.bits: found '3 first:8' and '3  first:8', which differ only in punctuation, so that their files would share a name; keep one"),
    ("study.also", [{"bits": ["8,4"]}, {"bits": ["8:4"]}], f"study.also.1.bits.0: found '8:4'; {BITS}"),
    ("study.also", [{"bits": ["3 last:8"]}, {"bits": ["3  last:8"]}], "study.bits: found '3 last:8' and '3  last:8', which differ only in punctuation, so that their files would share a name; keep one"),
    ("study.also", [{"bases": ["tuned"]}], "study.also.0.bases.0: found 'tuned'; must be original, finetuned; did you mean finetuned?"),
    ("study.methods", ["GPTQ"], f"study.methods.0: found 'GPTQ'; {METHODS}; did you mean gptq?"),
    ("study.calibration", ["all"], f"study.calibration: {STUDY}; did you mean calibrations?"),
    ("study.alphabet", "symetric", "study.alphabet: found 'symetric'; must be symmetric, twos_complement, midrise, predecessor; did you mean symmetric?"),
    ("study.device", "gpu", "study.device: found 'gpu'; must be auto, cpu, cuda; did you mean cpu?"),
    ("study.ignore", "fc", "study.ignore: found 'fc'; must be patterns of layers' names, such as ('body.*',)"),
    ("study.options", {"gpfq_l0": {"treshold": 1}}, "study.options: found 'treshold', which gpfq_l0 does not have: it has threshold, form; did you mean threshold?"),
    ("study.threshold", 1, f"study.threshold: {STUDY}"),
    ("report.draws", 10**12, "report.draws: found 1000000000000; must be at most 1000000"),
    ("report.primary.bits", 2, "report.primary.bits: found 2; must be what the study measures by gpfq: 3, 8"),
    ("report.primary.method", "gpfq_l0", "report.primary.method: found 'gpfq_l0'; must be a method of the study's: rtn, gpfq; did you mean gpfq?"),
    ("study.methods", ["rtn", "qronos"], "report.primary.method: found 'gpfq'; must be a method of the study's: rtn, qronos"),
    ("study.bits", ["auto:3", 8], "report.primary.bits: found 3; must be what the study measures by gpfq: auto:3, 8"),
    ("study.bases", ["finetuned"], "study.bases: found no 'original'; must have it, as report.primary asks about that network"),
    ("report.confidence", 0, "report.confidence: found 0; must be above 0"),
    ("track.champion_kib", "180", "track.champion_kib: found '180'; must be a number"),
    ("quantize.subset", "similr-1", "quantize.subset: found 'similr-1'; must be all or the name of a subset of the study, such as random-1; did you mean similar-1?"),
    ("quantize.method", "gptg", f"quantize.method: found 'gptg'; {METHODS}; did you mean gptq?"),
    ("compare.first", 1, f"compare.first: found 1; {TEXT}"),
    ("advise.lose", 101, "advise.lose: found 101; must be at most 100"),
    ("advise.loose", 1, "advise.loose: unknown key; known here: activations, bases, bits, calibrations, confidence, lose, methods, seeds, selection, selection_seed, selection_share; did you mean lose?"),
    ("datasett", {}, f"datasett: {SECTIONS}; did you mean dataset?"),
    ("name", "mine", f"name: {SECTIONS}"),
]  # fmt: skip
IDS = [f"{key}={str(value)[:20]}" for key, value, _ in KEYS]


@pytest.mark.parametrize(("key", "value", "line"), KEYS, ids=IDS)
def test_a_key_that_is_wrong_is_told_before_any_stage_starts(
    project: Path, key: str, value: Any, line: str
) -> None:
    write_params(project, {"study": "glyphs", "glyphs": with_key(key, value)})
    assert told("dataset") == [f"params.yaml: glyphs.{line}"]


def test_a_key_that_is_misspelt_is_not_told_as_missing_too(project: Path) -> None:
    block = deepcopy(GLYPHS)
    block["study"]["calibration"] = block["study"].pop("calibrations")
    write_params(project, {"study": "glyphs", "glyphs": block})
    assert told("dataset") == [f"params.yaml: glyphs.study.calibration: {STUDY}; did you mean calibrations?"]


def renamed(name: str) -> Callable[[str], str]:
    return lambda text: text.replace("study: glyphs", f"study: '{name}'").replace("\nglyphs:", f"\n'{name}':")


def added(more: str) -> Callable[[str], str]:
    return lambda text: f"{text}{more}"


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


FILES: list[tuple[Callable[[str], str], str]] = [
    (lambda _: "", "found None; must be keys and values"),
    (lambda _: "- 1\n", "found [1]; must be keys and values"),
    *((renamed(name), f"found a study named {name!r}; {NAME}") for name in ("a.b", "a/b", "a:b", "a b", "1a", "${a}", "x" * 61)),
    (added("a.b: {}\n"), f"found a study named 'a.b'; {NAME}"),
    (added("2024: {}\n"), f"found a study named 2024; {NAME}"),
    (added("mine: 3\n"), "mine: found 3; must be keys and values"),
    (replaced("study: glyphs", "study: glyph"), "study: found 'glyph'; must name a block: glyphs, other; did you mean glyphs?"),
    (replaced("study: glyphs", "study: [glyphs]"), "study: found ['glyphs']; must name a block: glyphs, other; did you mean glyphs?"),
    (replaced("study: glyphs", "studdy: glyphs"), "studdy: unknown key; did you mean study?"),
    (replaced("study: glyphs\n", ""), "study: missing; must name a block: glyphs, other"),
    (replaced("study: glyphs", "study: glyphs\nstudy: glyphs"), 'line 2: found duplicate key "study"; each may stand but once'),
    (added("mine: {a: 1, a: 2}\n"), 'line {next}: found duplicate key "a"; each may stand but once'),
    (added("mine: {a: !theirs 3}\n"), "line {next}: not YAML: could not determine a constructor for the tag '!theirs'"),
    (added("mine:\n\ta: 1\n"), r"line {over_next}: not YAML: while scanning for the next token found character '\t' that cannot start any token"),
    (added("---\na: 1\n"), "line {next}: not YAML: expected a single document in the stream but found another document"),
    (added("mine: [\n"), "line {over_next}: not YAML: while parsing a flow node expected the node content, but found '<stream end>'"),
    (replaced("options: {}", "options: {[1]: 2}"), "glyphs: holds more than texts, numbers, lists and keys (keys must be str, int, float, bool or None, not tuple)"),
    (replaced("given: []", "given: &a [*a]"), "glyphs: holds more than texts, numbers, lists and keys (Circular reference detected)"),
    (replaced("options: {}", f"options: {'[' * 2000}{']' * 2000}"), "not YAML: maximum recursion depth exceeded"),
    (replaced("learning_rate: 0.15", "learning_rate: 1e400"), "glyphs.network.training.learning_rate: found inf; must be a finite number"),
    (replaced("fuse: false", "fuse: off"), "glyphs.study.fuse: found 'off'; must be true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), FILES, ids=[line[:40] for _, line in FILES])
def test_a_file_that_is_wrong_is_told_in_a_line(
    project: Path, change: Callable[[str], str], line: str
) -> None:
    text = yaml.safe_dump({"study": "glyphs", "glyphs": GLYPHS, "other": {}}, sort_keys=False)
    Path("params.yaml").write_text(change(text), encoding="utf-8")
    end = len(text.splitlines())
    line = line.replace("{next}", str(end + 1)).replace("{over_next}", str(end + 2))
    assert told("dataset") == [f"params.yaml: {line}"]


def scores(name: str, variant: str, method: str) -> dict[str, Any]:
    """A row of the study's table."""
    texts = {
        "dataset": "glyphs",
        "network": "resnet8",
        "cell": f"{name}.{variant}",
        "subset": name,
        "kind": "random",
    }
    row = {
        "variant": variant,
        "method": method,
        "bits": "3",
        "calibration": "none",
        "levels": 7,
        "seed": None,
    }
    numbers = dict.fromkeys((*ALWAYS, "compression", "subset_size_classes"), 3.0)
    return texts | row | numbers | {"median_divergence_nats": 1.5, "mean_divergence_nats": 1.5}


ALWAYS = (
    "top1_all_percent", "top5_all_percent", "top1_sub_percent", "top5_sub_percent", "mean_bits", "sparsity_percent",
    "size_bytes",
)  # fmt: skip
SUBSET = Subset("random-1", "random", (0, 2), ("a", "c"), 1.5, 1.5, 1.5, 1.5)
DESIGNED = NetworkDesign("resnet8", 3, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CELL = Path(".laq/cells/0f")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind that stages write, of three classes; nobody made them together."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        make_data()
    return folder


@pytest.fixture
def data(project: Path, made: Path) -> Path:
    """A project with these files."""
    shutil.copytree(made, project, dirs_exist_ok=True)
    return project


def make_data() -> None:
    for folder in ("network", "embeddings", "divergence", "study", "report"):
        Path("data", folder).mkdir(parents=True)
    write_json(Path("data/network/network.json"), {"design": DESIGNED.to_json(), "origin": {}})
    save_tensors(Path("data/network/network.safetensors"), build(DESIGNED).state_dict())
    for place in ("embeddings", "divergence"):
        np.save(f"data/{place}/class_names.npy", np.array(["a", "b", "c"]))
    np.save("data/embeddings/features.npy", np.ones((6, 4)))
    np.save("data/embeddings/labels.npy", np.array([0, 1, 2] * 2))
    np.save("data/divergence/matrix.npy", np.ones((3, 3)))
    np.save("data/divergence/plane.npy", np.ones((3, 5)))
    write_json(Path("data/divergence/divergence.json"), {"name": "pca-gaussian"})
    write_json(Path("data/subsets.json"), [asdict(SUBSET)])
    rows = pd.DataFrame([scores("random-1", "original", "float"), scores("random-1", "quantized", "gpfq")])
    rows.to_csv("data/study/measurements.csv", index=False)
    write_json(CELL / "measurement.json", dict.fromkeys((*ALWAYS, "compression"), 3.0))
    write_json(CELL / "seconds.json", 3.5)
    layer = {
        "layer": "conv",
        "bits": 3,
        "levels": 7,
        "weights": 9,
        "sparsity_percent": 1.0,
        "relative_error": 0.1,
    }
    write_json(CELL / "layers.json", [layer])


# The files that stages write, each with what reads it.
READERS: dict[str, Callable[[], object]] = {
    "data/network/network.json": read_design,
    "data/network/network.safetensors": load_network,
    "data/embeddings/features.npy": read_embeddings,
    "data/embeddings/labels.npy": read_embeddings,
    "data/embeddings/class_names.npy": read_embeddings,
    "data/divergence/matrix.npy": read_divergence,
    "data/divergence/class_names.npy": read_divergence,
    "data/divergence/plane.npy": lambda: read_plane(3),
    "data/divergence/divergence.json": read_name,
    "data/subsets.json": read_subsets,
    "data/study/measurements.csv": read_measurements,
    ".laq/cells/0f/measurement.json": lambda: read_measurement(CELL),
    ".laq/cells/0f/seconds.json": lambda: read_seconds(CELL),
    ".laq/cells/0f/layers.json": lambda: layer_rows(Cell(SUBSET, "original"), CELL),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "zeros": lambda whole: bytes(len(whole)),
    "random": lambda whole: random.Random(0).randbytes(len(whole)),  # noqa: S311 (nothing is kept secret)
    "another kind": lambda _: b"PK\x03\x04",
    **{
        text: lambda _, text=text: text.encode()
        for text in ("{}", "[3]", "[{}]", "null", '"a"', "{", "[" * 9999)
    },  # type: ignore[misc]
}


@pytest.mark.parametrize("path", READERS)
def test_a_damaged_file_between_stages_is_told_in_a_line_that_names_it(data: Path, path: str) -> None:
    READERS[path]()
    whole = Path(path).read_bytes()
    for damage in DAMAGES.values():
        Path(path).write_bytes(damage(whole))
        with pytest.raises(LaqError) as raised:
            READERS[path]()
        line = str(raised.value)
        assert line.startswith(f"{path}: ")
        assert len(line.splitlines()) == 1
        assert len(line) < 400


def damaged(path: str, content: Any) -> None:
    """Put something else into a whole file of one of these kinds."""
    if path.endswith(".json"):
        write_json(Path(path), content)
    elif path.endswith(".npy"):
        np.save(path, content)
    elif path.endswith(".safetensors"):
        save_tensors(Path(path), content)
    else:
        content(pd.read_csv(path)).to_csv(path, index=False)


# A key of what a stage reads, and what the stage says of it.
IN_STAGES: list[tuple[str, Any, str]] = [
    ("divergence.components", 5, "divergence.components: found 5; must be at most 4, of 6 images with 4 features"),
    ("divergence.given", {"m": {"path": "m.npy", "sha256": "0" * 64}}, "divergence.given.m: m.npy: No such file or directory; name a file from the project's folder"),
    ("subsets.sizes", [4], "subsets.sizes: 4 classes wanted, there are 3"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "line"), IN_STAGES, ids=[key for key, *_ in IN_STAGES])
def test_what_a_stage_refuses_is_told_with_file_and_study(
    data: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, line: str
) -> None:
    monkeypatch.setattr("laq.cli.recording", lambda *_: nullcontext())
    write_params(data, {"study": "glyphs", "glyphs": with_key(key, value)})
    assert told(key.partition(".")[0]) == [f"params.yaml: glyphs.{line}"]


MAKE = "run `dvc repro` (or `make repro`) to make it"
CELL_AGAIN = f"remove the folder {CELL} and run the command again"
WHOLE = asdict(SUBSET)
DIFFERENT = "random-1: classes must be two or more different ones, each with its name"
FEATURES, LABELS, MATRIX = (
    f"data/{n}.npy" for n in ("embeddings/features", "embeddings/labels", "divergence/matrix")
)
SUBSETS, TABLE = "data/subsets.json", "data/study/measurements.csv"
# A file, what is in it instead, and what is said of it.
CONTENTS: list[tuple[str, Any, str]] = [
    (SUBSETS, {}, f"found {{}}; must be a valid array; {MAKE}"),
    (SUBSETS, [], f"found []; must hold one or more subsets; {MAKE}"),
    (SUBSETS, [{}], f"0: name: missing; {MAKE}"),
    (SUBSETS, [{**WHOLE, "classes": [0, "2"]}], f"0: classes: 1: found '2'; must be a valid integer; {MAKE}"),
    (SUBSETS, [{**WHOLE, "classes": [0, 0]}], DIFFERENT),
    (SUBSETS, [{**WHOLE, "classes": [-1, 0]}], DIFFERENT),
    (SUBSETS, [{**WHOLE, "classes": [0]}], DIFFERENT),
    (SUBSETS, [{**WHOLE, "class_names": ["a"]}], DIFFERENT),
    (SUBSETS, [WHOLE, WHOLE], "random-1: must stand but once"),
    (SUBSETS, [{**WHOLE, "name": "../x"}], "name: found '../x'; must be letters, digits, - and _"),
    (SUBSETS, [{**WHOLE, "mean_divergence": float("nan")}], "random-1: divergences must be finite numbers"),
    (MATRIX, np.ones((3, 4)), f"found float64 of shape (3, 4); must be finite numbers of shape (3, 3); {MAKE}"),
    (MATRIX, np.ones((3, 3), int), f"found int64 of shape (3, 3); must be finite numbers of shape (3, 3); {MAKE}"),
    (MATRIX, np.full((3, 3), np.nan), f"found numbers that are not finite; must be finite numbers; {MAKE}"),
    (FEATURES, np.ones((0, 4)), f"found float64 of shape (0, 4); must be finite numbers of shape (any, any); {MAKE}"),
    (LABELS, np.zeros(6), f"found float64 of shape (6,); must be whole numbers of shape (6); {MAKE}"),
    (LABELS, np.full(6, 3), "found classes 3 to 3; must be from 0 to 2; run `dvc repro`"),
    ("data/network/network.json", {"design": {}}, f"design: architecture: missing; {MAKE}"),
    ("data/network/network.safetensors", {"x": torch.ones(1)}, "weights of another network than network.architecture: "),
    ("data/divergence/divergence.json", {"name": 3}, f"name: found 3; must be a valid string; {MAKE}"),
    (TABLE, lambda table: table[:0], f"has no rows; {MAKE}"),
    (TABLE, lambda table: table.drop(columns="variant"), f"has no column variant; {MAKE}"),
    (TABLE, lambda table: table.assign(variant=None), f"variant: found nan; must be a text; {MAKE}"),
    (TABLE, lambda table: table.assign(mean_bits="x"), f"mean_bits: found 'x'; must be a finite number; {MAKE}"),
    (TABLE, lambda table: table.assign(mean_bits=[3, None]), f"mean_bits: found nan; must be a finite number; {MAKE}"),
    (TABLE, lambda table: table.assign(levels="x"), "not a whole CSV table ("),
    (TABLE, lambda table: table.assign(cell="x"), f"cell x stands twice; each must but once; {MAKE}"),
    (f"{CELL}/measurement.json", {"mean_bits": "3"}, f"top1_all_percent: found None; must be a number; {CELL_AGAIN}"),
    (f"{CELL}/measurement.json", {"mean_bits": [3]}, "mean_bits: "),
    (f"{CELL}/seconds.json", "3", f"found '3'; must be a valid number; {CELL_AGAIN}"),
    (f"{CELL}/layers.json", {}, f"found {{}}; must be a valid array; {CELL_AGAIN}"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "content", "line"), CONTENTS, ids=[f"{p}={t[:30]}" for p, _, t in CONTENTS])
def test_a_file_between_stages_that_holds_something_else_is_told(
    data: Path, path: str, content: Any, line: str
) -> None:
    damaged(path, content)
    with pytest.raises(LaqError, match=f"^{re.escape(path)}: .*{re.escape(line)}"):
        READERS[path]()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"parameters": 3}', b"\xff"])
def test_a_damaged_record_of_provenance_is_told_in_a_line(data: Path, content: bytes) -> None:
    record = Path("data/provenance/dataset.json")
    for folder in (record.parent, DATASET):
        folder.mkdir()
    record.write_bytes(content)
    (line,) = told("network")
    assert line.startswith(f"{record}: not ")
    assert line.endswith(("run `dvc repro`", MAKE))


STAGES = "must be dataset, network, embeddings, divergence, subsets, finetune, study, report, track"
SEED_RANGE = "must be a whole number from 0 to 4294967295"
PERCENT = "must be a number at least 0, at most 100"
# A command, and what is said of it.
COMMANDS: list[tuple[str, str]] = [
    ("--nope", "No such option '--nope'; `main --help` says what is allowed"),
    ("quantise", "No such command 'quantise'. Did you mean 'quantize'?; `main --help` says what is allowed"),
    ("quantize --subst all", "No such option '--subst'. (Did you mean one of: '--bits', '--jobs', '--subset'?); `main quantize --help`"),
    ("quantize --subset", "Option '--subset' requires an argument; `main quantize --help` says what is allowed"),
    ("quantize --subset similr-1", "--subset: found 'similr-1'; must be all or the name of a subset of the study, such as random-1; did you mean similar-1?"),
    ("quantize --bits 1", f"'--bits': found '1'; {BITS}; `main quantize --help` says what is allowed"),
    ("quantize --method gptg", f"'--method': found 'gptg'; {METHODS}; did you mean gptq?; `main quantize --help`"),
    ("quantize --jobs 0", "'--jobs': found 0; must be a whole number above 0; `main quantize --help` says what is allowed"),
    ("study --jobs two", "'--jobs': found 'two'; must be a whole number above 0; `main study --help` says what is allowed"),
    ("study --jobs 1.5", "'--jobs': found 1.5; must be a whole number above 0; `main study --help` says what is allowed"),
    ("finetune now", "Got unexpected extra argument (now); `main finetune --help` says what is allowed"),
    ("pipeline stdy", f"STAGE: found 'stdy'; {STAGES}; did you mean study?"),
    ("advise", "--classes NAME,NAME,... or --subset NAME: give one of them, found none"),
    ("advise --subset similr-1", "--subset: found 'similr-1'; must be the name of a subset of the study, such as random-1; did you mean similar-1?"),
    ("advise --classes 1,2 --keep 101", f"'--keep': found 101; {PERCENT}; `main advise --help`"),
    ("advise --classes 1,2 --lose inf", f"'--lose': found inf; {PERCENT}; `main advise --help`"),
    ("verify", "Missing argument 'FOLDER...'; `main verify --help` says what is allowed"),
    ("verify nowhere", "nowhere/provenance.json: not found, and needed to measure the study again; name a folder as `laq report --publish FOLDER` wrote it"),
    ("verify params.yaml", "params.yaml/provenance.json: not found, and needed to measure the study again; name a folder as `laq report --publish FOLDER` wrote it"),
    ("verify nowhere --cells -1", "'--cells': found -1; must be a whole number of at least 0; `main verify --help`"),
    ("verify nowhere --seed 4294967296", f"'--seed': found 4294967296; {SEED_RANGE}; `main verify --help`"),
    ("report --publish params.yaml", "'--publish': Directory 'params.yaml' is a file; `main report --help` says what is allowed"),
    ("predecessor nowhere.csv", "nowhere.csv: not found; give a CSV log of the predecessor's"),
    ("predecessor .", ".: not a CSV table ("),
    ("compare --third x", "No such option '--third'; `main compare --help` says what is allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "line"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_an_option_that_is_wrong_is_told_in_a_line(project: Path, command: str, line: str) -> None:
    (found,) = told(*command.split())
    assert found.startswith(line)


RESTORE = "`git checkout dvc.yaml` brings back the project's own"
PIPELINES = [
    ("", "found None; must be a valid dictionary"),
    ("[1]", "found [1]; must be a valid dictionary"),
    ("{}", "stages: missing"),
    ("stages:", "stages: found None; must be a valid dictionary"),
    ("stages: [1]", "stages: found [1]; must be a valid dictionary"),
    ("stages: {network: x}", "stages: network: found 'x'; must be a valid dictionary"),
    ("stages: {network: {deps: 3}}", "stages: network: deps: found 3; must be a valid list"),
    ("stages: {dataset: {}}", "stages: network: missing"),
    ("stages: [", "not YAML ("),
    ("\x00", "not YAML ("),
]


@pytest.mark.parametrize(("text", "line"), PIPELINES, ids=[text for text, _ in PIPELINES])
def test_a_pipeline_that_is_none_is_told_in_a_line(project: Path, text: str, line: str) -> None:
    Path("dvc.yaml").write_text(text, encoding="utf-8")
    (found,) = told("network")
    assert found.startswith(f"dvc.yaml: {line}")
    assert "not YAML" in line or found.endswith(RESTORE)


def replaced_folder(path: Path) -> None:
    with replacing_folder(path) as folder:
        (folder / "w").touch()


# What stands where a command writes.
IN_THE_WAY = {
    "data/subsets.json": (Path.mkdir, lambda path: write_json(path, []), "Is a directory"),
    "data/network": (Path.touch, replaced_folder, "Not a directory"),
}


@pytest.mark.parametrize("path", IN_THE_WAY)
def test_what_stands_in_the_way_of_a_result_is_named(project: Path, path: str) -> None:
    put, write, reason = IN_THE_WAY[path]
    Path("data").mkdir()
    put(Path(path))
    with pytest.raises(OSError, match=reason) as caught:
        write(Path(path))
    assert str(caught.value.filename) == path
    assert [str(file) for file in Path("data").iterdir()] == [path]
