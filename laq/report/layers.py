"""The table of layers: what quantization does to each, as means over subsets."""

from typing import Final

import pandas as pd

from laq.paths import STUDY
from laq.quantization.methods.registry import places
from laq.report.plotted import NETWORKS, in_order
from laq.report.tables import BASE_OF, main_rows
from laq.study.tables import LAYERS, read_table

_KEY: Final = ["network", "method", "method_place", "bits", "bits_place", "layer", "layer_place"]
_MEANS: Final = ["relative_error", "layer_bits", "sparsity_percent"]
COLUMNS: Final = [*_KEY, *_MEANS, "subsets"]


def read_layers() -> pd.DataFrame:
    """The study's table of layers, a row per cell and layer, in the order of execution.

    Raises:
        LaqError: the file is missing or damaged.
    """
    numbers = ("bits", "sparsity_percent", "relative_error")
    return read_table(STUDY / LAYERS, {"cell": str, "layer": str} | dict.fromkeys(numbers, float))


def layer_means(layers: pd.DataFrame, measurements: pd.DataFrame) -> pd.DataFrame:
    """A row per network, method, bits and layer, for the study's first calibration.

    ``relative_error`` is ||X W - X_q W_q|| / ||X W|| on the calibration images, ``layer_bits`` the bits of
    the layer's weights, ``sparsity_percent`` the share of weights that are 0; each is the mean over cells.

    Args:
        layers: as ``read_layers`` gives it.
        measurements: the study's table, a row per cell.
    """
    cells = main_rows(measurements[measurements.method != "float"])
    rows = cells[["cell", "variant", "method", "bits", "subset"]].merge(
        layers.rename(columns={"bits": "layer_bits"}), on="cell"
    )
    bits = {name: place for place, name in enumerate(in_order(cells))}
    order = {name: place for place, name in enumerate(layers.layer.drop_duplicates())}
    rows = rows.assign(
        network=rows.variant.map(BASE_OF).map(NETWORKS),
        method_place=rows.method.map(places()),
        bits_place=rows.bits.map(bits),
        layer_place=rows.layer.map(order),
    )
    groups = rows.groupby(_KEY, sort=False)
    table = groups[_MEANS].mean().assign(subsets=groups.subset.nunique()).reset_index()
    by = ["network", "bits_place", "method_place", "layer_place"]
    return table.sort_values(by, ascending=[False, True, True, True], kind="stable").round(4)
