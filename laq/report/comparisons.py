"""The table of paired comparisons: which calibration, network, method or allocation keeps more accuracy?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.quantization.methods.registry import name_with, sort_methods, split_name
from laq.report.mixed_model import Models
from laq.report.tables import BASE_OF, GROUP, by_seed, complete
from laq.sections.report import Report
from laq.study.tables import NO_IMAGES

LOSS: Final = "loss"
CALIBRATION: Final = "calibration"
FINETUNING: Final = "finetuning"
METHOD: Final = "method"
ALLOCATION: Final = "allocation"
TUNING: Final = "tuning"
COLUMNS: Final = [
    "question", "score", "first", "second", *GROUP,
    "n", "seeds", "effect", "low", "high", "p_value", "class_share", "size_ratio",
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
            found = found.assign(calibration=used, seed=found.seed.fillna(found.seed_second))
        return found.assign(difference=found[self.score] - found[f"{self.score}_second"])


def comparisons(table: pd.DataFrame, members: pd.DataFrame, params: Report) -> pd.DataFrame:
    """A row per question, pair of choices, variant, method, bits and calibration.

    Args:
        table: a row per cell and seed, with drops (``tables.with_drops``).
        members: the subsets' classes (``divergences.SubsetDivergences``).
        params: draws, confidence and seed.

    ``effect`` is the mean over n subsets of ``first`` - ``second`` in points of ``score``; each subset's
    seeds are averaged first. Its interval and p-value are those of ``mixed_model.MixedModel``. ``size_ratio``
    is the mean size of ``first`` divided by that of ``second``. The column that ``first`` and ``second``
    stand for is empty. A question has no rows if the study lacks one of its sides.

    - ``loss`` is what quantization loses against the same network in float.
    - ``calibration`` compares images of the subset with images of all classes.
    - ``finetuning`` compares fine-tuning on the subset with the original network, by the score and by the
      drop against the own network in float.
    - ``method`` compares every pair of methods, so that no method is chosen by the numbers it is tested on.
    - ``allocation`` compares ``auto:N``, bits by layer for these classes, with N bits everywhere.
    - ``tuning`` compares networks that are tuned to the subset's classes with those tuned to all.
    """
    models = Models(members, params)
    rows = [row for contrast in _contrasts(table) for row in _rows(contrast, models)]
    return pd.DataFrame(rows, columns=COLUMNS).round(6)


def _contrasts(table: pd.DataFrame) -> Iterator[_Contrast]:
    for variant, base in BASE_OF.items():
        if (lossy := table[table.variant == variant]).empty:
            continue
        # The float networks that these were made from, in the same rows, lose nothing.
        sizes = lossy.subset.map(table[table.variant == base].set_index("subset").size_bytes)
        floats = lossy.assign(variant=base, size_bytes=sizes, **{_DROP: 0.0})
        yield _Contrast(LOSS, "variant", lossy, floats, _DROP)
    subset, every = (table[table.calibration == used] for used in ("subset", "all"))
    yield _Contrast(CALIBRATION, "calibration", subset, every)
    tuned, plain = (table[table.variant.isin(side)] for side in (_FINETUNED, _ORIGINAL))
    yield _Contrast(FINETUNING, "variant", tuned, plain)
    lossy, plainly = (side[side.method != "float"] for side in (tuned, plain))
    yield _Contrast(FINETUNING, "variant", lossy, plainly, _DROP)
    names = sort_methods(table.method[table.method != "float"])
    by_name = {name: table[table.method == name] for name in names}
    for second, first in combinations(names, 2):
        yield _Contrast(METHOD, "method", by_name[first], by_name[second])
    for name in names:
        method, loss = split_name(name)
        if loss == "subset" and (other := name_with(method, "all")) in by_name:
            yield _Contrast(TUNING, "method", by_name[name], by_name[other])
    yield from _allocations(table)


def _allocations(table: pd.DataFrame) -> Iterator[_Contrast]:
    for (method, bits), first in table.groupby(["method", "bits"], sort=False):
        if found := re.fullmatch(r"auto:(\d+)", str(bits)):
            second = table[(table.method == method) & (table.bits == found[1])]
            yield _Contrast(ALLOCATION, "bits", first, second)


def _rows(contrast: _Contrast, models: Models) -> Iterator[dict[str, Any]]:
    keys = [*GROUP, f"{contrast.what}_second"]
    pairs = contrast.pairs()
    sizes = pairs.groupby(keys)[["size_bytes", "size_bytes_second"]].mean()
    cells: dict[Any, pd.DataFrame] = dict(list(pairs.groupby(keys, sort=False)))
    wide = pairs.pivot_table("difference", "subset", keys, sort=False)  # the mean over seeds
    for differences in complete(wide):
        subsets = differences.index
        repeated = [by_seed(cells[key], "difference", subsets) for key in differences.columns]
        found = models.of(subsets).estimate(differences.T.to_numpy(dtype=np.float64), repeated)
        for place, key in enumerate(differences.columns):
            about = dict(zip(keys, key, strict=True))
            yield {
                "question": contrast.question,
                "score": contrast.score,
                "first": about[contrast.what],
                "second": about.pop(keys[-1]),
                **about | {contrast.what: ""},
                "n": len(subsets),
                "seeds": max(len(repeated[place]), 1),
                **found.row(place),
                "size_ratio": sizes.size_bytes[key] / sizes.size_bytes_second[key],
            }
