"""The chart of the candidates: the tables that it shows, and what is marked in it."""

from typing import Final

import numpy as np
import pandas as pd

from laq.advise.text import NETWORKS, Findings, bound_of, kib, named, request_text
from laq.charts.candidates import Marked, candidates
from laq.charts.theme import Chart
from laq.report.tables import BASE_OF

_FAR: Final = 3  # times a candidate's size


def chart(found: Findings) -> Chart:
    """What each candidate loses against its file's size, with bounds, the request and the choice.

    The axis is of points lost, or of restricted top-1 where the request is one.
    """
    quantized = found.table[found.table.method != "float"]
    return candidates(rows(quantized, found), front(quantized, found), set(quantized.method),
                      request(found), _title(found))  # fmt: skip


def rows(quantized: pd.DataFrame, found: Findings) -> pd.DataFrame:
    """A row per candidate; only what was tested or is on the front has bounds: all would hide each other."""
    value, low, high = _columns(found)
    bounded = quantized.tested | quantized.pareto
    return pd.DataFrame(
        {
            "method": quantized.method,
            "network": quantized.variant.map(BASE_OF).map(NETWORKS),
            "bits": quantized.bits,
            "kib": quantized.size_bytes / 1024,
            "value": quantized[value],
            "low": quantized[low].where(bounded),
            "high": quantized[high].where(bounded),
        }
    )


def front(quantized: pd.DataFrame, found: Findings) -> pd.DataFrame:
    """The sizes and values of the best candidates up to each size."""
    best = np.minimum if found.wanted.lose is not None else np.maximum
    sorted_rows = quantized[quantized.pareto].sort_values(["size_bytes", "top1_sub_percent"])
    value = best.accumulate(sorted_rows[_columns(found)[0]].to_numpy(dtype=np.float64))
    return pd.DataFrame({"kib": sorted_rows.size_bytes / 1024, "value": value})


def request(found: Findings) -> Marked:
    """What is marked: a size limit that is far from all candidates is left out."""
    value = _columns(found)[0]
    floats = found.table[found.table.method == "float"]
    largest = found.table[found.table.method != "float"].size_bytes.max() / 1024
    limit, row = found.wanted.max_bytes / 1024, found.chosen
    return Marked(
        value=found.wanted.value,
        lost=found.wanted.lose is not None,
        kib=limit if limit <= _FAR * largest else np.inf,
        chosen={} if row is None else {"kib": row["size_bytes"] / 1024, "value": row[value]},
        floats={NETWORKS[str(v)]: float(y) for v, y in zip(floats.variant, floats[value], strict=True)},
    )


def _columns(found: Findings) -> tuple[str, str, str]:
    """The columns of what is drawn, and of its lower and its upper bound."""
    if found.wanted.lose is not None:
        return "lost_points", "lost_low_points", "lost_high_points"
    return "top1_sub_percent", "low_percent", "high_percent"


def _title(found: Findings) -> tuple[str, str]:
    row, n = found.chosen, found.original["n"]
    about = f"Asked for: {request_text(found)}; {n} images choose. Hollow marks: networks fine-tuned first. "
    if row is None:
        return f"{found.names[1]} for {found.title}", f"{about}None can be promised."
    value = f"{row['lost_points']:z.1f} points lost, bound {bound_of(row, found.wanted)}"
    chosen = "Chosen, and refused" if found.refused else "Chosen"
    return f"{found.names[1]} for {found.title}", f"{about}{chosen}: {named(row)}, {kib(row)} KiB, {value}."
