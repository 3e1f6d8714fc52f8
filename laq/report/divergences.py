"""The divergences within each subset: the median and mean over its pairs of classes, for each estimator."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.divergence.files import ALTERNATIVES, read_name
from laq.files import read_array
from laq.paths import DIVERGENCE
from laq.subsets.matrix import read_divergence
from laq.subsets.subset import Subset, pairs_of

Floats = NDArray[np.float64]
MAIN: Final = "main"
RELABELLINGS: Final = 9999
_CHUNK: Final = 50  # relabellings per batch; it limits memory and changes no result
_STATISTICS: Final = {"median": "median_divergence_nats", "mean": "mean_divergence_nats"}


@dataclass(frozen=True)
class SubsetDivergences:
    """The divergences within each subset.

    ``nats`` has a row per subset and columns (divergence, statistic), of which the first is the study's own.
    ``members`` (subsets, classes) is 1 for the classes of a subset and else 0; None if these are unknown.
    ``relabelled`` (k, subsets) are medians of the study's own divergence after permuting the classes of its
    matrix; None if there is no matrix.
    """

    nats: pd.DataFrame
    members: pd.DataFrame | None = None
    relabelled: pd.DataFrame | None = None


def divergences_in(table: pd.DataFrame, members: pd.DataFrame | None = None) -> SubsetDivergences:
    """The study's own divergence, read from its ``table``, where there is no matrix to permute."""
    nats = table.groupby("subset")[list(_STATISTICS.values())].first()
    nats.columns = pd.MultiIndex.from_product([[MAIN], _STATISTICS])
    return SubsetDivergences(nats, members)


def read_divergences(subsets: Sequence[Subset], seed: int, folder: Path = DIVERGENCE) -> SubsetDivergences:
    """The divergences within ``subsets`` from all matrices that the stage ``divergence`` wrote.

    Raises:
        LaqError: the stage has not run.
    """
    matrix, main = read_divergence(folder)[0], read_name(folder)
    paths = sorted((folder / ALTERNATIVES).glob("*.npy"))
    others = {path.stem: read_array(path, float, matrix.shape) for path in paths}
    return subset_divergences({main: matrix, **{k: m for k, m in others.items() if k != main}}, subsets, seed)


def subset_divergences(
    matrices: Mapping[str, Floats], subsets: Sequence[Subset], seed: int
) -> SubsetDivergences:
    """The divergences within ``subsets`` from ``matrices`` (C, C) in nats, the study's own first."""
    names = [subset.name for subset in subsets]
    classes = [subset.classes for subset in subsets]
    columns = {
        (name, statistic): [float(how(pairs_of(matrix, c))) for c in classes]
        for name, matrix in matrices.items()
        for statistic, how in (("median", np.median), ("mean", np.mean))
    }
    own = next(iter(matrices.values()))
    members = [np.isin(np.arange(len(own)), chosen) for chosen in classes]
    null = relabelled_medians(own, classes, RELABELLINGS, seed)
    return SubsetDivergences(
        pd.DataFrame(columns, index=names),
        pd.DataFrame(members, index=names, dtype=np.float64),
        pd.DataFrame(null, columns=names),
    )


def relabelled_medians(matrix: Floats, subsets: Sequence[Sequence[int]], count: int, seed: int) -> Floats:
    """Every subset's median divergence (count, subsets) after permuting the classes of the matrix.

    A permutation is the same for all subsets, so those that share classes go on sharing them. As in
    Mantel's test (1967) the classes are permuted, which are independent, and not the subsets, which are
    not.
    """
    rng, medians = np.random.default_rng(seed), np.empty((count, len(subsets)))
    groups = list(_by_size(subsets))
    for begin in range(0, count, _CHUNK):
        size = min(_CHUNK, count - begin)
        names = rng.permuted(np.broadcast_to(np.arange(len(matrix)), (size, len(matrix))), axis=1)
        for places, first, second in groups:
            medians[begin : begin + size, places] = np.median(matrix[names[:, first], names[:, second]], -1)
    return medians


def _by_size(
    subsets: Sequence[Sequence[int]],
) -> Iterator[tuple[list[int], NDArray[np.intp], NDArray[np.intp]]]:
    """The subsets of each size: their places, and the classes of all their pairs (subsets, pairs)."""
    for size in sorted({len(classes) for classes in subsets}):
        places = [place for place, classes in enumerate(subsets) if len(classes) == size]
        classes = np.array([subsets[place] for place in places])
        first, second = np.triu_indices(size, 1)
        yield places, classes[:, first], classes[:, second]
