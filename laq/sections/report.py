"""The section ``report``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from laq.sections.base import Section, Seed
from laq.sections.study import Bits, MethodName


class Primary(Section):
    """The one question that the study is made to answer, fixed before it runs; all others are exploratory.

    It is how much more a subset loses, quantized by ``method`` at ``bits``, for each halving of the
    divergence of its classes. ``outcome`` says among which classes the network chooses: the subset's or all.
    ``scale`` says what
    is compared: points of top-1 lost, or the logarithm of the quantized network's errors divided by the float
    network's.
    """

    outcome: Literal["top1_sub", "top1_all"]
    bits: Bits
    method: MethodName
    scale: Literal["points", "log_error_ratio"]

    @property
    def column(self) -> str:
        """The column of the tables that holds the outcome on its scale."""
        if self.scale == "log_error_ratio":
            return "errors_gained_log"
        return f"drop_{self.outcome.removeprefix('top1_')}_points"

    @model_validator(mode="after")
    def _is_measured(self) -> Self:
        if (self.outcome, self.scale) == ("top1_all", "log_error_ratio"):
            raise ValueError("scale: found 'log_error_ratio'; must be points for the outcome top1_all")
        return self


class Report(Section):
    """What is asked first, and how sure to be of what is said.

    No p-value is below 1 / (1 + ``draws``). A difference whose interval is within ``margin_points`` of 0 is
    called none.
    """

    primary: Primary
    draws: Annotated[int, Field(ge=199, le=10**6)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    margin_points: Annotated[float, Field(gt=0)]
    seed: Seed
