"""Served models: what they take as pictures, what they refuse, and what loading them needs."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from laq.architectures import NetworkDesign, build, packages_of
from laq.errors import LaqError
from laq.serving import Limits, SubsetClassifier, load_classifier, read_entry
from laq.serving.pyfunc import RefusedRequest, ServedClassifier
from laq.track.models import write_network
from tests.pictures.files import encoded
from tests.trees import CLASSES, network, png

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
GREY = np.repeat(COLOURS[..., :1], 3, 2)
BLACK = np.zeros((8, 8, 3))
WANTED = "it must be a picture's bytes, these in Base64, or pixels 0..255 as (height, width, 3)"
RUBBISH: list[tuple[Any, str]] = [
    ("not a picture", "found text that is no Base64"),
    ("https://example.com/a.png", "found text that is no Base64"),
    ("data:image/png;base64,AAAA", "found text that is no Base64"),
    ("ä", "found text that is no Base64"),
    ("", "found no picture"),
    (base64.b64encode(b"rubbish").decode(), "found no picture"),
    (b"rubbish", "found no picture"),
    (b"", "found no picture"),
    (encoded(COLOURS)[:60], "broken or cut off"),
    (7, "found 7; "),
    (None, "found None; "),
    (True, "found True; "),
    (float("nan"), "found nan; "),
    ({"picture": "x" * 99}, "found {'picture': 'xxx"),
    (pd.Timestamp(0), "found "),
    ([], "numbers of shape (0,)"),
    ([[1, 2], [3, 4]], "numbers of shape (2, 2)"),
    (np.zeros((0, 0, 3)), "numbers of shape (0, 0, 3)"),
    (COLOURS.transpose(2, 0, 1), "numbers of shape (3, 8, 8)"),
    (COLOURS[None], "numbers of shape (1, 8, 8, 3)"),
    (np.dstack([COLOURS, COLOURS])[..., :4], "numbers of shape (8, 8, 4)"),
    ([[[1, 2, 3], [4]]], "lists of different lengths"),
    ([[["x"] * 3]], "lists with what is no number"),
    ([[["1"] * 3]], "lists with what is no number"),
    ([[[None] * 3]], "lists with what is no number"),
    ([[[True] * 3]], "lists with what is no number"),
    ([[[10**30] * 3]], "lists with what is no number"),
    ([[[1j] * 3]], "lists with what is no number"),
    ([[[300, 0, 0]]], "numbers from 0 to 300"),
    (COLOURS.astype(np.uint16) * 257, "numbers from "),
    ([[[0.0, -0.1, 5.0]]], "numbers from -0.1 to 5.0"),
    ([[[float("nan")] * 3]], "numbers from nan to nan"),
    ([[[float("inf"), 0.0, 0.0]]], "numbers from 0.0 to inf"),
    (COLOURS / 255, "floats all within 0..1, to be multiplied by 255"),
    (BLACK + 1.0, "floats all within 0..1"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "found"), RUBBISH, ids=range(len(RUBBISH)))
def test_what_is_no_picture_is_told_in_a_line(entry: Any, found: str) -> None:
    with pytest.raises(LaqError, match="^image 3 of 4: found ") as caught:
        read_entry(entry, "image 3 of 4")
    assert found in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (COLOURS, COLOURS),
        (COLOURS.tolist(), COLOURS),
        (COLOURS.astype(np.float32).tolist(), COLOURS),
        (COLOURS + np.float32(0.4) * (COLOURS < 255), COLOURS),  # rounded
        (COLOURS.astype(np.int64), COLOURS),
        (BLACK, BLACK),
        (BLACK.astype(np.uint8) + 1, BLACK + 1),  # whole numbers mean what they say
        (encoded(COLOURS), COLOURS),
        (base64.b64encode(encoded(COLOURS)).decode(), COLOURS),
    ],
)
def test_pixels_are_whole_numbers_to_255_or_floats_that_mean_these(entry: Any, expected: np.ndarray) -> None:
    assert (np.asarray(read_entry(entry, "image 1 of 1")) == expected).all()


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    write_network(tmp_path / "model", network(weights))
    return tmp_path / "model"


def answers(model: SubsetClassifier, *entries: Any) -> list[dict[str, float]]:
    return list(model.predict(pd.DataFrame({"image": pd.Series(entries, dtype=object)}))["probabilities"])


def test_a_picture_gets_the_same_answer_in_whatever_mode_it_was_saved(folder: Path) -> None:
    grey = Image.fromarray(GREY).resize((32, 32)).convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    found = answers(
        load_classifier(folder),
        np.asarray(grey.convert("RGB")),
        *(encoded(grey.convert(mode)) for mode in ("RGB", "L", "LA", "RGBA", "P")),
        encoded(np.asarray(grey).astype(np.uint16) * 257),
        encoded(grey.convert("RGB").convert("CMYK"), "TIFF"),
        encoded(grey.rotate(90, expand=True), exif=exif),
    )
    assert found == [found[0]] * len(found)


@pytest.mark.parametrize("side", [32, 48])
def test_pictures_of_any_size_are_scaled_to_what_the_network_takes(side: int) -> None:
    design = NetworkDesign("resnet20", 5, side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    model = SubsetClassifier(build(design, seed=1), CLASSES)
    large = np.full((64, 60, 3), 200)
    # One colour is the same at any size, but for what the network's own scaling leaves of rounding.
    shapes = [large, large[:1], large[:, :1], large[:1, :1], large[:32, :32], large[:side, :side]]
    found = answers(model, *shapes)
    for probabilities in found:
        assert probabilities == pytest.approx(found[-1], abs=1e-6)
        assert sum(probabilities.values()) == pytest.approx(1)


def test_images_as_the_study_measured_them_are_not_touched_where_the_network_scales() -> None:
    design = NetworkDesign("resnet20", 5, 48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    measured = build(design, seed=1)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = measured(image[None])[:, sorted(CLASSES)].double().softmax(1)
    (found,) = answers(SubsetClassifier(measured, CLASSES), png(image))
    assert list(found.values()) == expected[0].tolist()


def test_many_pictures_are_answered_one_by_one_and_in_their_order(folder: Path) -> None:
    model = load_classifier(folder)
    pictures = list(np.random.default_rng(1).integers(0, 256, (120, 32, 32, 3), np.uint8))
    found = answers(model, *pictures)
    for at in (0, 49, 50, 119):
        assert found[at] == pytest.approx(answers(model, pictures[at])[0], abs=1e-5)
    texts = [base64.b64encode(encoded(picture)).decode() for picture in pictures[:3]]
    assert answers(model, texts) == answers(model, *texts)  # MLflow makes a row of them


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.json", None, "not found; take another version of the model, or send it again"),
        ("model.json", b"{", "not JSON ("),
        ("model.json", b"{}", "design: missing; take another"),
        ("network.safetensors", None, "not found; take another"),
        ("network.safetensors", b"", "MD5 is d41d8cd98f00b204e9800998ecf8427e, and was "),
    ],
)
def test_a_model_whose_files_are_gone_or_damaged_is_told(
    folder: Path, file: str, content: bytes | None, said: str
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(LaqError) as told:
        load_classifier(folder)
    assert str(told.value).startswith(f"{folder / file}: {said}")
    assert len(str(told.value).splitlines()) == 1


def test_none_and_too_many_pictures_and_pixels_are_told(folder: Path) -> None:
    model = load_classifier(folder, Limits(max_pictures=3, max_pixels=64, max_total_pixels=150))
    assert len(answers(model, COLOURS, encoded(COLOURS))) == 2
    for entries, told in (
        ([], "image: found no picture; send one at least"),
        ([[]], "image: found no picture; send one at least"),
        ([COLOURS] * 4, "image: found 4 pictures; at most 3 are allowed in a request"),
        ([["AAAA"] * 4], "image: found 4 pictures; at most 3 are allowed in a request"),
        ([COLOURS] * 3, "image: found more than 150 pixels in all; send fewer pictures at once"),
        (
            [COLOURS, np.zeros((8, 9, 3))],
            "image 2 of 2: found 9 x 8 pixels; at most 64 are allowed; scale it down",
        ),
        (
            [COLOURS, encoded(np.zeros((8, 9), np.uint8))],
            "image 2 of 2: found 9 x 8 pixels; at most 64 are allowed; scale it down",
        ),
    ):
        with pytest.raises(LaqError) as caught:
            answers(model, *entries)
        assert str(caught.value) == told


def test_what_is_refused_reaches_mlflow_as_a_bad_request_without_the_request_in_it(folder: Path) -> None:
    served = ServedClassifier(load_classifier(folder))
    with pytest.raises(RefusedRequest, match="found no picture") as caught:
        served.predict(pd.DataFrame({"image": [b"rubbish"]}))
    assert caught.value.get_http_status_code() == 400
    reason = caught.value.message
    caught.value.message = f"Failed to predict data '{'x' * 10**6}'. Error: {reason}"  # as the server does
    assert json.loads(caught.value.serialize_as_json())["message"] == reason


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"max_pictures": 0}, "model_config max_pictures: found 0; "),
        ({"max_pixels": "many"}, "model_config max_pixels: found 'many'; "),
        ({"max_pixels": 10**9}, "model_config max_pixels: found 1000000000; "),
        ({"max_total_pixels": 1.5}, "model_config max_total_pixels: found 1.5; "),
        ({"pictures": 3}, "model_config pictures: found 3; "),
    ],
)
def test_limits_that_are_none_are_told(config: dict[str, Any], told: str) -> None:
    with pytest.raises(LaqError) as caught:
        Limits.of(config)
    assert str(caught.value).startswith(told)
    assert "keys are max_pictures, max_pixels, max_total_pixels" in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "packages"),
    [
        ("resnet20", ()),
        ("resnet18", ("torchvision",)),
        ("timm:resnet10t", ("timm", "torchvision")),
        ("python:torchvision.models:resnet18", ("torchvision",)),
    ],
)
def test_an_architecture_from_elsewhere_names_its_packages(
    architecture: str, packages: tuple[str, ...]
) -> None:
    assert packages_of(architecture) == packages
