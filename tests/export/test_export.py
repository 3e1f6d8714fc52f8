"""A network for a subset as an ONNX file: what it holds, what it computes, and what `laq run` says with it."""

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image

from laq import machine
from laq.dataset import read_images
from laq.dataset.images import ImageSet
from laq.export import _scored
from laq.export import restricted as room
from laq.export.file import write_file
from laq.export.latency import latency
from laq.export.restricted import RestrictedNetworks, restrict
from laq.export.scores import _OVERFLOW, _TIES, _UNKNOWN, Percentages, RuntimeScores, _reason, scores
from laq.network import predict
from laq.params import Params, load_params
from laq.quantization import Recipe
from laq.run import PREFIX, OnnxClassifier, read_about, write_about
from laq.run.runtime import logits, open_file
from laq.sections.commands import Export
from laq.serving import SubsetClassifier
from laq.study.cells import plan
from laq.study.inputs import StudyInputs
from laq.subsets.subset import Subset, read_subsets
from laq.track.onnx_models import log_onnx
from laq.track.store import Store
from tests.project import laq

pytestmark = pytest.mark.usefixtures("preloaded")
NAME = "similar-1"


@dataclass(frozen=True)
class Made:
    """An exported file with what the command said of it, and the same networks in torch."""

    file: Path
    said: list[str]
    params: Params
    subset: Subset
    networks: RestrictedNetworks
    images: ImageSet


