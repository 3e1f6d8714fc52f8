"""What sections of ``params.yaml`` are made of."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from laq.quantization.options import TEXT, Option, matching, number

FILE: Final = Path("params.yaml")


class Section(BaseModel):
    """A part of ``params.yaml``: frozen, and with no keys but those named here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Checked:
    """Makes a field what an option may be, in the option's words and with its JSON Schema."""

    option: Option

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check by the option, then by the field's type."""
        return core_schema.no_info_before_validator_function(self.option, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        """What editors know of the option."""
        return dict(self.option.schema)


def three_numbers(each: Option) -> Option:
    """A list of three numbers: one for red, green and blue."""

    def convert(value: Any) -> tuple[float, float, float]:
        red, green, blue = value
        return each(red), each(green), each(blue)

    schema = {"type": "array", "items": dict(each.schema), "minItems": 3, "maxItems": 3}
    return Option(convert, f"a list of three numbers, each {each.allowed}", schema)


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, none of which stands twice.

    Raises:
        ValueError: one does.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"found {list(values)}; each may stand but once")
    return values


_T = TypeVar("_T", bound=Hashable)
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Checked(TEXT)]
Sha256 = Annotated[str, Checked(matching("[0-9a-f]{64}", "a SHA-256, 64 hexadecimal digits"))]


class Given(Section):
    """A file from elsewhere: its path (from the project's folder) and its hash, by which a change is seen."""

    path: Text
    sha256: Sha256


Mean = Annotated[tuple[float, float, float], Checked(three_numbers(number(least=0, most=1)))]
Deviation = Annotated[tuple[float, float, float], Checked(three_numbers(number(above=0)))]
UNIQUE: Final = Field(json_schema_extra={"uniqueItems": True})
Different = Annotated[tuple[_T, ...], AfterValidator(different), UNIQUE]
Several = Annotated[tuple[_T, ...], Field(min_length=1), AfterValidator(different), UNIQUE]
