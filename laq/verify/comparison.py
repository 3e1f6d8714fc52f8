"""Published values and those measured again, row by row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from laq.sections.commands import Tolerance
from laq.study.outcomes import OUTCOMES

COMPARED: Final = (
    "top1_all_percent", "top5_all_percent", "top1_sub_percent", "top5_sub_percent",
    "balanced_top1_all_percent", "balanced_top1_sub_percent", "mean_bits", "levels",
    "sparsity_percent", "size_bytes", "compression", "relative_error_mean", "relative_error_logits",
    "relative_error_held_back",
    "top1_choosing_percent", "top1_reporting_percent", *OUTCOMES,
)  # fmt: skip
DIGITS: Final = 6  # of the published tables after the point
# Half a digit is lost by rounding, and another by float32 sums in the order of another batch.
_EQUAL: Final = 1.5 * 10**-DIGITS


@dataclass(frozen=True)
class Difference:
    """A published value that did not come out again."""

    column: str
    published: float
    measured: float

    @property
    def size(self) -> float:
        """How far the two are apart, in the column's unit."""
        return abs(self.measured - self.published)

    def __str__(self) -> str:
        """The column and both values."""
        return f"{self.column} {self.measured:.6g} instead of {self.published:.6g}"


@dataclass(frozen=True)
class Row:
    """A row of the published table, and what was measured for its cell.

    Attributes:
        published: the row.
        measured: of the same columns; empty where measuring failed.
        failure: why it failed.
        tolerances: those of the published parameters that name the row's method or variant.
    """

    published: Mapping[str, Any]
    measured: Mapping[str, Any]
    failure: str = ""
    tolerances: Sequence[Tolerance] = ()

    @property
    def differences(self) -> list[Difference]:
        """The values that did not come out again, exactly."""
        return list(_differences(self.published, self.measured))

    @property
    def outcome(self) -> str:
        """``equal``, ``within tolerance``, ``differs`` or ``not measured``."""
        if self.failure:
            return "not measured"
        if not self.differences:
            return "equal"
        allowed = any(all(_allows(t, difference) for difference in self.differences) for t in self.tolerances)
        return "within tolerance" if allowed else "differs"


def _differences(published: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[Difference]:
    for column in (name for name in COMPARED if name in published):
        old, new = (_number(values.get(column)) for values in (published, measured))
        equal = old == new if old is None or new is None else abs(old - new) < _EQUAL
        if not equal:
            yield Difference(column, *(float("nan") if value is None else value for value in (old, new)))


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else round(float(value), DIGITS)


def _allows(tolerance: Tolerance, difference: Difference) -> bool:
    # A loss is a difference of two accuracies, and as small as one of its rounding errors.
    if difference.column.endswith(("_percent", "_points")):
        return difference.size <= tolerance.points
    return difference.size <= tolerance.relative * abs(difference.published)
