"""The numbers of the page as JSON, for its element ``#data``.

The fields are::

classes: names, by number;  order: of the classes in the matrix;  matrix: nats, C x C
plane: [x, y, xx, xy, yy] of each class, the mean and covariance of its images in a plane; null without
subsets: {name, kind, classes, divergence}, columns of equal length
settings: [{bits, method, variant, calibration, base, kib, mean, slope}]: base is the number of the float
    setting, mean the interval of the points lost, slope the points lost more for each halving of the
    divergence and its interval; null where nothing is known
scores: {top1_sub_percent: [setting][subset], ...}, means over seeds; null where nothing was measured
choices: {bits: [[value, label], ...], ...};  start: the number of the setting that is shown first, the
    primary question's if it was measured
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from laq.charts.divergence_matrix import in_order as in_order_of_classes
from laq.charts.theme import Caption
from laq.errors import LaqError
from laq.files import need
from laq.quantization.methods.registry import label_of
from laq.report.page.contents import Floats, PageContents
from laq.report.plotted import in_order
from laq.report.tables import BALANCED, BASE_OF, DROPS
from laq.study.tables import IMAGES_OF, NO_IMAGES

REMEDY: Final = "name a folder that `laq report --publish FOLDER` wrote"


class Setting(NamedTuple):
    """A choice of the controls: a network (its ``variant`` before quantization), and how it is quantized."""

    bits: str
    method: str
    variant: str
    calibration: str


_LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    "bits": {"32": "32 (float)"},
    "variant": {"finetuned": "fine-tuned"},
    "calibration": {NO_IMAGES: "no images", **IMAGES_OF},
}


def page_data(contents: PageContents) -> str:
    """The JSON of the ``contents``, which is safe inside an HTML element, whatever names it has.

    Subsets without rows in the table are left out.

    Raises:
        LaqError: the table has a subset that is not among the subsets, or the matrix does not fit the names.
    """
    measured, classes = set(contents.table.subset), len(contents.class_names)
    if unknown := measured - {subset.name for subset in contents.subsets}:
        raise LaqError(
            f"page: subset {min(unknown)} of the table is not among the {len(contents.subsets)} subsets"
        )
    if contents.matrix.shape != (classes, classes):
        raise LaqError(f"page: divergences {contents.matrix.shape} do not fit {classes} class names")
    shown = [subset for subset in contents.subsets if subset.name in measured]
    return safe_json(
        {
            "classes": list(contents.class_names),
            "order": in_order_of_classes(contents.matrix),
            "matrix": _rounded(contents.matrix),
            "plane": None if contents.plane is None else _rounded(contents.plane),
            "subsets": {
                "name": [subset.name for subset in shown],
                "kind": [subset.kind for subset in shown],
                "classes": [list(subset.classes) for subset in shown],
                "divergence": [float(f"{subset.median_divergence:.6g}") for subset in shown],
            },
            **_measured(contents, [subset.name for subset in shown]),
        }
    )


def _rounded(numbers: Floats) -> list[list[float]]:
    """Numbers of four digits."""
    return [[float(f"{value:.4g}") for value in row] for row in numbers]


def safe_json(content: Any) -> str:
    """``content`` as JSON that is safe inside an HTML element, whatever names it contains."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def read_classes(page: Path) -> tuple[Floats, list[str], Floats | None]:
    """The divergences (C, C) in nats, the classes' names, and their plane (C, 5), as a ``page`` has them.

    Numbers have four digits. The plane is None in a page of a former report.

    Raises:
        LaqError: the file is missing or is no page of a study.
    """
    text = need(page, REMEDY).read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    try:
        content = json.loads(found[1] if found else "")
        matrix = np.array(content["matrix"], dtype=np.float64)
        plane = np.array(content["plane"], dtype=np.float64) if content.get("plane") else None
        return matrix, [str(name) for name in content["classes"]], plane
    except (ValueError, KeyError, TypeError) as error:
        raise LaqError(f"{page}: holds no data of a study; restore it from git") from error


def _measured(contents: PageContents, names: list[str]) -> dict[str, Any]:
    """The settings, and the scores of each for the subsets in the order of ``names``."""
    table = contents.table
    fields = list(Setting._fields)
    rows = table.assign(
        quantized=table.variant,
        variant=table.variant.replace(BASE_OF),
        calibration=table.calibration.where(table.method != "float", NO_IMAGES),
    )
    values = {field: list(rows[field].unique()) for field in fields} | {"bits": in_order(rows)}
    settings = sorted(
        {Setting(*row) for row in rows[fields].itertuples(index=False)},
        key=lambda setting: [values[f].index(value) for f, value in zip(fields, setting, strict=True)],
    )
    scores = {}
    for score in (*DROPS, *(name for name in BALANCED if name in rows), *DROPS.values()):
        means = rows.pivot_table(values=score, index=fields, columns="subset")
        grid = means.reindex(index=pd.MultiIndex.from_tuples(settings), columns=names).to_numpy()
        scores[score] = [[None if np.isnan(v) else round(float(v), 2) for v in line] for line in grid]
    labels = {
        **_LABELS,
        "method": {method: label_of(method) for method in rows.method} | {"float": "none (float)"},
    }
    bases = {s.variant: number for number, s in enumerate(settings) if s.method == "float"}
    return {
        "settings": [
            {**s._asdict(), "base": bases[s.variant], **_about(s, rows, contents.effects)} for s in settings
        ],
        "choices": {f: [[value, labels[f].get(value, value)] for value in values[f]] for f in fields},
        "start": _shown_first(settings, contents.study),
        "scores": scores,
    }


def _about(setting: Setting, rows: pd.DataFrame, effects: pd.DataFrame) -> dict[str, Any]:
    """The mean size of a setting's files, and what is known of its losses."""
    own = (rows[list(Setting._fields)] == list(setting)).all(axis=1)
    size = rows.size_bytes[own].mean() / 1024 if "size_bytes" in rows else np.nan
    key = pd.Series({**setting._asdict(), "variant": rows.quantized[own].iloc[0]})
    found = effects[(effects[key.index] == key).all(axis=1)]
    known = found.iloc[0] if len(found) else pd.Series(dtype=float)

    def numbers(*names: str) -> list[float] | None:
        values = [known.get(name, np.nan) for name in names]
        return None if any(map(pd.isna, values)) else [round(float(value), 4) for value in values]

    return {
        "kib": None if pd.isna(size) else round(float(size), 2),
        "mean": numbers("mean_low", "mean_high"),
        "slope": numbers("slope", "slope_low", "slope_high"),
    }


def _shown_first(settings: Sequence[Setting], study: Caption) -> int:
    """The number of the primary question's setting; else one at the fewest bits."""
    asked = [s for s in settings if (s.method, s.bits) == (study.method, study.bits)]
    quantized = [s for s in settings if s.method != "float"]
    return settings.index([*asked, *quantized, *settings][0])
