"""Which images choose and which report, by what the dataset has and what the network has learned from."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laq.advise.selection import select
from laq.dataset.layout import Description, write_manifest, write_split
from laq.errors import LaqError
from laq.params import Params, load_params
from laq.paths import DATASET
from laq.pictures import Preprocessing
from laq.sections.network import Transfer
from laq.subsets.subset import Subset
from tests.conftest import ROOT

SUBSET = Subset("asked", "asked", (0, 2), ("a", "c"), 2.0, 1.0, 1.5, 1.5)
TRAINED_HERE: dict[str, Any] = {}
FROM_ELSEWHERE = {"source": "pretrained"}
NEW_HEAD = {"source": "pretrained", "transfer": Transfer()}
TRANSFERRED = {
    "source": "pretrained",
    "transfer": Transfer(training=load_params(ROOT / "params.yaml").finetune),
}
CHOSE = "the epoch of the network's training was chosen by the validation images"


def params(network: dict[str, Any], **advise: Any) -> Params:
    read = load_params(ROOT / "params.yaml")
    return read.model_copy(
        update={
            "network": read.network.model_copy(update=network),
            "advise": read.advise.model_copy(update=advise),
        }
    )


@pytest.fixture
def images(project: Path, request: pytest.FixtureRequest) -> None:
    """Three classes with ten test images each and, if a test asks for them, four of validation."""
    DATASET.mkdir(parents=True)
    for split, count in (("train", 2), ("test", 10), *([("validation", 4)] if request.param else [])):
        labels = np.tile(np.arange(3), count).tolist()
        write_split(DATASET, split, [np.zeros((len(labels), 3, 8, 8), np.uint8)], labels)  # type: ignore[arg-type]
    write_manifest(DATASET, "made up", Description("abc", Preprocessing(8)))


@pytest.mark.parametrize("images", [True], indirect=True)
@pytest.mark.parametrize(
    ("network", "asked", "split", "why"),
    [
        (TRAINED_HERE, "auto", "validation", ""),
        (TRAINED_HERE, "split", "test", ""),
        (
            FROM_ELSEWHERE,
            "auto",
            "test",
            "because the network comes trained, perhaps on the validation images",
        ),
        (FROM_ELSEWHERE, "validation", "validation", ""),
        (NEW_HEAD, "auto", "validation", ""),
        (TRANSFERRED, "auto", "test", f"because {CHOSE}"),
    ],
)
@pytest.mark.usefixtures("images")
def test_validation_images_choose_where_nothing_was_learned_from_them(
    network: dict[str, Any], asked: str, split: str, why: str
) -> None:
    found = select(params(network, selection=asked), SUBSET)
    assert found.split == split
    assert (found.n, len(found.report)) == ((8, 20) if split == "validation" else (10, 10))
    assert why in found.told


@pytest.mark.parametrize("images", [False], indirect=True)
@pytest.mark.usefixtures("images")
def test_without_validation_images_the_test_images_are_shared_out() -> None:
    found = select(params(TRAINED_HERE, selection_share=0.7), SUBSET)
    assert (found.split, found.n) == ("test", 14)
    assert found.report.rows is not None
    # Rows among all test images, of the subset's classes; no image does both.
    own = np.flatnonzero(np.tile([True, False, True], 10))
    assert not set(own[found.rows]) & set(found.report.rows.tolist())
    assert set(own[found.rows]) | set(found.report.rows.tolist()) == set(own)
    assert found.told == (
        "Of the 20 test images of these classes 14 chose the network and the other 6 report on it, "
        "because the dataset has no validation images."
    )
    assert (
        select(params(TRAINED_HERE, selection_share=0.7, selection_seed=1), SUBSET).rows != found.rows
    ).any()


@pytest.mark.parametrize(
    ("images", "network", "told"),
    [
        (False, TRAINED_HERE, "the dataset has no validation images; must be split or auto"),
        (True, TRANSFERRED, f"{CHOSE}; must be split or auto"),
    ],
    indirect=["images"],
)
@pytest.mark.usefixtures("images")
def test_validation_images_that_must_not_choose_are_refused(network: dict[str, Any], told: str) -> None:
    with pytest.raises(LaqError, match=re.escape(f"advise.selection: found validation, but {told}")):
        select(params(network, selection="validation"), SUBSET)
