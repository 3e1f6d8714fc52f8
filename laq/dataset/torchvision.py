"""Datasets of torchvision for classification, by the names of their classes there."""

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final

import joblib
import numpy as np
from PIL import Image
from torchvision import datasets
from torchvision.datasets.vision import VisionDataset

from laq.dataset.decoding import (
    Decoded,
    Item,
    Shares,
    decode_all,
    md5_of,
    named_splits,
    read_pixels,
    split_by_seed,
    write_splits,
)
from laq.dataset.layout import Description, Split
from laq.errors import LaqError
from laq.files import digest, project_root
from laq.pictures import Preprocessing
from laq.quantization.options import nearest_name

_DRAWING: Final = Lock()
# What torchvision calls a split: the first of the names that a dataset knows.
_SPLITS: Final[Mapping[Split, Sequence[str]]] = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid"),
    "test": ("test",),
}
_KNOWN: Final = {
    name
    for name, value in vars(datasets).items()
    if inspect.isclass(value) and issubclass(value, VisionDataset) and value is not VisionDataset
}


def write_torchvision(folder: Path, **options: Any) -> Description:
    """Write the images of torchvision's dataset ``options["class"]`` into ``folder``.

    Raises:
        LaqError: torchvision has no such dataset, its files are missing or damaged, or it is not one of
            pictures of which each has a class.
    """
    preprocessing = Preprocessing(options["size"], options["resize"], options["interpolation"])
    shares = Shares(options["test_share"], options["validation_share"], options["seed"])
    parts = dict(_parts(options))
    places = [(split, part, place) for split, part in parts.items() for place in range(len(part))]
    with TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / "pixels"
        work = (joblib.delayed(_decoded)(part, place, preprocessing) for _, part, place in places)
        done = list(decode_all(work, len(places), target))
        if problem := next((one.problem for one in done if one.problem), ""):
            raise LaqError(f"dataset.class: {options['class']}: {problem}")
        names = _class_names(next(iter(parts.values())), {one.label for one in done})
        items = [
            Item(f"{place:09d}", names[one.label], split, one.md5, row)
            for row, ((split, _, place), one) in enumerate(zip(places, done, strict=True))
        ]
        splits = named_splits(items) or split_by_seed(items, shares)
        write_splits(
            folder, splits, read_pixels(target, len(items), preprocessing.size), list(names.values())
        )
    source = {"class": options["class"], "sha256": digest([one.md5 for one in done])}
    return Description(list(names.values()), preprocessing, source=source, name=options["class"])


def _parts(options: Mapping[str, Any]) -> Iterator[tuple[Split | None, VisionDataset]]:
    """The dataset's splits, or all of it under None where it has none."""
    name = options["class"]
    if name not in _KNOWN:
        raise LaqError(
            f"dataset.class: found {name!r}; must be one of torchvision's datasets, such as CIFAR10"
            f"{nearest_name(name, sorted(_KNOWN))}"
        )
    known = _parameters(getattr(datasets, name))
    if "train" in known:
        yield "train", _made(options, train=True)
        yield "test", _made(options, train=False)
    elif "split" in known:
        found = {split: _first(options, names) for split, names in _SPLITS.items()}
        if not found["test"]:  # they keep it to themselves
            found = {**found, "test": found["validation"], "validation": None}
        for split, part in found.items():
            if part:
                yield split, part
    else:
        yield None, _made(options)


def _parameters(kind: type) -> set[str]:
    """The names of the arguments that make a dataset, also of those that a class hands on to its base."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= parameters.keys()
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def _first(options: Mapping[str, Any], names: Sequence[str]) -> VisionDataset | None:
    """The split that is called by the first of the names which the dataset knows."""
    for name in names:
        try:
            return _made(options, split=name)
        except _UnknownSplit:
            continue
    return None


class _UnknownSplit(Exception):  # noqa: N818 (it is no error)
    """The dataset has no split of this name."""


def _made(options: Mapping[str, Any], **split: Any) -> VisionDataset:
    kind = getattr(datasets, options["class"])
    known = _parameters(kind)
    root = project_root() / Path(options["root"]).expanduser()
    given = {"root": str(root), "download": options["download"]}
    arguments = {name: value for name, value in given.items() if name in known} | split | options["arguments"]
    try:
        made: VisionDataset = kind(**arguments)
    except Exception as error:  # what datasets raise is as various as they are
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        if isinstance(error, ValueError) and "split" in split and "split" in reason:
            raise _UnknownSplit from error
        raise LaqError(
            f"dataset.class: {options['class']} cannot be read from {root} ({reason}); put it there, or set "
            "dataset.download: true"
        ) from error
    return made


def _decoded(part: VisionDataset, place: int, preprocessing: Preprocessing) -> Decoded:
    # FakeData draws from torch's global generator, which all threads share.
    alone = _DRAWING if isinstance(part, datasets.FakeData) else nullcontext()
    try:
        with alone:
            picture, label = part[place]
    except Exception as error:  # noqa: BLE001 (what they raise of broken files is as various as they are)
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        return Decoded(problem=f"picture {place} cannot be read ({reason})")
    if not isinstance(picture, Image.Image) or not isinstance(label, Integral):
        found = f"{type(picture).__name__} and {type(label).__name__}"
        return Decoded(problem=f"holds {found}; must hold pictures and numbers of classes")
    image = np.asarray(preprocessing(picture)).transpose(2, 0, 1)
    return Decoded(md5_of(image.tobytes()), image, int(label))


def _class_names(part: VisionDataset, labels: set[int | None]) -> dict[int | None, str]:
    """The name of each label, or else its number."""
    told = [n if isinstance(n, str) else n[0] for n in getattr(part, "classes", ())]
    twice = {name for name, count in Counter(told).items() if count > 1}
    numbers = sorted(label for label in labels if label is not None)
    if not told or not 0 <= numbers[0] <= numbers[-1] < len(told):
        return {number: str(number) for number in numbers}
    return {n: f"{name} ({n})" if name in twice else name for n, name in enumerate(told)}
