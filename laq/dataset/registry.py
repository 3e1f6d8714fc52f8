"""The registry of datasets: all that other modules know of a dataset stands in its entry here.

A new dataset is a module of this package with a function that writes its files, and an entry in this file.
This module imports no torch, so that ``params.yaml`` is read at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from laq.files import project_root
from laq.paths import CIFAR100_COPY
from laq.pictures import Interpolation, Resize
from laq.quantization.options import BOOLEAN, TEXT, Option, nearest_name, number, one_of, whole_number

if TYPE_CHECKING:
    from laq.dataset.layout import Description


@dataclass(frozen=True)
class DatasetSource:
    """A dataset's entry.

    Attributes:
        name: in ``params.yaml`` and tables.
        writer: where to import the function from that writes the splits into a folder and returns their
            description (``laq.dataset.layout``), as "module:function"; it takes the options by name.
        options: its keys in ``params.yaml``.
        defaults: the values of those that may be left out.
        description: what reports call it.
        classes: how many it has, where that is known before it is made.
        train_per_class: training images of each class, unless an option of that name says how many.
        free: whether pictures of it may be given away with results.
        is_at_hand: whether it can be made of what is on this machine, given the options.
    """

    name: str
    writer: str
    options: Mapping[str, Option] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    classes: int | None = None
    train_per_class: int | None = None
    free: bool = False
    is_at_hand: Callable[[Mapping[str, Any]], bool] = lambda _: True

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its section."""
        options = {name: dict(option.schema) for name, option in self.options.items()}
        for name, value in self.defaults.items():
            options[name]["default"] = value
        return {
            "type": "object",
            "properties": {"name": {"const": self.name}, **options},
            "required": ["name", *(name for name in options if name not in self.defaults)],
            "additionalProperties": False,
        }

    def write(self, folder: Path, options: Mapping[str, Any]) -> "Description":
        """Write the splits into ``folder``, and describe them."""
        module, _, function = self.writer.partition(":")
        writer: Callable[..., Description] = getattr(import_module(module), function)
        return writer(folder, **options)

    def check(self, given: Mapping[str, Any]) -> None:
        """Check the options that are given.

        Raises:
            ValueError: one is missing, unknown or not allowed.
        """
        known = _listed(list(self.options))
        for name in given:
            if name not in self.options:
                hint = nearest_name(name, list(self.options))
                raise ValueError(f"{name}: unknown key; {self.name} has {known}{hint}")
        needed = [name for name in self.options if name not in self.defaults]
        if missing := [name for name in needed if given.get(name) is None]:
            raise ValueError(f"{missing[0]}: missing; {self.name} needs {_listed(needed)}")
        for name, value in given.items():
            try:
                self.options[name](value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def _listed(names: Sequence[str]) -> str:
    *most, last = names or ["no options"]
    return f"{', '.join(most)} and {last}" if most else last


def _keys_and_values(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


# How pictures become images (``laq.pictures``), and how images are split where their source does not say it.
_IMAGES: Final = {
    "size": whole_number(1, 4096),
    "resize": one_of(*get_args(Resize)),
    "interpolation": one_of(*get_args(Interpolation)),
}
_IMAGES_DEFAULTS: Final = {"resize": "crop", "interpolation": "bilinear"}
_SHARES: Final = {
    "test_share": number(above=0, most=0.5),
    "validation_share": number(least=0, most=0.4),
    "seed": whole_number(0, 2**32 - 1),
}
_SHARES_DEFAULTS: Final = {"test_share": 0.2, "validation_share": 0.0, "seed": 0}
_ARGUMENTS: Final = Option(
    _keys_and_values, "keys and values, which torchvision's class takes", {"type": "object"}
)

DATASETS: Final[Mapping[str, DatasetSource]] = {
    source.name: source
    for source in (
        DatasetSource(
            "glyphs",
            "laq.dataset.glyphs:write_glyphs",
            {
                "train_per_class": whole_number(1),
                "test_per_class": whole_number(1),
                "seed": whole_number(0, 2**32 - 1),
            },
            description="glyphs, the built-in dataset of drawn characters (no photographs)",
            classes=100,
            free=True,
        ),
        DatasetSource(
            "folder",
            "laq.dataset.folder:write_folder",
            {"path": TEXT, **_IMAGES, **_SHARES, "skip_broken": BOOLEAN},
            {**_IMAGES_DEFAULTS, **_SHARES_DEFAULTS, "skip_broken": False},
            is_at_hand=lambda options: (project_root() / options["path"]).exists(),
        ),
        DatasetSource(
            "torchvision",
            "laq.dataset.torchvision:write_torchvision",
            {
                "class": TEXT,
                "root": TEXT,
                "download": BOOLEAN,
                "arguments": _ARGUMENTS,
                **_IMAGES,
                **_SHARES,
            },
            {"download": False, "arguments": {}, **_IMAGES_DEFAULTS, **_SHARES_DEFAULTS},
            is_at_hand=lambda options: not options["download"],
        ),
        DatasetSource(
            "cifar100",
            "laq.dataset.cifar100:write_cifar100",
            classes=100,
            train_per_class=500,
            is_at_hand=lambda _: bool(os.environ.get(CIFAR100_COPY)),
        ),
    )
}


@dataclass(frozen=True)
class Needs:
    """What a study needs of its images, and which of its keys ask for that.

    Attributes:
        classes: of the dataset.
        train: training images of each class; each also needs one to be tested on.
        subset: the classes of its smallest subset.
        calibration: the training images of any such subset.
    """

    classes: tuple[int, str] = (2, "a subset")
    train: tuple[int, str] = (2, "a class's divergence")
    subset: int = 2
    calibration: tuple[int, str] = (1, "study.calibration_images")


def _known(name: str) -> str:
    if name not in DATASETS:
        hint = nearest_name(name, list(DATASETS))
        raise ValueError(f"found {name!r}; must be {', '.join(DATASETS)}{hint}")
    return name


class Dataset(BaseModel):
    """The section ``dataset`` of ``params.yaml``: a dataset's name, and its own options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: Annotated[str, AfterValidator(_known)]

    @model_validator(mode="after")
    def _options_are_the_datasets(self) -> Self:
        self.source.check(self.options)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        """What editors know: each dataset's name, with its own options."""
        return {"description": cls.__doc__, "anyOf": [source.schema for source in DATASETS.values()]}

    @property
    def source(self) -> DatasetSource:
        """The entry in the registry."""
        return DATASETS[self.name]

    @property
    def train_per_class(self) -> int | None:
        """How many training images each class has, where that is known."""
        return self.options.get("train_per_class", self.source.train_per_class)

    @property
    def options(self) -> dict[str, Any]:
        """What the writer takes."""
        return {**self.source.defaults, **(self.model_extra or {})}
