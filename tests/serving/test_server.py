"""The real server: what it answers and refuses over HTTP, and that it stays up."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from PIL import ExifTags, Image

from tests.conftest import ROOT
from tests.pictures.files import encoded
from tests.servers import free_port, running, wait_for
from tests.track.test_servers import delivering, ended, saved
from tests.track.test_track import lone, models_of
from tests.trees import CLASSES, example, network


def split(*entries: Any, column: str = "image") -> dict[str, Any]:
    """A request with ``entries``, as MLflow takes it."""
    return {"dataframe_split": {"columns": [column], "data": [[entry] for entry in entries]}}


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def upright(picture: Image.Image) -> str:
    """A file whose pixels lie on their side, and whose EXIF says so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return base64_of(encoded(picture.rotate(90, expand=True), exif=exif))


# One picture, saved in every mode.
GREY = Image.fromarray((np.arange(32)[:, None] * 5 + np.arange(32) * 2).astype(np.uint8))
AS_SEEN = [
    *(base64_of(encoded(GREY.convert(mode))) for mode in ("RGB", "L", "LA", "RGBA", "P")),
    base64_of(encoded(np.asarray(GREY).astype(np.uint16) * 257)),
    base64_of(encoded(GREY.convert("RGB").convert("CMYK"), "TIFF")),
    upright(GREY), upright(GREY.convert("RGB")),
    np.asarray(GREY.convert("RGB")).tolist(), (np.asarray(GREY.convert("RGB")) + 0.25).tolist(),
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("preloaded")
BOMB = base64_of(encoded(Image.new("1", (12_000, 12_000))))
# What is sent as JSON, or as it is; the answer's status; what the answer says.
HOSTILE: dict[str, tuple[Any, int, str]] = {
    "a bomb": (split(BOMB), 400, "found 12000 x 12000 pixels; at most 50000000 are allowed"),
    "10,000 pictures": (split(*[example()] * 10_000), 400, "found 10000 pictures; at most 1000 are allowed"),
    "10,000 inputs": ({"inputs": {"image": [example()] * 10_000}}, 400, "found 10000 pictures; at most 1000"),
    "a bomb among good ones": (split(example(), BOMB, example()), 400, "image 2 of 3: found 12000 x 12000"),
    "a long input": ({"inputs": {"image": ["rubbish!" * 10_000]}}, 400, "found text that is no Base64"),
    "no pictures": (split(), 400, "found no picture"),
    "no rows": ({"dataframe_records": []}, 400, "missing inputs"),
    "no instances": ({"instances": []}, 400, "found no picture"),
    "another column": (split(example(), column="picture"), 400, "missing inputs ['image']"),
    "columns of one name": ({"dataframe_split": {"columns": ["image"] * 2, "data": [[1, 2]]}}, 400, "schema"),
    "null": (split(None), 400, "found None"),
    "NaN": (b'{"dataframe_split": {"columns": ["image"], "data": [[NaN]]}}', 400, "found nan"),
    "infinity": (b'{"inputs": {"image": [[[[Infinity, 0, 0]]]]}}', 400, "numbers from 0.0 to inf"),
    "a number": (split(7), 400, "found 7"),
    "a mapping": (split({"a": 1}), 400, "found {'a': 1}"),
    "ragged lists": (split([[[1, 2, 3], [4]]]), 400, "lists of different lengths"),
    "deep lists": (b'{"inputs": {"image": ' + b"[" * 500 + b"]" * 500 + b"}}", 400, ""),
    "floats within 0..1": (split([[[0.5] * 3] * 8] * 8), 400, "floats all within 0..1"),
    "negative numbers": (split([[[-1] * 3]]), 400, "numbers from -1 to -1"),
    "floats beyond 255": (split([[[255.5, 0, 0]]]), 400, "numbers from 0.0 to 255.5"),
    "pixels of 16 bits": (split([[[65535, 0, 0]]]), 400, "numbers from 0 to 65535"),
    "pixels as texts": (split([[["200", "30", "30"]]]), 400, "lists with what is no number"),
    "grey pixels": (split([[200] * 8] * 8), 400, "numbers of shape (8, 8)"),
    "a 32-bit picture": (split(base64_of(encoded(np.ones((8, 8), np.float32), "TIFF"))), 400, "save it as grey or RGB"),
    "no Base64": (split("rubbish!"), 400, "found text that is no Base64"),
    "no picture": (split(base64_of(b"<svg/>")), 400, "found no picture; it must be a file of BMP"),
    "a file that was cut off": (split(example()[:60]), 400, "broken or cut off"),
    "only text": ({"inputs": "rubbish"}, 400, "missing inputs"),
    "a list": ([1, 2], 400, "Received a list"),
    "nothing": ({}, 400, "exactly one of the input fields"),
    "no JSON": (b"rubbish", 400, "valid JSON"),
    "no UTF-8": (b"\xff\xfe{", 400, "valid JSON"),
    # MLflow's reader of JSON fails before the model is asked, and its server goes on.
    "bottomless lists": (b"[" * 100_000, 500, ""),
    "a number without end": (b'{"inputs": {"image": [' + b"9" * 5_000 + b"]}}", 500, ""),
}  # fmt: skip


@contextmanager
def served(folder: Path, weights: Path) -> Iterator[tuple[str, Path]]:
    """The address of a served model, and the model's folder."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with delivering(folder, store, saved(lone(network(weights)), folder)) as process:
        assert ended(process)[0] == 0
    port, name = free_port(), "models:/laq-test-random-1@champion"
    command = ["models", "serve", "-m", name, "--env-manager", "local", "--port", str(port), "--workers", "1"]
    known = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": known}
    with running(["mlflow", *command], folder, **variables) as server:
        wait_for(f"http://127.0.0.1:{port}/ping", server, folder)
        (model,) = models_of(MlflowClient(store))
        yield f"http://127.0.0.1:{port}/invocations", Path(model.artifact_location.removeprefix("file://"))
        assert server.poll() is None


def test_a_served_model_answers_pictures_refuses_what_is_none_and_stays_up(
    tmp_path: Path, weights: Path, new_store: Callable[[Path], None]
) -> None:
    new_store(tmp_path / "mlflow.db")
    with served(tmp_path, weights) as (url, folder):
        image = json.loads((folder / "serving_input_example.json").read_text())
        answer = requests.post(url, json=image, timeout=60)
        assert answer.status_code == 200, answer.text
        first, second = answer.json()["predictions"]
        assert first["class"] in CLASSES.values()
        assert first == second
        pixels = [[[200, 30, 30]] * 32] * 32
        for name, (sent, status, said) in HOSTILE.items():
            body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
            kind = {"Content-Type": "application/json"}
            answer = requests.post(url, body, headers=kind, timeout=60)
            assert (answer.status_code, said in answer.text) == (status, True), (name, answer.text[:500])
            assert len(answer.text) < 2_000, name
        for good in (
            {"inputs": {"image": [pixels]}},
            {"inputs": {"image": [example()]}},
            {"inputs": {"image": [example()] * 2}},
            {"instances": [{"image": example()}]},
            {"instances": [{"image": pixels}]},
            {"dataframe_records": [{"image": example()}]},
        ):
            answer = requests.post(url, json=good, timeout=60)
            assert answer.status_code == 200, answer.text
            for found in answer.json()["predictions"]:
                assert found["probabilities"] == pytest.approx(first["probabilities"])
        answer = requests.post(url, json=split(*AS_SEEN), timeout=60)
        assert answer.status_code == 200, answer.text
        seen = [found["probabilities"] for found in answer.json()["predictions"]]
        assert seen == [seen[0]] * len(AS_SEEN)
        # MLflow reads no pictures from tables and files as they are.
        for kind, body in {
            "text/csv": f"image\n{example()}\n",
            "image/png": "x",
            "multipart/form-data": "x",
        }.items():
            answer = requests.post(url, body, headers={"Content-Type": kind}, timeout=60)
            assert 400 <= answer.status_code < 500, (kind, answer.text)
        assert requests.post(url, json=split(example()), timeout=60).status_code == 200
