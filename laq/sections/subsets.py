"""The section ``subsets``."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from laq.sections.base import Count, Positive, Section, Seed, Several


class Band(Section):
    """Subsets whose mean pairwise divergence lies between two bounds."""

    count: Positive
    minimum: Annotated[float, Field(ge=0)]
    maximum: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} must be below maximum {self.maximum}")
        return self


class Subsets(Section):
    """Which classes to keep: so many subsets of each kind and size."""

    sizes: Several[Annotated[int, Field(ge=2)]]
    similar: Count
    dissimilar: Count
    random: Count
    even: Count = 0
    bands: tuple[Band, ...] = ()
    given: tuple[tuple[str | int, ...], ...] = ()
    log: str | None = None
    seed: Seed
