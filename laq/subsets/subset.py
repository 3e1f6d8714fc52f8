"""A subset of classes, as the stage ``subsets`` writes it and all later ones read it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laq.errors import LaqError
from laq.files import read_json
from laq.paths import SUBSETS

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Subset:
    """Classes to keep, and the largest, smallest, mean and median divergence (nats) of their pairs."""

    name: str
    kind: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    max_divergence: float
    min_divergence: float
    mean_divergence: float
    median_divergence: float


def read_subsets(path: Path = SUBSETS) -> list[Subset]:
    """The subsets that the stage wrote."""
    return [
        Subset(**{**fields, "classes": tuple(fields["classes"]), "class_names": tuple(fields["class_names"])})
        for fields in read_json(path)
    ]


def describe(matrix: Matrix, names: Sequence[str], name: str, kind: str, classes: Sequence[int]) -> Subset:
    """The subset ``classes`` with the statistics of its pairs' divergences.

    Raises:
        LaqError: a class is named twice, or there is but one.
    """
    if len(set(classes)) < max(len(classes), 2):
        raise LaqError(f"subset {name}: needs two or more different classes, found {list(classes)}")
    pairs = pairs_of(matrix, classes)
    return Subset(
        name=name,
        kind=kind,
        classes=tuple(classes),
        class_names=tuple(names[c] for c in classes),
        max_divergence=float(pairs.max()),
        min_divergence=float(pairs.min()),
        mean_divergence=mean_of(pairs),
        median_divergence=float(np.median(pairs)),
    )


def pairs_of(matrix: Matrix, classes: Sequence[int]) -> Matrix:
    """The divergences (pairs,) of every two of ``classes``."""
    return np.asarray(matrix[np.ix_(classes, classes)][np.triu_indices(len(classes), 1)])


def mean_of(pairs: Matrix) -> float:
    """The mean, from the exact sum."""
    return math.fsum(pairs.tolist()) / len(pairs)
