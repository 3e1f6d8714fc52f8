"""The sections of commands that are no stages: ``quantize``, ``compare`` and ``advise``."""

from typing import Annotated

from pydantic import Field

from laq.sections.base import Section
from laq.sections.study import Bits, Grid, MethodName


class Quantize(Section):
    """What the command ``quantize`` does unless it is told otherwise."""

    subset: str
    bits: Bits
    method: MethodName


class Compare(Section):
    """Which two studies the command ``compare`` puts beside each other."""

    first: str
    second: str


class Advise(Grid):
    """Which networks the command ``advise`` chooses from, and the points of accuracy they may lose."""

    lose: Annotated[float, Field(ge=0, le=100)]
