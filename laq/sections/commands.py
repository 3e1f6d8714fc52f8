"""The sections of commands that are no stages: ``quantize``, ``compare`` and ``advise``."""

from typing import Annotated, Final

from pydantic import Field

from laq.sections.base import Section, Text
from laq.sections.study import Bits, Grid, MethodName

ALL: Final = "all"  # subsets


class Quantize(Section):
    """What the command ``quantize`` does unless it is told otherwise."""

    subset: Text
    bits: Bits
    method: MethodName


class Compare(Section):
    """Which two studies the command ``compare`` puts beside each other."""

    first: Text
    second: Text


class Advise(Grid):
    """Which networks the command ``advise`` chooses from, and the points of accuracy they may lose."""

    lose: Annotated[float, Field(ge=0, le=100)]
