"""Your own pictures: folders and archives of every shape, and what is said of those that will not do."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from laq import dataset
from laq.dataset import read_images, read_manifest
from laq.dataset.registry import Dataset, Needs
from laq.errors import LaqError
from laq.files import read_json
from laq.pictures import Preprocessing, read_picture
from tests.conftest import CLOTHING, needs
from tests.pictures.files import encoded

CLASSES = ("hat", "shoe")
ANY = Needs(calibration=(1, "study.calibration_images"))


def picture(seed: int, height: int = 20, width: int = 30) -> bytes:
    """A PNG of noise."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def split_files(train: int = 3, test: int = 1) -> dict[str, bytes]:
    """Pictures in folders for splits and classes."""
    counts = {"train": train, "test": test}
    names = [f"{s}/{c}/{i}.png" for s, count in counts.items() for c in CLASSES for i in range(count)]
    return {name: picture(seed) for seed, name in enumerate(names)}


def class_files(count: int = 10) -> dict[str, bytes]:
    """Pictures in folders for classes."""
    names = [f"{c}/{i}.png" for c in CLASSES for i in range(count)]
    return {name: picture(seed) for seed, name in enumerate(names)}


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def packed(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def folder_of(**changes: Any) -> Dataset:
    return Dataset(**{"name": "folder", "path": "photos", "size": 16} | changes)


def made(**changes: Any) -> dict[str, Any]:
    """The manifest's counts and what the stage says, of the pictures in photos."""
    told = dataset.run(folder_of(**changes), ANY)
    return {"told": told, **read_manifest(dataset.FOLDER).images}


FORMS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "folder": put,
    "tar": tar,
    "tar.gz": lambda path, files: tar(path, files, "w:gz"),
    "tar.xz": lambda path, files: tar(path, files, "w:xz"),
    "zip": packed,
    "below another folder": lambda path, files: put(path, {f"a/b/{n}": c for n, c in files.items()}),
    "with a readme": lambda path, files: tar(
        path, {"x/README.md": b"-", **{f"x/{n}": c for n, c in files.items()}}
    ),
    "beginning with a dot": lambda path, files: tar(path, {f"./{n}": c for n, c in files.items()}),
    "in folders of classes": lambda path, files: put(
        path, {n.replace("hat/", "hat/deep/er/"): c for n, c in files.items()}
    ),
    "beside what systems write": lambda path, files: put(
        path,
        files
        | {".DS_Store": b"-", "train/hat/Thumbs.db": b"-", "__MACOSX/a/b.png": b"-", "train/.x/y.png": b"-"},
    ),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_pictures_may_lie_in_a_folder_or_an_archive(
    project: Path, make: Callable[[Path, dict[str, bytes]], None]
) -> None:
    make(project / "photos", split_files())
    counts = made()
    assert counts["told"] == (
        "2 classes, images of 16 x 16 pixels: train 6 (3 to 3 of a class), test 2 (1 to 1 of a class)"
    )
    train, test = read_images(dataset.FOLDER, "train"), read_images(dataset.FOLDER, "test")
    assert train.class_names == CLASSES
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.preprocessing == Preprocessing(16)
    assert read_manifest(dataset.FOLDER).name == "photos"
    expected = Preprocessing(16)(read_picture(split_files()["test/shoe/0.png"], ""))
    assert np.array_equal(test.images[1].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("name", ["val", "validation", "Validation"])
def test_validation_images_are_a_split_of_their_own(project: Path, name: str) -> None:
    more = {f"{name}/{c}/{i}.png": picture(100 + 2 * i + n) for i in range(2) for n, c in enumerate(CLASSES)}
    put(project / "photos", split_files() | more)
    assert made()["validation"] == [2, 2]
    assert len(read_images(dataset.FOLDER, "validation")) == 4


def test_class_folders_alone_are_split_by_the_seed_each_class_alike(project: Path) -> None:
    put(project / "photos", class_files())
    counts = made(test_share=0.2, validation_share=0.1)
    assert [counts[split] for split in ("train", "validation", "test")] == [[7, 7], [1, 1], [2, 2]]
    first = read_images(dataset.FOLDER, "test").images
    made(test_share=0.2, validation_share=0.1)
    assert torch.equal(read_images(dataset.FOLDER, "test").images, first)
    made(seed=1)
    assert not torch.equal(read_images(dataset.FOLDER, "test").images, first)


def test_another_picture_leaves_the_others_where_they_are(project: Path) -> None:
    put(project / "photos", class_files(20))
    made()
    before = {image.numpy().tobytes() for image in read_images(dataset.FOLDER, "test").images}
    put(project / "photos", {"hat/new.png": picture(999)})
    made()
    after = {image.numpy().tobytes() for image in read_images(dataset.FOLDER, "test").images}
    assert len(before - after) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_picture_are_on_one_side(project: Path, seed: int) -> None:
    copies = {f"hat/copy-{i}-{j}.png": picture(i) for i in range(5) for j in range(2)}
    put(project / "photos", class_files() | copies)
    made(seed=seed, test_share=0.3, validation_share=0.2)
    splits = [read_images(dataset.FOLDER, split).images for split in ("train", "validation", "test")]
    held = [{image.numpy().tobytes() for image in images} for images in splits]
    assert held[0].isdisjoint(held[1] | held[2])
    assert held[1].isdisjoint(held[2])
    assert sum(map(len, splits)) == 30


def test_a_copy_of_a_test_picture_is_not_learned_from(project: Path) -> None:
    files = split_files()
    put(project / "photos", files | {"train/hat/copy.png": files["test/hat/0.png"]})
    counts = made()
    assert counts["train"] == [3, 3]
    assert counts["told"].splitlines()[1] == "left out 1 copies of pictures that are in another split"


NAMES = ("with space", 'it\'s "quoted"', "emoji 👒👩‍🚀", "-dash", "x" * 200, "ünï", "$1$", "a,b")


@pytest.mark.parametrize("make", [put, tar, packed])
def test_names_may_be_what_file_systems_allow(
    project: Path, make: Callable[[Path, dict[str, bytes]], None]
) -> None:
    names = [*NAMES, *(["y" * 300] if make is not put else [])]
    make(
        project / "photos",
        {
            f"{name}/{i}{name[:50]}.png": picture(100 * n + i)
            for n, name in enumerate(names)
            for i in range(4)
        },
    )
    made()
    assert set(read_images(dataset.FOLDER, "train").class_names) == set(names)


RIGHT = np.zeros((20, 30, 3), np.uint8)
RIGHT[:, 15:] = 255
MODES: dict[str, bytes] = {
    **{mode: encoded(Image.fromarray(RIGHT).convert(mode)) for mode in ("L", "LA", "P", "RGBA", "1")},
    "CMYK": encoded(Image.fromarray(RIGHT).convert("CMYK"), "TIFF"),
    "16 bits": encoded(RIGHT[..., 0].astype(np.uint16) * 257),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_become_the_same_image(project: Path, mode: str) -> None:
    put(project / "photos", split_files() | {"test/hat/0.png": encoded(RIGHT), "test/hat/1.png": MODES[mode]})
    made()
    images = read_images(dataset.FOLDER, "test").select([0]).images
    assert torch.equal(images[0], images[-1])


@pytest.mark.parametrize(
    ("resize", "corners", "middle"),
    [("crop", [0, 255], 16), ("squash", [0, 255], 16), ("pad", [0, 0], 16)],
)
def test_how_a_picture_becomes_square_is_declared(
    project: Path, resize: str, corners: list[int], middle: int
) -> None:
    put(project / "photos", split_files() | {"test/hat/0.png": encoded(RIGHT)})
    made(resize=resize, size=32, interpolation="box")
    image = read_images(dataset.FOLDER, "test").images[0, 0]
    assert [int(image[0, 0]), int(image[0, -1])] == corners
    assert [int(v) for v in image[middle, [4, -4]]] == [0, 255]
    assert read_manifest(dataset.FOLDER).preprocessing == Preprocessing(32, resize, "box")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (1, 1), (33, 32)])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_pictures_of_any_shape_become_images(shape: tuple[int, int], resize: Any) -> None:
    whole = Preprocessing(32, resize)(Image.fromarray(np.full((*shape, 3), 200, np.uint8)))
    assert whole.size == (32, 32)
    assert whole.mode == "RGB"
    assert np.asarray(whole).max() == 200


WHOLE = picture(7)
BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(20)
BROKEN = {
    "train/hat/b0.png": (b"", "found an empty file"),
    "train/hat/b1.png": (WHOLE[: len(WHOLE) // 2], "found a picture that is broken or cut off"),
    "train/hat/b2.png": (BOMB, "found "),
    "train/hat/b3.txt": (b"notes", "found no picture"),
    "train/shoe/b4.svg": (b"<svg/>", "found no picture"),
    "train/shoe/b5.gif": (b"GIF89a", "found "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_whole_picture_is_named(project: Path, name: str) -> None:
    content, reason = BROKEN[name]
    put(project / "photos", split_files() | {name: content})
    with pytest.raises(LaqError) as caught:
        made()
    told = str(caught.value)
    assert told.startswith(f"dataset.path: 1 of 9 files are no whole pictures ({name}: {reason}")
    assert told.endswith("; remove them, or set dataset.skip_broken: true")
    assert "\n" not in told
    assert not list((project / "data").iterdir()), "something half-written was left"


def test_broken_files_are_counted_and_the_first_five_named_or_skipped(project: Path) -> None:
    put(project / "photos", split_files() | {name: content for name, (content, _) in BROKEN.items()})
    with pytest.raises(
        LaqError, match=r"6 of 14 files .*b0.png.*b4.svg: found no picture; and 1 more\); remove"
    ):
        made()
    counts = made(skip_broken=True)
    assert counts["train"] == [3, 3]
    assert (
        counts["told"]
        .splitlines()[1]
        .startswith("skipped 6 files that are no whole pictures: train/hat/b0.png: ")
    )
    assert len(read_manifest(dataset.FOLDER).source["skipped"]) == 6


def link(name: str, to: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root, split_files())
        (root / name).symlink_to(to)

    return make


def special_tar(member: tarfile.TarInfo) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        tar(path, split_files())
        with tarfile.open(path, "a") as archive:
            archive.addfile(member, io.BytesIO(b"x" * member.size))

    return make


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    made_up = tarfile.TarInfo(name)
    made_up.type, made_up.linkname = kind, to
    return made_up


def linked_zip(path: Path) -> None:
    packed(path, split_files())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("train/hat/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")


def files(*changes: dict[str, bytes], drop: Sequence[str] = ()) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        held = {name: content for change in (split_files(), *changes) for name, content in change.items()}
        put(root, {name: c for name, c in held.items() if not name.startswith(tuple(drop) or "-")})

    return make


def pipe(root: Path) -> None:
    put(root, split_files())
    os.mkfifo(root / "train/hat/pipe.png")


def cut(path: Path) -> None:
    tar(path, split_files(), "w:gz")
    path.write_bytes(path.read_bytes()[:-3000])


def empty_class(root: Path) -> None:
    put(root, split_files())
    (root / "train/empty").mkdir()


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda path: None, "photos: no such folder or archive"),
    "empty": (lambda path: path.mkdir(), "found no folder with pictures; must be two folders at least"),
    "an empty archive": (lambda path: path.write_bytes(b""), "neither a folder nor a whole .zip or .tar archive"),
    "no archive": (lambda path: path.write_bytes(b"x" * 999), "neither a folder nor a whole .zip or .tar archive"),
    "cut off": (cut, "neither a folder nor a whole .zip or .tar archive"),
    "one class": (lambda path: put(path, {"a/x.png": WHOLE, "a/y.png": WHOLE}), "found one class, 'a'; must be two"),
    "no classes": (lambda path: put(path, {"x.png": WHOLE}), "'x.png' lies in no class's folder; move it to one"),
    "a picture beside the classes": (files({"train/x.png": WHOLE}), "'train/x.png' lies in no class's folder"),
    "an empty class": (empty_class, "the folder 'train/empty' holds no picture; put some there or remove it"),
    "a class in test alone": (files({"test/hut/0.png": WHOLE}), "'test/hut/0.png' is of the class 'hut', which train lacks; did you mean hat?"),
    "a class without tests": (files(drop=["test/hat"]), "found too few test images of 'hat' (0); each class needs 1 for its accuracy"),
    "no test": (files({"val/hat/0.png": WHOLE}, drop=["test"]), "found the folders train, val; must be train and test, perhaps with validation, or a folder for each class"),
    "a picture in two classes": (files({"train/hat/x.png": picture(77), "train/shoe/y.png": picture(77)}), "'train/hat/x.png' and 'train/shoe/y.png' are the same picture in two classes; keep one"),
    "a link outside": (link("train/hat/x.png", "/etc/passwd"), "'train/hat/x.png' is a link to elsewhere; copy there what it links to"),
    "a folder's link": (link("train/boot", "/etc"), "'train/boot' is a link to elsewhere"),
    "a link to nothing": (link("train/hat/x.png", "nowhere"), "'train/hat/x.png' is neither a file nor a folder"),
    "a pipe": (pipe, "'train/hat/pipe.png' is neither a file nor a folder; remove it"),
    "a name of two lines": (files({"train/a\nb/x.png": WHOLE}), r"'train/a\nb' is a name with control characters"),
    "a member above": (special_tar(member("../x.png")), "'../x.png' leads outside of the archive"),
    "an absolute member": (special_tar(member("/etc/x.png")), "'/etc/x.png' leads outside of the archive"),
    "a link in a tar": (special_tar(member("train/hat/x.png", tarfile.SYMTYPE, "/etc/passwd")), "'train/hat/x.png' is a link or no file at all"),
    "a device in a tar": (special_tar(member("train/hat/x.png", tarfile.CHRTYPE)), "'train/hat/x.png' is a link or no file at all"),
    "a link in a zip": (linked_zip, "'train/hat/link.png' is a link; pack the pictures themselves"),
    "a zip above": (lambda path: packed(path, split_files() | {"../x.png": WHOLE}), "'../x.png' leads outside of the archive"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "told"), BAD.values(), ids=BAD)
def test_what_will_not_do_is_told_in_a_line_and_nothing_is_left(
    project: Path, make: Callable[[Path], None], told: str
) -> None:
    make(project / "photos")
    with pytest.raises(LaqError) as caught:
        made()
    assert told in str(caught.value)
    assert str(caught.value).startswith("dataset")
    assert "\n" not in str(caught.value)
    assert not list((project / "data").iterdir()), "something half-written was left"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Needs(classes=(3, "subsets.sizes")), "dataset: found 2 classes; subsets.sizes needs 3"),
        (
            Needs(train=(6, "divergence.knn_neighbours: 5")),
            "dataset: found too few training images of 'hat' (3), 'shoe' (5); each class needs 6 for divergence.knn_neighbours: 5",
        ),
        (
            Needs(calibration=(9, "study.calibration_images")),
            "dataset: found 8 training images of 'hat' (3), 'shoe' (5); a subset of 2 classes needs 9 for study.calibration_images",
        ),
    ],
)  # fmt: skip
def test_classes_with_too_few_images_for_the_study_are_named(project: Path, asked: Needs, told: str) -> None:
    put(project / "photos", split_files() | {f"train/shoe/more-{i}.png": picture(50 + i) for i in range(2)})
    with pytest.raises(LaqError) as caught:
        dataset.run(folder_of(), asked)
    assert str(caught.value) == told


