"""The real CIFAR-100 with the committed weights: what the numbers must be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch

from laq import dataset, network
from laq.dataset import ImageSet, read_images
from laq.files import read_json
from laq.network import Classifier, evaluate, load_network
from laq.params import load_params
from laq.quantization import Recipe, quantize
from tests.conftest import CIFAR100, ROOT, needs
from tests.report.test_page import embedded

pytestmark = needs(CIFAR100)
PUBLISHED = ROOT / "results" / "cifar100"
CLASSES = (4, 30, 55, 72, 95, 1, 32, 67, 73, 91)  # aquatic mammals and fish


class CommittedStudy(NamedTuple):
    network: Classifier
    train: ImageSet
    test: ImageSet
    top1: float


@pytest.fixture(scope="module")
def study(cifar100: Path, tmp_path_factory: pytest.TempPathFactory) -> CommittedStudy:
    """The committed CIFAR-100 study's network, made by its stages, and the images."""
    folder = tmp_path_factory.mktemp("cifar100")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("study: glyphs", "study: cifar100", 1)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    (folder / "weights").symlink_to(ROOT / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dataset.FOLDER.parent.mkdir()
        dataset.FOLDER.symlink_to(cifar100)
        network.run(load_params().network)
        record = read_json(network.FOLDER / "network.json")
        images = (read_images(dataset.FOLDER, split) for split in ("train", "test"))
        return CommittedStudy(load_network(), *images, record["test_top1_percent"])


def test_the_committed_weights_score_what_they_are_known_to(study: CommittedStudy) -> None:
    assert study.top1 == pytest.approx(67.32, abs=0.005)
    scores = evaluate(study.network, study.test.sample(500, torch.Generator().manual_seed(0)), range(100))
    assert scores.top1_sub == scores.top1_all


def test_sixteen_bits_per_channel_lose_nothing(study: CommittedStudy) -> None:
    trained, train, test, _ = study
    images = train.select(CLASSES).sample(64, torch.Generator().manual_seed(0)).images
    result = quantize(trained, images, Recipe(bits=16, retain_rate=0.25))
    before, after = evaluate(trained, test, CLASSES), evaluate(result.network, test, CLASSES)
    assert after.top1_all == pytest.approx(before.top1_all, abs=0.15)
    assert after.top1_sub == pytest.approx(before.top1_sub, abs=0.15)
    assert max(layer.relative_error for layer in result.layers) < 1e-3


def test_gpfq_keeps_more_than_round_to_nearest_at_three_bits(
    study: CommittedStudy,
) -> None:
    trained, train, test, _ = study
    images = train.select(CLASSES).sample(128, torch.Generator().manual_seed(0)).images
    recipe = Recipe(bits=3, retain_rate=0.25)
    kept, rounded = (
        evaluate(quantize(trained, images, replace(recipe, method=method)).network, test, CLASSES)
        for method in ("gpfq", "rtn")
    )
    assert kept.top1_sub > rounded.top1_sub + 1


def test_the_committed_results_are_of_cifar100() -> None:
    table = pd.read_csv(PUBLISHED / "measurements.csv.gz", dtype={"bits": str})
    assert set(table.dataset) == {"cifar100"}
    assert table.subset.nunique() >= 10
    assert {"2", "3", "4", "8"} <= set(table.bits)
    assert (PUBLISHED / "provenance.json").exists()


@pytest.mark.parametrize("calibration", ["subset", "all"])
def test_a_published_cell_comes_out_again(study: CommittedStudy, calibration: str) -> None:
    trained, train, test, _ = study
    subsets = json.loads(embedded((PUBLISHED / "page.html").read_text(encoding="utf-8")))["subsets"]
    classes = subsets["classes"][subsets["name"].index("random5-1")]
    pool = train.select(classes) if calibration == "subset" else train
    images = pool.sample(128, torch.Generator().manual_seed(0)).images
    result = quantize(trained, images, Recipe(bits=2, alphabet="twos_complement", radius="error"))
    cell = f"random5-1.quantized.gpfq-2bit.{calibration}-0"
    row = pd.read_csv(PUBLISHED / "measurements.csv.gz", index_col="cell").loc[cell]
    # Other processors round otherwise, so an image or a code may fall to another side.
    assert evaluate(result.network, test, classes).top1_sub == pytest.approx(row.top1_sub_percent, abs=0.5)
    assert 100 * result.sparsity == pytest.approx(row.sparsity_percent, abs=0.02)
    assert result.relative_error == pytest.approx(row.relative_error_logits, rel=1e-3)
