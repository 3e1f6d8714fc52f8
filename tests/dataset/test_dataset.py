"""The images: drawn the same every time, CIFAR-100 only if it is CIFAR-100."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from torchvision.datasets import CIFAR100

from laq import dataset
from laq.dataset import cifar100, glyphs, read_images, registry
from laq.dataset.cifar100 import MD5, fetch_cifar100
from laq.dataset.images import ImageSet
from laq.dataset.layout import Description
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


def npy(array: np.ndarray) -> bytes:
    np.save(content := io.BytesIO(), array, allow_pickle=True)
    return content.getvalue()


def test_the_same_seed_gives_the_same_bytes(project: Path) -> None:
    dataset.run(SMALL)
    first = contents(dataset.FOLDER)
    dataset.run(SMALL)
    assert contents(dataset.FOLDER) == first
    dataset.run(SMALL.model_copy(update={"seed": 4}))
    assert contents(dataset.FOLDER)["train.npy"] != first["train.npy"]
    names = {"train.npy", "train_labels.npy", "test.npy", "test_labels.npy", "classes.json", "manifest.json"}
    assert set(first) == names


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


def test_choosing_images_copies_none_and_batches_are_those_chosen() -> None:
    data = ImageSet(
        torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 32, 32),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        ("a", "b", "c"),
    )
    chosen = data.select([0, 2]).take(torch.tensor([3, 0, 1]))
    assert chosen.pixels is data.pixels
    assert [batch[:, 0, 0, 0].tolist() for batch in chosen.batches(2)] == [[5, 0], [2]]
    assert [len(batch) for batch in data.batches(4)] == [4, 2]
    with pytest.raises(LaqError, match="class 3 is unknown; the dataset has 0 to 2"):
        data.select([3])


def test_images_stay_in_their_files_and_what_is_written_to_them_reaches_no_file(project: Path) -> None:
    dataset.run(SMALL)
    images = read_images(dataset.FOLDER, "test")
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    assert str((dataset.FOLDER / "test.npy").resolve()) in mapped
    images.pixels.zero_()
    assert read_images(dataset.FOLDER, "test").pixels.any()


def test_an_altered_file_is_refused(project: Path) -> None:
    dataset.run(SMALL)
    assert len(read_images(dataset.FOLDER, "test")) == 100
    content = (dataset.FOLDER / "test.npy").read_bytes()
    (dataset.FOLDER / "test.npy").write_bytes(content[:-1] + b"!")
    with pytest.raises(LaqError, match=r"data/dataset/test.npy: MD5 is .*run `dvc repro dataset`"):
        read_images(dataset.FOLDER, "test")


NO_ARRAYS: dict[str, tuple[str, bytes, str]] = {
    "a pickle": ("test.npy", b"cposix\nsystem\n(S'touch owned'\ntR.", "test.npy: not a whole .npy file"),
    "an array of objects": ("test.npy", npy(np.array([Path()])), "test.npy: not a whole .npy file"),
    "cut off": (
        "test.npy",
        npy(np.zeros((100, 3, 32, 32), np.uint8))[:-1],
        "test.npy: not a whole .npy file",
    ),
    "floats": ("test.npy", npy(np.zeros((100, 3, 32, 32))), "test.npy: must hold images, uint8"),
    "grey": ("test.npy", npy(np.zeros((100, 1, 32, 32), np.uint8)), "test.npy: must hold images, uint8"),
    "too few": ("test.npy", npy(np.zeros((99, 3, 32, 32), np.uint8)), "test.npy: must hold images, uint8"),
    "a label too many": ("test_labels.npy", npy(np.full(100, 100)), "must hold .* n labels from 0 to 99"),
    "no names": ("classes.json", b'{"names": 3, "superclasses": []}', "classes.json: names: "),
    "no JSON": ("classes.json", b"{", "classes.json: "),
}


@pytest.mark.parametrize(("name", "content", "message"), NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_what_is_no_image_is_refused_even_with_its_md5(
    project: Path, name: str, content: bytes, message: str
) -> None:
    dataset.run(SMALL)
    (dataset.FOLDER / name).write_bytes(content)
    manifest = read_json(dataset.FOLDER / "manifest.json")
    manifest["md5"][name] = md5(content, usedforsecurity=False).hexdigest()
    write_json(dataset.FOLDER / "manifest.json", manifest)
    with pytest.raises(LaqError, match=message) as caught:
        read_images(dataset.FOLDER, "test")
    assert "\n" not in str(caught.value)
    assert not (project / "owned").exists()


def test_the_official_files_are_unpickled_without_running_code(project: Path) -> None:
    (odd := Path("train")).write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(
        LaqError, match=r"CIFAR-100: 'train' is no pickle of images \(.*posix\.system .*; set"
    ):
        cifar100._unpickle(odd)
    assert not (project / "owned").exists()


@pytest.mark.parametrize(
    "change", [{"md5": 3}, {"preprocessing": {"size": 32, "resize": "stretch"}}, {"images": None}]
)
def test_a_manifest_that_is_none_is_told_in_a_line(project: Path, change: dict[str, Any]) -> None:
    dataset.run(SMALL)
    path = dataset.FOLDER / "manifest.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(LaqError, match=rf"^{path}: {next(iter(change))}.*dvc repro dataset") as caught:
        read_images(dataset.FOLDER, "test")
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_told(project: Path) -> None:
    dataset.run(SMALL)
    with pytest.raises(LaqError, match="data/dataset: has no validation images; it has train, test"):
        read_images(dataset.FOLDER, "validation")


MADE_UP = {name: name.encode() * 1000 for name in ("train", "test", "meta")}
MD5S = {name: md5(content, usedforsecurity=False).hexdigest() for name, content in MADE_UP.items()}
NOT_WHOLE = r"LAQ_CIFAR100=copy\S*: not a whole CIFAR-100 archive"


def made_up(parent: str = "cifar-100-python/", **changed: bytes | None) -> dict[str, bytes]:
    """The members of an archive; None leaves one out."""
    held = MADE_UP | changed
    return {parent + name: content for name, content in held.items() if content is not None}


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            if isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)


def special(kind: bytes, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, to
    return member


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def unpacked(path: Path, members: dict[str, bytes]) -> None:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


COPIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "tar": ("copy.tar", lambda path: tar(path, made_up())),
    "gz": ("copy.tar.gz", lambda path: tar(path, made_up(), "w:gz")),
    "bz2": ("copy.tar.bz2", lambda path: tar(path, made_up(), "w:bz2")),
    "xz": ("copy.tar.xz", lambda path: tar(path, made_up(), "w:xz")),
    "any name": ("copy", lambda path: tar(path, made_up(), "w:gz")),
    "dot": ("copy.tar", lambda path: tar(path, made_up("./cifar-100-python/"))),
    "other parent": ("copy.tar", lambda path: tar(path, made_up("a/b/"))),
    "no parent": ("copy.tar", lambda path: tar(path, made_up(""))),
    "other files": ("copy.tar", lambda path: tar(path, made_up(".mac/", train=b"-") | made_up())),
    "a link beside": (
        "copy.tar",
        lambda path: tar(path, {"train": special(tarfile.SYMTYPE, "train")} | made_up()),
    ),
    "zip": ("copy.zip", lambda path: packed(path, made_up())),
    "stored": ("copy.zip", lambda path: packed(path, made_up("./x/"), zipfile.ZIP_STORED)),
    "folder": ("copy", lambda path: unpacked(path, made_up(""))),
    "folder in a folder": ("copy", lambda path: unpacked(path, made_up())),
}


@pytest.mark.parametrize(("name", "make"), COPIES.values(), ids=COPIES.keys())
def test_a_copy_of_cifar100_may_be_any_archive_or_folder_that_holds_its_files(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None]
) -> None:
    make(project / name)
    monkeypatch.setenv("LAQ_CIFAR100", name)
    (project / "target").mkdir()
    fetch_cifar100(project / "target", MD5S)
    assert contents(project / "target") == dict(sorted(MADE_UP.items()))


def cut(path: Path, make: Callable[[Path], None], share: float) -> None:
    make(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def looped(path: Path) -> None:
    path.mkdir()
    (path / "train").symlink_to(path / "train")


def damaged(path: Path) -> None:
    packed(path, made_up(train=NOISE))
    path.write_bytes(path.read_bytes().replace(NOISE[1000:1010], b"0" * 10, 1))


NOISE = np.random.default_rng(0).bytes(30_000)
NO_COPIES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "nothing": ("copy", lambda path: None, "LAQ_CIFAR100=copy: no such file or folder"),
    "empty": ("copy.tar.gz", lambda path: path.write_bytes(b""), NOT_WHOLE),
    "noise": ("copy.tar.gz", lambda path: path.write_bytes(NOISE), NOT_WHOLE),
    "other contents": ("copy.tar", lambda path: tar(path, made_up(test=b"x")), "'test' is not CIFAR-100's: MD5 9dd4"),
    "no meta": ("copy.zip", lambda path: packed(path, made_up(meta=None)), "holds no file 'meta'"),
    "no files": ("copy", lambda path: path.mkdir(), "holds no file 'train'"),
    "link loops": ("copy.tar", lambda path: tar(path, {
        "x/train": special(tarfile.SYMTYPE, "test"), "x/test": special(tarfile.SYMTYPE, "train"),
    }), "holds no file 'train'"),
    "link outside": ("copy.tar", lambda path: tar(path, {"x/train": special(tarfile.SYMTYPE, "/etc/passwd")}),
        "holds no file 'train'"),
    "hard link": ("copy.tar", lambda path: tar(path, {"x/train": special(tarfile.LNKTYPE, "x/train")}),
        "holds no file 'train'"),
    "folders": ("copy.tar", lambda path: tar(path, {f"x/{n}": special(tarfile.DIRTYPE) for n in MADE_UP}),
        "holds no file 'train'"),
    "a pipe": ("copy.tar", lambda path: tar(path, {"train": special(tarfile.FIFOTYPE)}), "holds no file 'train'"),
    "folders in a zip": ("copy.zip", lambda path: packed(path, {"x/train/": b"", "x/test/": b""}),
        "holds no file 'train'"),
    "links in a folder": ("copy", looped, "holds no file 'train'"),
    "cut gz": ("copy.tar.gz", lambda path: cut(path, lambda p: tar(p, made_up(train=NOISE), "w:gz"), 0.5), NOT_WHOLE),
    "cut xz": ("copy.tar.xz", lambda path: cut(path, lambda p: tar(p, made_up(test=NOISE), "w:xz"), 0.5), NOT_WHOLE),
    "cut tar": ("copy.tar", lambda path: cut(path, lambda p: tar(p, made_up(train=NOISE)), 0.5), NOT_WHOLE),
    "cut zip": ("copy.zip", lambda path: cut(path, lambda p: packed(p, made_up()), 0.5), NOT_WHOLE),
    "damaged zip": ("copy.zip", damaged, NOT_WHOLE),
}  # fmt: skip


@pytest.mark.parametrize(("name", "make", "message"), NO_COPIES.values(), ids=NO_COPIES.keys())
def test_what_is_no_copy_of_cifar100_is_told_in_a_line_and_leaves_nothing(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], None],
    message: str,
) -> None:
    make(project / name)
    monkeypatch.setenv("LAQ_CIFAR100", name)
    monkeypatch.setattr(cifar100.fetch_cifar100, "__defaults__", (MD5S,))
    with pytest.raises(LaqError, match=message) as caught:
        dataset.run(CIFAR)
    assert "\n" not in str(caught.value)
    assert "run `dvc pull`" in str(caught.value)
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
def test_the_real_cifar100_is_verified_and_read(cifar100: Path, project: Path) -> None:
    train, test = read_images(cifar100, "train"), read_images(cifar100, "test")
    assert torch.bincount(train.labels).tolist() == [500] * 100
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert train.class_names[:3] == ("apple", "aquarium_fish", "baby")
    manifest = dataset.read_manifest(cifar100)
    assert manifest.source == {"md5": MD5}
    classes = read_json(cifar100 / "classes.json")
    assert dict(zip(classes["names"], classes["superclasses"], strict=True))["beaver"] == "aquatic_mammals"
    # As torchvision reads the same files.
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(project, filter="data")
    theirs = CIFAR100(project, train=False)
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert test.labels.tolist() == theirs.targets


def test_a_dataset_is_one_function_and_one_entry_of_the_registry(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy dataset goes from its key in params.yaml to images, and no other module knows of it."""

    def write(folder: Path, seed: int) -> Description:
        return glyphs.write_glyphs(folder, seed, train_per_class=2, test_per_class=1)

    monkeypatch.setattr(glyphs, "write_toys", write, raising=False)
    toys = DatasetSource("toys", "laq.dataset.glyphs:write_toys", {"seed": whole_number(0)})
    monkeypatch.setattr(registry, "DATASETS", {**registry.DATASETS, "toys": toys})
    params = tiny_params()
    params["glyphs"]["dataset"] = {"name": "toys", "seed": 5}
    write_params(project, params)
    dataset.run(load_params().dataset)
    assert dataset.read_manifest(dataset.FOLDER).name == "toys"
    assert len(read_images(dataset.FOLDER, "test")) == 100
    params["glyphs"]["dataset"]["seed"] = -1
    write_params(project, params)
    with pytest.raises(
        LaqError, match=r"glyphs.dataset.seed: found -1; must be a whole number of at least 0"
    ):
        load_params()


def test_the_registry_says_how_many_classes_the_glyphs_have() -> None:
    assert registry.DATASETS["glyphs"].classes == len(glyphs.class_characters())
