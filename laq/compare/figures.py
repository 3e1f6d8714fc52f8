"""The chart of two studies: the table that it shows."""

import pandas as pd

from laq.charts.theme import Chart
from laq.charts.two_studies import two_studies
from laq.compare.pairing import SIDES, Comparison
from laq.quantization.methods.registry import places
from laq.report.plotted import NETWORKS, in_order
from laq.report.tables import BASE_OF


def chart(table: pd.DataFrame, pair: Comparison) -> Chart:
    """Restricted top-1 against bits in both studies, over all subsets of each."""
    # The table lists all calibrations; the chart shows one, the subset's own images if there are several.
    table = table[table.calibration != "all"] if "subset" in set(table.calibration) else table
    bits = {name: place for place, name in enumerate(in_order(table[table.method != "float"]))}
    names = {
        side: f"{side}: {study.label}" for side, study in zip(SIDES, (pair.first, pair.second), strict=True)
    }
    rows = table.assign(
        network=table.variant.replace(BASE_OF).map(NETWORKS),
        bits_place=table.bits.map(bits),
        method_place=table.method.map(places()),
    )
    long = pd.concat(
        [rows.assign(study=names[side], percent=rows[f"top1_sub_percent_{side}"]) for side in SIDES]
    )
    columns = ["study", "network", "method", "method_place", "bits", "bits_place", "percent"]
    return two_studies(
        long.dropna(subset="percent")[columns], list(names.values()), set(table.method), pair.title
    )
