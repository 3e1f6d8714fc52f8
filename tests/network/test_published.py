"""Weights that are published beside results: those that the network's source does not give."""

import hashlib
from pathlib import Path

import pytest
import torch

from laq.architectures import make_body
from laq.dataset.images import ImageSet
from laq.errors import LaqError
from laq.files import project_root, write_json
from laq.network import make_network
from laq.network.published import publish_weights, restore_weights
from laq.network.weights import load_tensors, save_tensors
from laq.paths import DESIGN, NETWORK, WEIGHTS
from laq.sections.network import Network, Transfer
from tests.network.test_network import RECIPE
from tests.network.test_sources import GREY, code, from_file, images

__all__ = ["code"]


def made(params: Network, data: ImageSet) -> bytes:
    """Write the network as the stage does; returns its weights' file."""
    network, origin = make_network(params, data)
    NETWORK.mkdir(parents=True)
    save_tensors(NETWORK / WEIGHTS, network.state_dict())
    design = network.design.beside(NETWORK, project_root())
    write_json(NETWORK / DESIGN, {"design": design.to_json(), "origin": origin})
    return (NETWORK / WEIGHTS).read_bytes()


def restored(params: Network, published: Path) -> bytes:
    """The weights' file as it is made of what was published."""
    place = Path("again")
    place.mkdir()
    for file in NETWORK.iterdir():
        if file.name != WEIGHTS:
            (place / file.name).write_bytes(file.read_bytes())
    restore_weights(published, params, place)
    return (place / WEIGHTS).read_bytes()


def published_names(params: Network) -> set[str]:
    Path("out").mkdir()
    publish_weights(Path("out"), params)
    path = Path("out") / WEIGHTS
    return set(load_tensors(path)) if path.exists() else set()


def test_of_a_new_head_on_pretrained_features_the_head_is_published(code: Path) -> None:
    params = from_file("tiny", arguments={"outputs": 7}, transfer=Transfer())
    whole = made(params, images())
    assert published_names(params) == {"body.fc.weight", "body.fc.bias"}
    assert restored(params, Path("out")) == whole


def test_of_a_network_as_it_comes_nothing_is_published(code: Path) -> None:
    torch.save({"model": make_network(from_file("tiny"), images())[0].body.state_dict()}, "net.pt")
    sha256 = hashlib.sha256(Path("net.pt").read_bytes()).hexdigest()
    source = {"source": "file", "weights": "net.pt", "sha256": sha256}
    params = Network(architecture="python:net.py:tiny", **source, **GREY)
    whole = made(params, images())
    assert published_names(params) == set()
    assert restored(params, Path("out")) == whole


def test_of_a_checkpoint_of_the_zoo_nothing_is_published(project: Path) -> None:
    data = images()
    classes = len(data.class_names)
    save_tensors(Path("net.safetensors"), make_body("resnet8", {}, classes).state_dict())
    sha256 = hashlib.sha256(Path("net.safetensors").read_bytes()).hexdigest()
    source = {"source": "file", "weights": "net.safetensors", "sha256": sha256}
    params = Network(architecture="resnet8", **source, **GREY)
    whole = made(params, data)
    assert published_names(params) == set()
    assert restored(params, Path("out")) == whole


def test_of_a_network_that_was_trained_everything_is_published(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laq.network._checkpoint", lambda params: Path("unfinished.pt"))
    recipe = RECIPE.model_copy(update={"epochs": 0})
    params = Network(source="train", architecture="resnet8", training=recipe, **GREY)
    whole = made(params, images())
    assert published_names(params) == set(load_tensors(NETWORK / WEIGHTS))
    assert restored(params, Path("out")) == whole
    (Path("out") / WEIGHTS).unlink()
    with pytest.raises(LaqError, match=r"out/network.safetensors: not found; the study's network is in no"):
        restore_weights(Path("out"), params, Path("again"))
