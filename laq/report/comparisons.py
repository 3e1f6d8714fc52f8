"""The table of paired comparisons: which calibration, network, method or allocation keeps more accuracy?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import pandas as pd

from laq.quantization.methods.registry import sort_methods
from laq.report.mixed_model import mixed_model
from laq.report.paired_tests import paired_effects, with_holm
from laq.report.tables import GROUP, complete
from laq.sections.report import Report
from laq.study.tables import NO_IMAGES

CALIBRATION: Final = "calibration"
FINETUNING: Final = "finetuning"
METHOD: Final = "method"
ALLOCATION: Final = "allocation"
FAMILY: Final = ["question", "score"]
COLUMNS: Final = [
    *FAMILY, "first", "second", *GROUP,
    "n", "effect", "low", "high", "d_z", "p_value", "p_holm",
    "low_classes", "high_classes", "p_classes", "p_classes_holm", "size_ratio",
]  # fmt: skip
_SCORE: Final = "top1_sub_percent"
_DROP: Final = "drop_sub_points"
_ORIGINAL: Final = ("original", "quantized")
_FINETUNED: Final = ("finetuned", "finetuned_quantized")


@dataclass(frozen=True)
class _Contrast:
    """The two sides of a question: cells that differ in ``what`` and agree in the rest of ``GROUP``."""

    question: str
    what: str
    first: pd.DataFrame
    second: pd.DataFrame
    score: str = _SCORE

    def pairs(self) -> pd.DataFrame:
        """The cells that both sides have, a row per pair; columns of the second side end in ``_second``.

        Paired cells have the same seed. If one side uses no calibration images, as round-to-nearest does,
        it has no seed either: its cells are then paired with every calibration and seed of the other side.
        """
        without_images = {bool((side.calibration == NO_IMAGES).all()) for side in (self.first, self.second)}
        apart = {self.what} if len(without_images) == 1 else {self.what, "calibration", "seed"}
        on = [name for name in ("subset", *GROUP, "seed") if name not in apart]
        found = self.first.merge(self.second, on=on, suffixes=("", "_second"))
        if "calibration" in apart and self.what != "calibration":
            used = found.calibration.where(found.calibration != NO_IMAGES, found.calibration_second)
            found = found.assign(calibration=used)
        return found.assign(difference=found[self.score] - found[f"{self.score}_second"])


def comparisons(table: pd.DataFrame, members: pd.DataFrame | None, params: Report) -> pd.DataFrame:
    """A row per question, pair of choices, variant, method, bits and calibration.

    Args:
        table: a row per cell and seed, with drops (``tables.with_drops``).
        members: the subsets' classes, if they are known (``divergences.SubsetDivergences``).
        params: resamples, permutations, confidence and seed.

    ``effect`` is the mean over n subsets of ``first`` - ``second`` in points of ``score``; each subset's
    seeds are averaged first. Beside it stand an interval (bootstrap over subsets), d_z (mean / standard
    deviation of the differences), a p-value (sign flips) and ``size_ratio``, the mean size of ``first``
    divided by that of ``second``. These treat subsets as independent; columns that end in ``_classes``
    account for the classes that subsets share (``mixed_model.mixed_model``). Both p-values are corrected by
    Holm's method over all rows of a question and score. The column that ``first`` and ``second`` stand for is
    empty. A question has no rows if the study lacks one of its sides.

    - ``calibration`` compares images of the subset with images of all classes.
    - ``finetuning`` compares fine-tuning on the subset with the original network, by the score and by the
      drop against the own network in float.
    - ``method`` compares every pair of methods, so that no method is chosen by the numbers it is tested on.
    - ``allocation`` compares ``auto:N``, bits by layer for these classes, with N bits everywhere.
    """
    rows = [row for contrast in _contrasts(table) for row in _rows(contrast, members, params)]
    return with_holm(rows, FAMILY).reindex(columns=COLUMNS)


def _contrasts(table: pd.DataFrame) -> Iterator[_Contrast]:
    subset, every = (table[table.calibration == used] for used in ("subset", "all"))
    yield _Contrast(CALIBRATION, "calibration", subset, every)
    tuned, plain = (table[table.variant.isin(side)] for side in (_FINETUNED, _ORIGINAL))
    yield _Contrast(FINETUNING, "variant", tuned, plain)
    lossy, plainly = (side[side.method != "float"] for side in (tuned, plain))
    yield _Contrast(FINETUNING, "variant", lossy, plainly, _DROP)
    methods = sort_methods(table.method[table.method != "float"])
    for second, first in combinations(methods, 2):
        ours, theirs = (table[table.method == method] for method in (first, second))
        yield _Contrast(METHOD, "method", ours, theirs)
    yield from _allocations(table)


def _allocations(table: pd.DataFrame) -> Iterator[_Contrast]:
    for (method, bits), first in table.groupby(["method", "bits"], sort=False):
        if found := re.fullmatch(r"auto:(\d+)", str(bits)):
            second = table[(table.method == method) & (table.bits == found[1])]
            yield _Contrast(ALLOCATION, "bits", first, second)


def _rows(contrast: _Contrast, members: pd.DataFrame | None, params: Report) -> Iterator[dict[str, Any]]:
    keys = [*GROUP, f"{contrast.what}_second"]
    pairs = contrast.pairs()
    sizes = pairs.groupby(keys)[["size_bytes", "size_bytes_second"]].mean()
    wide = pairs.pivot_table("difference", "subset", keys, sort=False)  # the mean over seeds
    for differences in complete(wide):
        estimates = _estimates(differences, members, params)
        for key, estimate in zip(differences.columns, estimates, strict=True):
            about = dict(zip(keys, key, strict=True))
            yield {
                "question": contrast.question,
                "score": contrast.score,
                "first": about[contrast.what],
                "second": about.pop(keys[-1]),
                **about | {contrast.what: ""},
                **estimate,
                "size_ratio": sizes.size_bytes[key] / sizes.size_bytes_second[key],
            }


def _estimates(
    differences: pd.DataFrame, members: pd.DataFrame | None, params: Report
) -> list[dict[str, float]]:
    """The estimates of each cell of ``differences`` (subsets, cells), by the columns of the table."""
    numbers = differences.T.to_numpy()
    found = paired_effects(numbers, params)
    rows = [{"n": found.n, **found.row(cell)} for cell in range(len(numbers))]
    if members is None:
        return rows
    shared = mixed_model(numbers, members.loc[differences.index].to_numpy(), params)
    return [estimate | shared.row(cell) for cell, estimate in enumerate(rows)]
