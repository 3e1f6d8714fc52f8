"""Two studies beside each other as Markdown."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pandas as pd

from laq.compare.pairing import SIDES, Comparison, alone, each, paired
from laq.quantization.methods.registry import label_of
from laq.report.markdown import line
from laq.report.tables import BASE_OF
from laq.study import IMAGES_OF

_ABOUT_PAIRS: Final = """\
Restricted top-1 in percent, choosing among the subset's classes: means over the n cells that both
studies have (the same classes, method and bits). The difference is second − first in points, cell by
cell: mean ± standard deviation over these n."""
_ABOUT_EACH: Final = """\
Each study by itself: restricted top-1 in percent, mean ± standard deviation over all of its n subsets.
Where n or the subsets differ, so may the means for that reason alone."""


def markdown(pair: Comparison, table: pd.DataFrame) -> str:
    """Which studies, what differs between them, and what was measured: in pairs, then each by itself."""
    lonely = alone(table)
    blocks = [f"# {pair.title}", _studies(pair), *_differences(pair), _count(table, lonely)]
    if (table.found == "both").any():
        blocks += [_ABOUT_PAIRS, _paired(table)]
    if lonely:
        blocks += [_ABOUT_EACH, _each(table)]
    return "\n\n".join(blocks) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "\n".join(line(*row) for row in [head, ["---"] * len(head), *rows])


def _studies(pair: Comparison) -> str:
    rows = [
        (side, s.run, s.experiment or "", f"{datetime.fromtimestamp(s.started / 1000, UTC):%Y-%m-%d %H:%M}")
        for side, s in zip(SIDES, (pair.first, pair.second), strict=True)
    ]
    return _table(["", "run", "DVC experiment", "sent (UTC)"], rows)


def _differences(pair: Comparison) -> Iterable[str]:
    found = pair.differences()
    yield _table(["what differs", *SIDES], found) if found else "Parameters and commits are the same."
    if other := pair.other_inputs():
        yield f"Not made from the same {', '.join(other)} (by DVC's hashes): differences may come from there."


def _count(table: pd.DataFrame, lonely: Mapping[str, int]) -> str:
    """How many quantized cells are shared, and which are not."""
    pairs = int(((table.found == "both") & (table.method != "float")).sum())
    told = f"{pairs} quantized cells are in both" if pairs else "Nothing quantized could be paired"
    if not lonely:
        return f"{told}."
    kinds = "; ".join(f"{what} ({count})" for what, count in lonely.items())
    return f"{told}; {sum(lonely.values())} have no partner: {kinds}."


def _paired(table: pd.DataFrame) -> str:
    head = ["network", "method", "bits", "n", *SIDES, "difference", *(f"KiB, {side}" for side in SIDES)]
    rows = [
        (
            *_place(row),
            row["n"],
            *(f"{row[f'mean_{side}']:.2f}" for side in SIDES),
            _spread(row["difference_mean"], row["difference_std"], sign="+"),
            *(_kib(row[f"bytes_{side}"]) for side in SIDES),
        )
        for row in paired(table).to_dict("records")
    ]
    return _table(head, rows)


def _each(table: pd.DataFrame) -> str:
    head = ["network", "method", "bits", *(f"{name}{s}" for s in SIDES for name in ("n, ", "", "KiB, "))]
    rows = [
        (*_place(row), *(cell for side in SIDES for cell in _side(row, side)))
        for row in each(table).to_dict("records")
    ]
    return _table(head, rows)


def _side(row: Mapping[Hashable, Any], side: str) -> tuple[object, str, str]:
    n = row[f"n_{side}"]
    if not n:
        return "", "", ""
    return n, _spread(row[f"mean_{side}"], row[f"std_{side}"]), _kib(row[f"bytes_{side}"])


def _place(row: Mapping[Hashable, Any]) -> tuple[str, str, str]:
    images = IMAGES_OF.get(row["calibration"])
    method = label_of(row["method"]) + (f", images of {images}" if images else "")
    return BASE_OF.get(row["variant"], row["variant"]), method, row["bits"]


def _spread(mean: float, std: float, sign: str = "") -> str:
    return f"{mean:{sign}z.2f}" if pd.isna(std) else f"{mean:{sign}z.2f} ± {std:.2f}"


def _kib(size: float) -> str:
    return f"{size / 1024:.1f}"
