"""A subset of classes, as the stage ``subsets`` writes it and all later ones read it."""

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from laq.errors import LaqError
from laq.files import read_json
from laq.paths import SUBSETS

Matrix = NDArray[np.float64]
_NAME: Final = re.compile(r"[\w-]+", re.ASCII)


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

    @property
    def names_in_order(self) -> tuple[str, ...]:
        """The classes' names in the order of their numbers, which is that of a cut network's outputs."""
        return tuple(name for _, name in sorted(zip(self.classes, self.class_names, strict=True)))


def read_subsets(path: Path = SUBSETS, **remedy: str) -> list[Subset]:
    """The subsets that the stage wrote; ``remedy`` is that of ``read_json``.

    Raises:
        LaqError: the file is missing or damaged.
    """
    subsets: list[Subset] = read_json(path, Annotated[list[Subset], AfterValidator(_checked)], **remedy)
    return subsets


def _checked(subsets: list[Subset]) -> list[Subset]:
    """The subsets, which must be different ones of two or more different classes."""
    if not subsets:
        raise ValueError("must hold one or more subsets")
    names = [subset.name for subset in subsets]  # which become parts of paths
    for s in subsets:
        if not _NAME.fullmatch(s.name):
            raise ValueError(
                f"name: found {s.name!r}; must be letters, digits, - and _, as parts of paths are"
            )
        if names.count(s.name) > 1:
            raise ValueError(f"{s.name}: must stand but once")
        if not (2 <= len(set(s.classes)) == len(s.classes) == len(s.class_names)) or min(s.classes) < 0:
            raise ValueError(f"{s.name}: classes must be two or more different ones, each with its name")
        if not all(map(math.isfinite, astuple(s)[-4:])):
            raise ValueError(f"{s.name}: divergences must be finite numbers")
    return subsets


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
    """The divergences (pairs,) of every two of ``classes``.

    Raises:
        LaqError: the matrix has no such class.
    """
    if (most := max(classes)) >= len(matrix):
        raise LaqError(f"class {most} is unknown; the divergence matrix has 0 to {len(matrix) - 1}")
    return np.asarray(matrix[np.ix_(classes, classes)][np.triu_indices(len(classes), 1)])


def mean_of(pairs: Matrix) -> float:
    """The mean, from the exact sum."""
    return math.fsum(pairs.tolist()) / len(pairs)
