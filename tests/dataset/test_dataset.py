"""The images: drawn the same every time, CIFAR-100 only if it is CIFAR-100."""

import pickle
import shutil
import tarfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from torchvision.datasets import CIFAR100

from laq import dataset
from laq.dataset import glyphs, read_images, registry
from laq.dataset.images import ImageSet
from laq.dataset.registry import Dataset, DatasetSource
from laq.errors import LaqError
from laq.files import read_json, write_json
from laq.params import load_params
from laq.quantization.options import whole_number
from tests.conftest import CIFAR100 as ARCHIVE
from tests.conftest import needs, tiny_params, write_params

SMALL = Dataset(name="glyphs", train_per_class=2, test_per_class=1, seed=3)
CIFAR = Dataset(name="cifar100")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes(project: Path) -> None:
    dataset.run(SMALL)
    first = contents(dataset.FOLDER)
    dataset.run(SMALL)
    assert contents(dataset.FOLDER) == first
    dataset.run(SMALL.model_copy(update={"seed": 4}))
    assert contents(dataset.FOLDER)["train"] != first["train"]
    assert set(first) == {"train", "test", "meta", "manifest.json"}


def test_glyphs_are_a_hundred_different_characters_of_the_font_in_twenty_families() -> None:
    characters = glyphs.class_characters()
    font = FT2Font(str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"))
    assert all(font.get_char_index(ord(character)) for character in characters.values())
    assert len(set(characters.values())) == len(characters) == 100
    assert np.bincount(glyphs.superclasses()).tolist() == [5] * 20
    painter = glyphs._Painter(glyphs.Style())
    assert len({mask.tobytes() for mask in painter.masks}) == 100


def test_images_read_back_as_drawn(project: Path) -> None:
    dataset.run(SMALL)
    train, test = read_images(dataset.FOLDER, "train"), read_images(dataset.FOLDER, "test")
    assert train.images.shape == (200, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert torch.bincount(train.labels).tolist() == [2] * 100
    assert test.class_names == tuple(glyphs.class_characters())
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(2)[0])
    assert np.array_equal(train.images[0].numpy(), glyphs._Painter(glyphs.Style()).draw(0, rng))


def test_select_and_sample_keep_images_with_their_labels() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 32, 32)
    data = ImageSet(images, torch.tensor([0, 1, 2, 0, 1, 2]), ("a", "b", "c"))
    chosen = data.select([2, 0])
    assert chosen.labels.tolist() == [0, 2, 0, 2]
    assert chosen.images[:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    drawn = data.sample(4, torch.Generator().manual_seed(0))
    assert len(set(drawn.images[:, 0, 0, 0].tolist())) == 4
    assert all(int(i) % 3 == int(y) for i, y in zip(drawn.images[:, 0, 0, 0], drawn.labels, strict=True))


def test_an_altered_file_is_refused_before_it_is_unpickled(project: Path) -> None:
    dataset.run(SMALL)
    (dataset.FOLDER / "test").write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(LaqError, match=r"data/dataset/test: MD5 is .*run `dvc repro dataset`"):
        read_images(dataset.FOLDER, "test")
    assert not (project / "owned").exists()


def test_a_pickle_that_would_run_code_is_refused_even_with_its_md5(project: Path) -> None:
    dataset.run(SMALL)
    path = dataset.FOLDER / "test"
    path.write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    manifest = read_json(dataset.FOLDER / "manifest.json")
    manifest["md5"]["test"] = dataset.md5(path)
    write_json(dataset.FOLDER / "manifest.json", manifest)
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        read_images(dataset.FOLDER, "test")
    assert not (project / "owned").exists()


def fake_archive(path: Path) -> Path:
    """An archive with CIFAR-100's names and other contents."""
    folder = path.parent / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(np.random.default_rng(0).bytes(50_000))
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        tar.add(folder, folder.name)
    return path


@pytest.mark.parametrize("name", ["copy.tar.gz", "copy.tar.xz"])
def test_archives_that_are_not_cifar100_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive = fake_archive(project / name)
    monkeypatch.setenv("LAQ_CIFAR100", str(archive))
    with pytest.raises(LaqError, match="'train' is not CIFAR-100's: MD5"):
        dataset.run(CIFAR)
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(LaqError, match=r"not a whole CIFAR-100 archive .*LAQ_CIFAR100"):
        dataset.run(CIFAR)
    monkeypatch.setenv("LAQ_CIFAR100", str(project / "cifar-100-python"))
    with pytest.raises(LaqError, match="'train' is not CIFAR-100's"):
        dataset.run(CIFAR)
    (project / "cifar-100-python" / "meta").unlink()
    with pytest.raises(LaqError, match="holds no file 'meta'"):
        dataset.run(CIFAR)
    monkeypatch.setenv("LAQ_CIFAR100", "nowhere")
    with pytest.raises(LaqError, match="no such file or folder"):
        dataset.run(CIFAR)
    assert not list((project / "data").iterdir()), "something half-written was left"


def test_without_a_network_one_line_names_the_ways_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(LaqError) as caught:
        dataset.run(CIFAR)
    message = str(caught.value)
    assert all(way in message for way in ("127.0.0.1:9", "LAQ_CIFAR100", "dvc pull", "study: glyphs"))
    assert "\n" not in message
    assert not list((project / "data").iterdir())


@needs(ARCHIVE)
def test_the_real_cifar100_is_verified_and_read(
    cifar100: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = read_images(cifar100, "train"), read_images(cifar100, "test")
    assert torch.bincount(train.labels).tolist() == [500] * 100
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert train.class_names[:3] == ("apple", "aquarium_fish", "baby")
    shutil.copytree(cifar100, project / "copy")
    monkeypatch.setenv("LAQ_CIFAR100", "copy")
    dataset.run(CIFAR)
    assert contents(dataset.FOLDER) == contents(project / "copy")


def test_a_dataset_is_one_function_and_one_entry_of_the_registry(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy dataset goes from its key in params.yaml to images, and no other module knows of it."""

    def write(folder: Path, seed: int) -> None:
        glyphs.write_glyphs(folder, seed, train_per_class=1, test_per_class=1)

    monkeypatch.setattr(glyphs, "write_toys", write, raising=False)
    toys = DatasetSource("toys", "laq.dataset.glyphs:write_toys", {"seed": whole_number(0)})
    monkeypatch.setattr(registry, "DATASETS", {**registry.DATASETS, "toys": toys})
    params = tiny_params()
    params["glyphs"]["dataset"] = {"name": "toys", "seed": 5}
    write_params(project, params)
    dataset.run(load_params().dataset)
    assert dataset.read_manifest(dataset.FOLDER)["name"] == "toys"
    assert len(read_images(dataset.FOLDER, "test")) == 100
    params["glyphs"]["dataset"]["seed"] = -1
    write_params(project, params)
    with pytest.raises(
        LaqError, match=r"glyphs.dataset: seed: found -1; must be a whole number of at least 0"
    ):
        load_params()