def test_many_threads_give_the_same_bytes(project: Path) -> None:
    put(project / "photos", class_files(30))
    contents = []
    for jobs in (1, 4):
        dataset.run(folder_of(), ANY, jobs)
        contents.append({path.name: path.read_bytes() for path in dataset.FOLDER.iterdir()})
    assert contents[0] == contents[1]


def torchvision_of(**changes: Any) -> Dataset:
    return Dataset(**{"name": "torchvision", "root": "theirs", "size": 32, "class": "CIFAR10"} | changes)


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


def test_a_dataset_of_torchvision_is_read_from_a_local_folder(project: Path) -> None:
    raw = project / "theirs/FashionMNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    dataset.run(torchvision_of(**{"class": "FashionMNIST", "size": 28}), ANY)
    test = read_images(dataset.FOLDER, "test")
    theirs = torchvision_datasets.FashionMNIST("theirs", train=False)
    assert test.class_names == tuple(theirs.classes)
    order = torch.sort(theirs.targets, stable=True).indices
    by_class = torch.sort(test.labels, stable=True).indices
    assert torch.equal(test.images[by_class][:, 1], theirs.data[order])


class Splits(torchvision_datasets.FakeData):
    """A dataset with splits by name, as most newer ones have them."""

    def __init__(self, root: str, split: str = "trainval") -> None:
        if split not in {"trainval", "test"}:
            raise ValueError(f"Unknown value '{split}' for argument split.")
        super().__init__(20, (3, 8, 8), 4, random_offset=len(split))


