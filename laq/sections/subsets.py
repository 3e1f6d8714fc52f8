"""The section ``subsets``."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from laq.quantization.options import either, matching, nearest_name, whole_number
from laq.sections.base import (
    UNIQUE,
    Checked,
    Count,
    Given,
    Positive,
    Section,
    Seed,
    Several,
    different,
)

ClassName = Annotated[str | int, Checked(either(matching(r"[^\0]+", "a class's name"), whole_number(0)))]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=2), AfterValidator(different), UNIQUE]


class Band(Section):
    """Subsets whose mean pairwise divergence lies between two bounds."""

    count: Positive
    minimum: Annotated[float, Field(ge=0)]
    maximum: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum: found {self.minimum:g}; must be below the maximum {self.maximum:g}")
        return self


class Subsets(Section):
    """Which classes to keep: so many subsets of each kind and size."""

    sizes: Several[Annotated[int, Field(ge=2)]]
    similar: Count
    dissimilar: Count
    random: Count
    even: Count = 0
    bands: tuple[Band, ...] = ()
    given: tuple[Classes, ...] = ()
    log: Given | None = None
    seed: Seed

    @property
    def counts(self) -> dict[str, int]:
        """How many subsets of each kind are chosen for each size."""
        of_bands = sum(band.count for band in self.bands)
        kinds = {kind: getattr(self, kind) for kind in ("similar", "dissimilar", "random", "even")}
        return {**kinds, "band": of_bands}

    def title(self, kind: str, size: int) -> str:
        """What the names of a kind's subsets of a size begin with; a number follows."""
        return f"{kind}{size}" if len(self.sizes) > 1 else kind

    @property
    def names(self) -> list[str]:
        """The names of all subsets, but of those of the log."""
        titles = {self.title(kind, size): n for size in self.sizes for kind, n in self.counts.items()}
        return [f"{t}-{i}" for t, n in {**titles, "given": len(self.given)}.items() for i in range(1, n + 1)]

    def unknown(self, name: str, *others: str) -> str:
        """What is wrong with a name that is none of a subset, nor one of ``others``; empty if it is one."""
        known = [*others, *self.names]
        if name in known or (self.log and re.fullmatch("log-[1-9][0-9]*", name)):
            return ""
        allowed = " or ".join([*others, "the name of a subset of the study"])
        example = f", such as {known[-1]}" if self.names else ""
        return f"found {name!r}; must be {allowed}{example}{nearest_name(name, known)}"

    @model_validator(mode="after")
    def _some_are_asked_for(self) -> Self:
        if not self.names and self.log is None:
            raise ValueError("none is asked for; give a count of similar, dissimilar, random or even above 0")
        return self
