"""Served models: what they take as pictures, and what loading them needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from laq.architectures import packages_of
from laq.errors import LaqError
from laq.serving import _load_pyfunc, read_picture
from laq.track.models import write_network
from tests.trees import CLASSES, network, png

RUBBISH: list[Any] = [
    "not a picture", b"rubbish", [[1, 2], [3, 4]], [[[300, 0, 0]]], [[["x"] * 3]], 7, None, [], [[[1, 2, 3], [4]]],
    np.zeros((0, 0, 3)), [[[float("nan")] * 3]], png(torch.zeros(3, 8, 8, dtype=torch.uint8))[:40],
]  # fmt: skip


@pytest.mark.parametrize("entry", RUBBISH, ids=range(len(RUBBISH)))
def test_what_is_no_picture_is_told_in_a_line(entry: Any) -> None:
    with pytest.raises(LaqError, match="^image: an entry must be a picture's bytes.*; found ") as caught:
        read_picture(entry)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_pictures_of_other_sizes_are_scaled_and_none_at_all_is_told(weights: Path, tmp_path: Path) -> None:
    write_network(tmp_path / "model", network(weights))
    model = _load_pyfunc(str(tmp_path / "model"))
    large = np.full((64, 48, 3), 200)
    (row,) = model.predict(pd.DataFrame({"image": [large]})).to_dict("records")
    assert row["class"] in CLASSES.values()
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert row["probability"] == max(row["probabilities"].values())
    with pytest.raises(LaqError, match="image: no picture"):
        model.predict(pd.DataFrame({"image": []}))


@pytest.mark.parametrize(
    ("architecture", "packages"),
    [("resnet20", ()), ("resnet18", ("torchvision",)), ("timm:resnet10t", ("timm", "torchvision"))],
)
def test_an_architecture_from_elsewhere_names_its_packages(
    architecture: str, packages: tuple[str, ...]
) -> None:
    assert packages_of(architecture) == packages
