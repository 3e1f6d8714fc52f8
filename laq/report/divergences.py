"""The divergences within each subset: the median and mean over its pairs of classes, for each estimator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.divergence.files import ALTERNATIVES, PLANE, read_name
from laq.files import read_array
from laq.paths import DIVERGENCE
from laq.subsets.matrix import read_divergence
from laq.subsets.subset import Subset, pairs_of

Floats = NDArray[np.float64]
MAIN: Final = "main"
_STATISTICS: Final = {"median": "median_divergence_nats", "mean": "mean_divergence_nats"}


@dataclass(frozen=True)
class SubsetDivergences:
    """The divergences within each subset, and the subsets' classes.

    ``nats`` has a row per subset and columns (divergence, statistic), of which the first is the study's own.
    ``members`` (subsets, classes) is 1 for the classes of a subset and else 0.
    """

    nats: pd.DataFrame
    members: pd.DataFrame

    def as_rows(self) -> pd.DataFrame:
        """A row per divergence, statistic and subset."""
        columns: Any = self.nats.columns.to_list()
        rows = [
            {"divergence": name, "statistic": statistic, "subset": subset, "nats": value}
            for name, statistic in columns
            for subset, value in self.nats[name, statistic].items()
        ]
        return pd.DataFrame(rows).round(6)


def divergences_in(
    table: pd.DataFrame, members: pd.DataFrame | None = None, name: str = MAIN
) -> SubsetDivergences:
    """The study's own divergence as its ``table`` has it; without ``members`` no subsets share a class."""
    nats = table.groupby("subset")[list(_STATISTICS.values())].first()
    nats.columns = pd.MultiIndex.from_product([[name], _STATISTICS])
    if members is None:
        members = pd.DataFrame(np.eye(len(nats)), index=nats.index)
    return SubsetDivergences(nats, members)


def read_divergences(subsets: Sequence[Subset], folder: Path = DIVERGENCE) -> SubsetDivergences:
    """The divergences within ``subsets`` from all matrices that the stage ``divergence`` wrote.

    Raises:
        LaqError: the stage has not run.
    """
    matrix, main = read_divergence(folder)[0], read_name(folder)
    paths = sorted((folder / ALTERNATIVES).glob("*.npy"))
    others = {path.stem: read_array(path, float, matrix.shape) for path in paths}
    return subset_divergences({main: matrix, **{k: m for k, m in others.items() if k != main}}, subsets)


def read_plane(classes: int, folder: Path = DIVERGENCE) -> Floats:
    """Where the ``classes`` lie in a plane: (C, 5), the means and covariances of their images.

    Raises:
        LaqError: the file is missing or damaged.
    """
    return read_array(folder / PLANE, float, (classes, 5))


def subset_divergences(matrices: Mapping[str, Floats], subsets: Sequence[Subset]) -> SubsetDivergences:
    """The divergences within ``subsets`` from ``matrices`` (C, C) in nats, the study's own first."""
    names = [subset.name for subset in subsets]
    columns = {
        (name, statistic): [float(how(pairs_of(matrix, subset.classes))) for subset in subsets]
        for name, matrix in matrices.items()
        for statistic, how in (("median", np.median), ("mean", np.mean))
    }
    return SubsetDivergences(pd.DataFrame(columns, index=names), members_of(subsets))


def members_of(subsets: Sequence[Subset]) -> pd.DataFrame:
    """A table of 1 or 0: which classes (columns) the subsets have (rows)."""
    classes = sorted({number for subset in subsets for number in subset.classes})
    rows = [np.isin(classes, subset.classes) for subset in subsets]
    return pd.DataFrame(rows, [subset.name for subset in subsets], classes, dtype=np.float64)