@pytest.fixture(scope="module")
def made(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    file = tmp_path_factory.mktemp("export") / "new" / "small.onnx"
    told = laq(clone, "export", "--subset", NAME, "--out", str(file)).splitlines()
    said = [line for line in told if not line.startswith("laq: ")]  # which goes to standard error
    with chdir(clone):
        params = load_params()
        subset = next(s for s in read_subsets() if s.name == NAME)
        networks = restrict(params.study, subset, params.export)
        return Made(file, said, params, subset, networks, read_images(Path("data/dataset"), "test"))


@pytest.fixture
def picture(made: Made, tmp_path: Path) -> Path:
    """A photograph of one of the classes, larger than the network's images and not square."""
    pixels = made.images.select(made.subset.classes).images[0].permute(1, 2, 0).numpy()
    path = tmp_path / "a picture.png"
    Image.fromarray(pixels).resize((90, 70)).save(path)
    return path


def test_the_command_says_what_the_file_is_worth(made: Made) -> None:
    size, classes, bits, why, _, floats, top1, images, *_, time, conditions = made.said
    assert [path.name for path in made.file.parent.iterdir()] == ["small.onnx"]
    assert size.startswith(f"file       {made.file}, {made.file.stat().st_size / 1024:.1f} KiB; in float ")
    names = [made.images.class_names[number] for number in sorted(made.subset.classes)]
    assert classes == f"classes    {', '.join(names)}"
    assert bits == "bits       weights of 7 by gpfq, activations of 8"
    assert why.strip() == "asked for 8; a weight gets 7 bits at most, because more may overflow on"
    assert floats == "on floats  nothing"
    assert " % as onnxruntime computes it, " in top1
    assert images.strip() == "on 6 test images of these classes"
    assert time.startswith("time       ")
    assert " times as fast as the float network's file (" in time
    assert conditions.strip().startswith("medians and quartiles of 55 runs in onnxruntime; 1 thread, ")


def test_where_the_runtime_differs_from_the_simulation_the_reason_is_told() -> None:
    alike = RuntimeScores(1000, Percentages(90.0, 90.1, 91.0), None, 3, "because")
    assert len(list(_scored(alike))) == 2
    *_, told, reason = _scored(replace(alike, top1=Percentages(89.9, 90.1, 91.0)))
    assert told == ("", "3 images get another class than in the simulation:")
    assert reason == ("", "because")


def test_where_classes_have_different_numbers_of_images_balanced_top1_stands_beside(made: Made) -> None:
    images = made.images.select(made.subset.classes)
    assert scores(made.file, made.networks, images, vnni=False).balanced is None
    first = images.labels == images.labels[0]
    fewer = images.take((~first | (first.cumsum(0) < 2)).nonzero()[:, 0])  # one image of the first class
    found = scores(made.file, made.networks, fewer, vnni=False)
    right = predict(made.networks.original, fewer).argmax(1) == made.networks.outputs_of(fewer.labels)
    shares = [float(right[fewer.labels == number].double().mean()) for number in made.subset.classes]
    assert found.balanced is not None
    assert found.balanced.original == pytest.approx(100 * sum(shares) / len(shares))
    assert found.balanced.original != pytest.approx(found.top1.original)
    assert [name for name, _ in _scored(found)][:2] == ["top-1", "balanced"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", ""), "--out: found the folder .; must be a file, such as network.onnx"),
        (("--out", "data"), "'--out': File 'data' is a directory"),
        (("--threads", "0"), "'--threads': found 0; must be a whole number from 1 to 1024"),
        (("--threads", "99999999999"), "must be a whole number from 1 to 1024"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(
    clone: Path, options: tuple[str, ...], told: str
) -> None:
    assert told in laq(clone, "export", "--subset", NAME, *options, code=2)


def test_the_reason_why_the_runtime_differs_is_no_stronger_than_what_is_known(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = made.networks.quantized
    assert _reason(rounded, 0.01, vnni=False) == _TIES
    assert _reason(rounded, 0.4, vnni=False) == _UNKNOWN
    monkeypatch.setattr(sys.modules["laq.export.scores"], "adds_in_32_bits", lambda: False)
    assert _reason(rounded, 0.01, vnni=True) == _TIES  # 7 bits overflow nowhere
    large = replace(rounded, layers=tuple(replace(layer, bits=8) for layer in rounded.layers))
    assert _reason(large, 0.01, vnni=True) == _OVERFLOW
    in_float = replace(rounded, recipe=replace(rounded.recipe, activations=None))
    assert _reason(in_float, 0.01, vnni=False) == _UNKNOWN


def test_the_file_says_what_it_is(made: Made) -> None:
    about = OnnxClassifier(made.file).about
    design = made.networks.original.design
    names = [made.images.class_names[number] for number in sorted(made.subset.classes)]
    assert list(about.classes) == names
    assert about.preprocessing == design.preprocessing == made.images.preprocessing
    assert (about.input_size, about.mean, about.std) == (design.input_size, design.mean, design.std)
    assert (about.mean_bits, about.storage, about.vnni) == (7, "int8", False)
    assert Recipe.from_json(about.recipe) == made.networks.quantized.recipe
    assert (about.dataset, about.subset, len(about.commit)) == ("glyphs", NAME, 40)


def test_the_same_order_gives_the_same_bytes(made: Made, clone: Path, tmp_path: Path) -> None:
    with chdir(clone):
        write_file(tmp_path / "again.onnx", made.networks.quantized, made.subset, made.params.export)
    assert (tmp_path / "again.onnx").read_bytes() == made.file.read_bytes()


def test_what_a_file_is_told_of_itself_is_read_back(made: Made, tmp_path: Path) -> None:
    path = shutil.copy(made.file, tmp_path / "copy.onnx")
    told = OnnxClassifier(path).about
    other = replace(told, classes=("ä", 'quoted "b"', "c"), subset="asked", vnni=True, commit="")
    write_about(path, other)
    assert OnnxClassifier(path).about == other
    held = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert {name.removeprefix(PREFIX) for name in held} == set(asdict(other))
    assert read_about(held, path) == other


def test_the_images_and_the_recipe_are_those_that_the_study_would_take(made: Made, clone: Path) -> None:
    with chdir(clone):
        grid = made.params.study.restricted(bits=(7,), methods=("gpfq",), activations=8)
        own = room.as_study(made.params.study, made.params.export)
        (cell,) = [c for c in plan([made.subset], grid) if c.base == "original" and c.recipe]
        images = StudyInputs(own).calibration_images(plan([made.subset], own)[-1])
        assert torch.equal(images, StudyInputs(grid).calibration_images(cell))
    assert made.networks.quantized.recipe == cell.recipe


def test_onnxruntime_computes_with_the_file_what_torch_simulates(made: Made) -> None:
    classifier, images = OnnxClassifier(made.file), made.images.images
    found = logits(classifier.session, images.numpy())
    truth = predict(made.networks.quantized.network, made.images).numpy()
    assert np.abs(found - truth).max() < 0.02 * np.abs(truth).max()
    assert (found.argmax(1) == truth.argmax(1)).mean() > 0.99
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(made.file.with_suffix(".optimized"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(made.file, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert operators["QLinearConv"] == 9
    assert "Conv" not in operators
    Path(options.optimized_model_filepath).unlink()


def test_a_picture_is_the_class_that_serving_says(made: Made, picture: Path, tmp_path: Path) -> None:
    with chdir(tmp_path):  # which is no project
        (answer,) = json.loads(laq(tmp_path, "run", str(made.file), str(picture), "--json"))
        line = laq(tmp_path, "run", str(made.file), str(picture))
    classes = dict(enumerate(OnnxClassifier(made.file).about.classes))
    network = made.networks.quantized.network
    network.design = made.networks.original.design
    served = SubsetClassifier(network, classes)  # type: ignore[arg-type]
    row = served.predict(pd.DataFrame({"image": [picture.read_bytes()]})).iloc[0]
    assert (answer["picture"], answer["class"]) == (str(picture), row["class"])
    assert answer["probabilities"] == pytest.approx(row["probabilities"], abs=0.01)
    assert line.split("\t")[:2] == [
        str(picture),
        f"{row['class']} {100 * answer['probabilities'][row['class']]:.1f} %",
    ]
    assert len(line.rstrip("\n").split("\t")) == 4


def refused(folder: Path, *command: str) -> list[str]:
    """What ``laq run`` says of bad input: lines that each name the fault."""
    lines = laq(folder, "run", *command, code=2).splitlines()
    assert all(line.startswith("laq: ") and len(line) < 300 for line in lines)
    return [line.removeprefix("laq: ") for line in lines]


def other_metadata(**changes: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        held = {prop.key: prop.value for prop in model.metadata_props}
        onnx.helper.set_model_props(model, held | {f"{PREFIX}{name}": text for name, text in changes.items()})
        return model.SerializeToString()

    return change


def without_metadata(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


CANNOT = f"onnxruntime {onnxruntime.__version__} cannot read it ("
FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", CANNOT),
    "cut": (lambda whole: whole[: len(whole) // 2], CANNOT),
    "cut at the end": (lambda whole: whole[:-3], CANNOT),
    "zeros": (lambda whole: bytes(len(whole)), CANNOT),
    "random": (lambda _: random.Random(0).randbytes(999), CANNOT),  # noqa: S311 (nothing is kept secret)
    "text": (lambda _: b"a text, and no network", CANNOT),
    "another's": (without_metadata, "has no metadata of laq, so that its classes are unknown"),
    "classes that are none": (other_metadata(classes="3"), "metadata of laq: classes: found 3; must be a valid"),
    "no JSON": (other_metadata(classes="]"), "metadata of laq: not JSON ("),
    "too few classes": (other_metadata(classes='["a"]'), "its graph is not that of its metadata, 32 pixels a side and 1"),
    "another size": (other_metadata(preprocessing='{"size": 8}'), "its graph is not that of its metadata, 8 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_none_of_ours_is_told_in_a_line(
    made: Made, picture: Path, tmp_path: Path, kind: str
) -> None:
    change, told = FILES[kind]
    (tmp_path / "bad.onnx").write_bytes(change(made.file.read_bytes()))
    (line,) = refused(tmp_path, "bad.onnx", picture.name)
    assert line.startswith(f"bad.onnx: {told}")
    assert line.endswith("; give a whole file that `laq export` wrote")


def test_pictures_that_cannot_be_read_are_told_a_line_each(made: Made, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:60])
    (tmp_path / "folder").mkdir()
    names = ("missing.png", picture.name, "cut.png", "folder")
    assert refused(tmp_path, str(made.file), *names) == [
        "missing.png: not found; name a picture",
        "cut.png: found a picture that is broken or cut off (image file is truncated); send it whole",
        "folder: Is a directory; name a picture",
    ]
    assert refused(tmp_path, "missing.onnx", picture.name) == [
        "missing.onnx: not found; give a whole file that `laq export` wrote"
    ]


def test_a_runtime_that_is_missing_or_too_old_is_told(
    made: Made, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ModuleType("onnxruntime")
    old.__version__ = "1.19.2"  # type: ignore[attr-defined]
    for module, told in (
        (None, "ONNX files are run by onnxruntime, which is not installed: `pip install 'laq[onnx]'`"),
        (old, "onnxruntime: found version 1.19.2; must be 1.20 or later: `pip install 'laq[onnx]'`"),
    ):
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        assert refused(tmp_path, str(made.file), picture.name) == [told]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("", "--classes NAME,NAME,... or --subset NAME: give one of them, found none"),
        ("--subset similr-1", "--subset: found 'similr-1'; must be the name of a subset of the study"),
        ("--classes nothing,circle", "--classes: unknown class 'nothing'; "),
        (
            "--subset similar-1 --activations 9",
            "'--activations': found 9; must be a mean of these such as auto:6, or a whole number from 2 to 8",
        ),
        ("--subset similar-1 --storage int3", "'--storage': 'int3' is not one of 'auto', 'int8', 'int4'"),
    ],
)
def test_orders_that_cannot_be_met_are_told_and_write_nothing(
    clone: Path, tmp_path: Path, command: str, told: str
) -> None:
    said = laq(clone, "export", *command.split(), "--out", str(tmp_path / "x.onnx"), code=2)
    assert said.startswith(f"laq: {told}")
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_run_that_mlflow_started_gets_the_file(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr("laq.export.run", lambda *_: "told")
    monkeypatch.setattr("laq.track.store.Store.__init__", lambda _: None)
    monkeypatch.setattr("laq.track.store.Store.annotate", lambda _, *what: sent.append(what))
    monkeypatch.setattr("laq.track.onnx_models.log_onnx", lambda _, path: sent.append(path))
    order = ("export", "--subset", NAME, "--out", str(tmp_path / "x.onnx"))
    assert laq(clone, *order).endswith("\ntold\n")
    assert not sent
    laq(clone, *order, MLFLOW_RUN_ID="1")
    file = tmp_path / "x.onnx"
    assert sent == [("```text\ntold\n```", {"laq.level": "export"}, [file]), file]


def test_the_run_keeps_the_file_as_a_model_that_mlflow_serves_and_the_registry_takes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("mine", (tmp_path / "artifacts").as_uri()))
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    log_onnx(Store(), made.file)
    (output,) = client.get_run(run.info.run_id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    client.create_registered_model("small")
    version = client.create_model_version("small", logged.artifact_location, model_id=logged.model_id)
    client.set_registered_model_alias("small", "champion", version.version)
    model = mlflow.pyfunc.load_model("models:/small@champion")
    assert model.metadata.flavors.keys() == {"onnx", "python_function"}
    assert model.metadata.metadata["laq.classes"] == list(made.subset.names_in_order)
    images = made.images.select(made.subset.classes).images[:3].numpy()
    truth = logits(open_file(made.file), images)
    assert np.array_equal(model.predict({"pixels": images})["logits"], truth)
    # What a server is sent and sends, as JSON.
    sent = json.dumps({"inputs": {"pixels": images.tolist()}})
    answer = invocations(sent, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    np.testing.assert_allclose(json.loads(answer.response)["predictions"]["logits"], truth, rtol=1e-6)


def test_weights_keep_the_bits_that_cannot_overflow_or_all_if_asked(made: Made, clone: Path) -> None:
    with chdir(clone):
        mixed = Export(bits="3 last:8")
        for asked, bits, capped in (
            (mixed, {3, 7}, True),
            (mixed.model_copy(update={"vnni": True}), {3, 8}, False),
            (mixed.model_copy(update={"activations": None}), {3, 8}, False),
            (Export(bits=4, method="rtn"), {4}, False),
        ):
            found = restrict(made.params.study, made.subset, asked)
            assert {layer.bits for layer in found.quantized.layers} == bits
            assert found.capped == capped


def test_a_budget_of_activations_is_spent_for_the_subset(made: Made, clone: Path) -> None:
    with chdir(clone):
        asked = Export(bits="auto:4", activations="auto:5", method="rtn")
        recipe = restrict(made.params.study, made.subset, asked).quantized.recipe
    assert isinstance(recipe.bits, dict)
    assert isinstance(recipe.activations, dict)
    assert set(recipe.activations.values()) <= {2, 3, 4, 5, 6, 8}


@pytest.mark.parametrize(
    ("kind", "line", "found"),
    [
        ("x86_64", "flags\t\t: fpu sse2 avx512f avx512_vnni", True),
        ("x86_64", "flags\t\t: avx2 avx_vnni", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512f", False),
        ("aarch64", "Features\t: fp asimd", True),
        ("arm64", "", True),
    ],
)
def test_processors_that_add_in_32_bits_are_known_by_their_kind_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: str, found: object
) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: kind)
    (tmp_path / "cpuinfo").write_text(f"model name\t: some\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.adds_in_32_bits() is found


def test_the_time_is_that_of_runs_in_turns(made: Made) -> None:
    image = made.images.images[:1].numpy()
    taken = latency(made.file, image, 1, beside=made.file)
    assert list(taken.milliseconds) == sorted(taken.milliseconds)
    assert taken.milliseconds[0] > 0
    assert taken.speedup is not None
    assert list(taken.speedup) == sorted(taken.speedup)
    assert latency(made.file, image).speedup is None
    assert (taken.runs, taken.threads) == (55, 1)
