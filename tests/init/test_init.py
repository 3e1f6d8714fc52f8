"""`laq init` says what pictures and a network are, and writes a study that runs as it stands."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from laq.files import read_json
from laq.params import load_params
from laq.provenance import is_watched
from tests.conftest import ROOT
from tests.dataset.test_folder import class_files, packed, put, split_files
from tests.project import laq

NETWORKS = """
import torch
from torch import nn


def tiny(outputs=2, pretrained=True):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(features, nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, outputs))


def wide():
    return tiny(outputs=7)


def nothing():
    return None
"""
STAGES = ("dataset", "network", "embeddings", "divergence", "subsets", "finetune", "study", "report")


@pytest.fixture
def shop(project: Path) -> Path:
    """The project's own parameters, with a folder of pictures and a file of networks beside them."""
    shutil.copy(ROOT / "params.yaml", project)
    put(project / "photos", split_files(train=6, test=2))
    (project / "own.py").write_text(NETWORKS, encoding="utf-8")
    return project


def init(folder: Path, *more: str, network: str = "python:own.py:tiny", code: int = 0) -> str:
    return laq(folder, "init", "--images", "photos", "--network", network, "--size", "16", *more, code=code)


def text_of(folder: Path) -> str:
    return (folder / "params.yaml").read_text(encoding="utf-8")


def test_what_was_there_stays_and_the_new_study_is_the_one_that_runs(shop: Path) -> None:
    before = text_of(shop)
    init(shop, "--name", "shop")
    after = text_of(shop)
    assert after.startswith(before.replace("study: glyphs", "study: shop", 1).rstrip())
    found = load_params()
    assert (found.name, found.dataset.options["path"]) == ("shop", "photos")
    assert is_watched(found.settings)
    assert "  - ${shop.dataset.path}" in (shop / "dvc.yaml").read_text(encoding="utf-8")
    assert not list(shop.glob(".laq-partial-*"))


# Once its features are there, a network of one's own is like any other.
@pytest.mark.parametrize(
    ("network", "stages"),
    [("resnet8", STAGES), ("python:own.py:wide", STAGES), ("python:own.py:tiny", STAGES[:3])],
)
def test_the_study_runs_as_it_stands(shop: Path, network: str, stages: tuple[str, ...]) -> None:
    init(shop, network=network)
    for stage in stages:
        laq(shop, stage)
    design = read_json(shop / "data/network/network.json")["design"]
    assert (design["classes"], design["input_size"]) == (2, 16)
    if "report" in stages:
        assert "| original | rtn | 3 |" in re.sub(" +", " ", (shop / "data/report/report.md").read_text())


def test_pictures_and_network_are_described(shop: Path) -> None:
    told = init(shop)
    assert "photos: 12 training and 4 test images of 2 classes\n" in told
    assert re.search(r"^hat +6 +2$", told, re.MULTILINE)
    assert "Sizes: 30 x 20 to 30 x 20 pixels, 30 x 20 in the middle; modes: 16 RGB. Images are 16 x" in told
    assert "python:own.py:tiny: 2 outputs, 2 layers that are quantized" in told
    assert re.search(r"^Not quantized: \S+: ", told, re.MULTILINE)
    assert re.search(
        r"^Its outputs stand for these classes: \d+\.\d % top-1 on 4 test images\.$", told, re.MULTILINE
    )
    assert "transfer" not in yaml.safe_load(text_of(shop))["own"]["network"]
    assert "Half of the pictures" not in told


def test_a_size_that_enlarges_pictures_is_told(shop: Path) -> None:
    told = init(shop, "--size", "32", "--dry-run")
    assert "a side of 20 pixels or less: --size 20 computes 2.6 times as fast.\n" in told


def test_a_network_of_other_classes_gets_a_new_head(shop: Path) -> None:
    assert "Its outputs stand for other classes" in init(shop, network="python:own.py:wide")
    assert load_params().network.transfer is not None


def test_a_network_without_weights_is_trained(shop: Path) -> None:
    assert "It comes without weights" in init(shop, network="resnet8")
    assert load_params().network.source == "train"


def test_classes_alone_are_split_and_broken_files_are_told_and_skipped(shop: Path) -> None:
    shutil.rmtree(shop / "photos")
    packed(shop / "photos", {**class_files(), "hat/half.png": b"\x89PNG"})
    told = init(shop)
    assert "16 training and 4 test images of 2 classes, split by seed 0\n" in told
    assert "1 files are no whole pictures and are skipped: hat/half.png: found " in told
    assert load_params().dataset.options["skip_broken"] is True


def test_a_dry_run_writes_nothing(shop: Path) -> None:
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    assert "Nothing was written; without --dry-run, params.yaml gets the study own." in init(
        shop, "--dry-run"
    )
    assert {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "network", "told"),
    [
        (
            ("--name", "glyphs"),
            "resnet8",
            "--name glyphs: params.yaml has a study of that name; choose another",
        ),
        (("--name", "a.b"), "resnet8", "--name: found 'a.b'; must be a name of at most 60 letters"),
        (("--images", "nowhere"), "resnet8", "dataset.path: "),
        ((), "resnet9", "network.architecture: found 'resnet9'; must be "),
        ((), "python:own.py:nothing", "python:own.py:nothing returns NoneType; must be a torch.nn.Module"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line_and_nothing_is_written(
    shop: Path, more: tuple[str, ...], network: str, told: str
) -> None:
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    said = init(shop, *more, network=network, code=2).splitlines()
    output = [line for line in said if line and "decode" not in line]
    assert len(output) == 1
    assert told in output[0]
    after = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    assert after == before
