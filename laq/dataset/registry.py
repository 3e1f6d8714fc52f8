"""The registry of datasets: all that other modules know of a dataset stands in its entry here.

A new dataset is a module of this package with a function that writes its files, and an entry in this file.
This module imports no torch, so that ``params.yaml`` is read at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from laq.quantization.options import Option, nearest_name, whole_number

if TYPE_CHECKING:
    from laq.dataset.layout import Description


@dataclass(frozen=True)
class DatasetSource:
    """A dataset's entry.

    Attributes:
        name: in ``params.yaml`` and tables.
        writer: where to import the function from that writes the splits into a folder and returns their
            description (``laq.dataset.layout``), as "module:function"; it takes the options by name.
        options: its keys in ``params.yaml``, each of which it needs.
        description: what reports call it.
        classes: how many it has, where that is known before it is made.
        train_per_class: training images of each class, unless an option of that name says how many.
    """

    name: str
    writer: str
    options: Mapping[str, Option] = field(default_factory=dict)
    description: str = ""
    classes: int | None = None
    train_per_class: int | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its section."""
        options = {name: dict(option.schema) for name, option in self.options.items()}
        return {
            "type": "object",
            "properties": {"name": {"const": self.name}, **options},
            "required": ["name", *options],
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
        *most, last = self.options or [""]
        known = f"{', '.join(most)} and {last}" if most else last or "no options"
        for name in given:
            if name not in self.options:
                hint = nearest_name(name, list(self.options))
                raise ValueError(f"{name}: unknown key; {self.name} has {known}{hint}")
        if missing := [name for name in self.options if given.get(name) is None]:
            raise ValueError(f"{missing[0]}: missing; {self.name} needs {known}")
        for name, value in given.items():
            try:
                self.options[name](value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


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
            "glyphs, the built-in dataset of drawn characters (no photographs)",
            classes=100,
        ),
        DatasetSource("cifar100", "laq.dataset.cifar100:write_cifar100", classes=100, train_per_class=500),
    )
}


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
        return dict(self.model_extra or {})
