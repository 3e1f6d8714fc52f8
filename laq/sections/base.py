"""What sections of ``params.yaml`` are made of."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FILE = Path("params.yaml")


class Section(BaseModel):
    """A part of ``params.yaml``: frozen, and with no keys but those named here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, none of which stands twice.

    Raises:
        ValueError: one does.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"each may stand but once, found {list(values)}")
    return values


_T = TypeVar("_T")
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Several = Annotated[tuple[_T, ...], Field(min_length=1), AfterValidator(different)]
