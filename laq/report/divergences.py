"""The divergence within each subset: medians and means over its pairs of classes, by every divergence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.divergence import ALTERNATIVES, FOLDER, MATRIX, read_name
from laq.files import need
from laq.subsets import Subset

Floats = NDArray[np.float64]
MAIN: Final = "main"
RELABELLINGS: Final = 9999
_CHUNK: Final = 50  # relabellings worked on at once: memory, not results
_STATISTICS: Final = {"median": "median_divergence_nats", "mean": "mean_divergence_nats"}


@dataclass(frozen=True)
class SubsetDivergences:
    """Per subset: ``nats``, with columns (divergence, statistic), of which the first is the study's own.

    ``members`` (subsets, classes) is 1 for the classes that a subset has, else 0; None where these are not
    known. ``relabelled`` (k, subsets) are medians of the study's own with the names of its classes permuted;
    None where there is no matrix.
    """

    nats: pd.DataFrame
    members: pd.DataFrame | None = None
    relabelled: pd.DataFrame | None = None


def divergences_in(table: pd.DataFrame, members: pd.DataFrame | None = None) -> SubsetDivergences:
    """Those in the study's ``table``, of the study's own divergence; there is no matrix to permute."""
    nats = table.groupby("subset")[list(_STATISTICS.values())].first()
    nats.columns = pd.MultiIndex.from_product([[MAIN], _STATISTICS])
    return SubsetDivergences(nats, members)


def read_divergences(subsets: Sequence[Subset], seed: int, folder: Path = FOLDER) -> SubsetDivergences:
    """The divergences within ``subsets`` by all matrices that the stage ``divergence`` wrote.

    Raises:
        LaqError: the stage has not run.
    """
    matrix = np.load(need(folder / MATRIX))
    main = read_name(folder)
    others = {path.stem: np.load(path) for path in sorted((folder / ALTERNATIVES).glob("*.npy"))}
    return subset_divergences({main: matrix, **{k: m for k, m in others.items() if k != main}}, subsets, seed)


def subset_divergences(
    matrices: Mapping[str, Floats], subsets: Sequence[Subset], seed: int
) -> SubsetDivergences:
    """The divergences within ``subsets`` by ``matrices`` (C, C) in nats, the study's own first."""
    columns = {
        (name, statistic): [float(how(_pairs(matrix, s.classes))) for s in subsets]
        for name, matrix in matrices.items()
        for statistic, how in (("median", np.median), ("mean", np.mean))
    }
    own = next(iter(matrices.values()))
    names = [subset.name for subset in subsets]
    classes = [subset.classes for subset in subsets]
    members = [np.isin(np.arange(len(own)), chosen) for chosen in classes]
    null = relabelled_medians(own, classes, RELABELLINGS, seed)
    return SubsetDivergences(
        pd.DataFrame(columns, index=names),
        pd.DataFrame(members, index=names, dtype=np.float64),
        pd.DataFrame(null, columns=names),
    )


def relabelled_medians(matrix: Floats, subsets: Sequence[Sequence[int]], count: int, seed: int) -> Floats:
    """Every subset's median divergence (count, subsets), had the matrix's classes other names.

    One permutation of the names for all subsets: those that share classes go on sharing them. As in
    Mantel's test (1967), what is permuted are the classes, which are the independent things, and not
    the subsets, which are not.
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


def _pairs(matrix: Floats, classes: Sequence[int]) -> Floats:
    return np.asarray(matrix[np.ix_(classes, classes)][np.triu_indices(len(classes), 1)])