def test_splits_by_name_and_datasets_without_any(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from laq.dataset import torchvision as room

    monkeypatch.setattr(torchvision_datasets, "Splits", Splits, raising=False)
    monkeypatch.setattr(room, "_KNOWN", {*room._KNOWN, "Splits"})
    dataset.run(torchvision_of(**{"class": "Splits"}), ANY)
    assert {split: sum(n) for split, n in read_manifest(dataset.FOLDER).images.items()} == {
        "train": 20,
        "test": 20,
    }
    assert read_images(dataset.FOLDER, "train").class_names == ("0", "1", "2", "3")
    arguments = {"size": 60, "image_size": [3, 8, 8], "num_classes": 3}
    dataset.run(torchvision_of(**{"class": "FakeData", "arguments": arguments}), ANY)
    counts = read_manifest(dataset.FOLDER).images
    assert sum(counts["test"]) == pytest.approx(12, abs=1)
    assert sum(counts["train"]) + sum(counts["test"]) == 60
    drawn = torchvision_datasets.FakeData(60, (3, 8, 8), 3)  # by one thread
    assert [sum(n) for n in zip(*counts.values(), strict=True)] == np.bincount([y for _, y in drawn]).tolist()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class": "CIFAR11"}, "found 'CIFAR11'; must be one of torchvision's datasets, such as CIFAR10; did you mean CIFAR10"),
        ({}, "CIFAR10 cannot be read from "),
        ({"class": "FakeData", "arguments": {"sise": 3}}, "FakeData cannot be read from "),
        ({"class": "Kinetics"}, "Kinetics cannot be read from "),
    ],
)  # fmt: skip
def test_what_torchvision_does_not_have_is_told_in_a_line(
    project: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(LaqError) as caught:
        dataset.run(torchvision_of(**changes), ANY)
    assert str(caught.value).startswith(f"dataset.class: {told}")
    assert "\n" not in str(caught.value)
    assert not list((project / "data").iterdir())


@needs(CLOTHING)
def test_real_photographs_of_clothes(project: Path) -> None:
    told = dataset.run(folder_of(path=str(CLOTHING), size=144), ANY)
    assert told.startswith("10 classes, images of 144 x 144 pixels: train 3068 ")
    counts = read_manifest(dataset.FOLDER).images
    assert {split: sum(n) for split, n in counts.items()} == {"train": 3068, "validation": 341, "test": 372}
    assert len(read_json(dataset.FOLDER / "classes.json")["names"]) == 10
