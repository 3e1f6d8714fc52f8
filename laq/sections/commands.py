"""The sections of commands that are no stages, such as ``quantize`` and ``advise``."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from laq.quantization.methods.registry import DEFAULT
from laq.quantization.options import OPTIONS
from laq.sections.base import Checked, Count, Section, Seed, Text
from laq.sections.study import Base, Bits, Grid, MethodName

ALL: Final = "all"  # subsets


class Quantize(Section):
    """What the command ``quantize`` does unless it is told otherwise."""

    subset: Text
    bits: Bits
    method: MethodName


class Export(Section):
    """What the command ``export`` does unless it is told otherwise.

    Left out: 8 bits, which become 7 where ``vnni`` does not say that the file is only for processors that add
    products in 32 bits. ``storage`` is that of weights with 4 bits and fewer.
    """

    bits: Bits = 8
    method: MethodName = DEFAULT
    activations: Annotated[int | str | dict[str, int] | None, Checked(OPTIONS["activations"])] = 8
    storage: Literal["auto", "int8", "int4"] = "auto"
    vnni: bool = False


class Compare(Section):
    """Which two studies the command ``compare`` puts beside each other."""

    first: Text
    second: Text


class Advise(Grid):
    """Which networks the command ``advise`` chooses from, by which images, and what it promises.

    ``lose`` are the points of accuracy that they may lose, with this ``confidence``. ``selection`` says which
    images choose: those of validation, or a share of each class's test images, drawn by the seed, so that
    the others report (``split``). ``auto`` is validation where the network has not learned from these.
    ``activations`` are the bits of all candidates' activations; left out, they are the study's.
    """

    activations: Annotated[int | str | dict[str, int] | None, Checked(OPTIONS["activations"])] = None
    lose: Annotated[float, Field(ge=0, le=100)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    selection: Literal["auto", "validation", "split"] = "auto"
    selection_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    selection_seed: Seed = 0


class Tolerance(Section):
    """How far a value may be from the published one on another machine, and why.

    It is for cells of some methods and bases, all of them where none are named: ``points`` of what is in
    percent or points, and a share ``relative`` of everything else.
    """

    methods: tuple[MethodName, ...] = ()
    bases: tuple[Base, ...] = ()
    points: Annotated[float, Field(ge=0, le=100)]
    relative: Annotated[float, Field(ge=0, le=1)]
    why: Annotated[str, Field(min_length=1)]

    def names(self, row: Mapping[str, Any]) -> bool:
        """Whether it is for a row of the study's table."""
        base = "finetuned" if str(row["variant"]).startswith("finetuned") else "original"
        return (not self.methods or row["method"] in self.methods) and (not self.bases or base in self.bases)


class Verify(Section):
    """How many published cells the command ``verify`` draws (0: all) by which seed, and its tolerances."""

    cells: Count
    seed: Seed
    tolerances: tuple[Tolerance, ...] = ()
