"""What is asked for: classes, how large a network may be, and how accurate it must be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Final

import numpy as np

from laq.divergence import FOLDER as DIVERGENCE
from laq.errors import LaqError
from laq.files import need
from laq.subsets import Subset, describe, read_subsets

NAMES: Final[Path] = DIVERGENCE / "class_names.npy"
ASKED: Final = "asked"  # the name of a subset that is none of the study's, and its kind


@dataclass(frozen=True)
class Question:
    """Which classes, and what is wanted of the network for them.

    Attributes:
        classes: names or numbers, by commas; or else
        subset: the name of one of the study's.
        max_kb: KiB of the file at most; 0 or none for any size.
        lose: points of restricted top-1 below the original network's at most, or else
        keep: percent of restricted top-1 at least; with neither, ``advise.lose`` of ``params.yaml``.

    Raises:
        LaqError: not just one of ``classes`` and ``subset`` is given, or both ``lose`` and ``keep``.
    """

    classes: str = ""
    subset: str = ""
    max_kb: float | None = None
    lose: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if bool(self.classes.strip()) == bool(self.subset):
            found = "both" if self.subset else "none"
            raise LaqError(f"--classes NAME,NAME,... or --subset NAME: give one of them, found {found}")
        if self.lose is not None and self.keep is not None:
            raise LaqError(
                f"--lose {self.lose:g} and --keep {self.keep:g}: both say how accurate the network must be; "
                "give one of them"
            )

    @property
    def max_bytes(self) -> float:
        """The most that the file may take."""
        return 1024 * self.max_kb if self.max_kb else inf

    def least(self, original: float, usual: float) -> float:
        """The restricted top-1 wanted, in percent; ``original`` is the original network's in float.

        ``usual`` are the points that may be lost where the question does not say.
        """
        if self.keep is not None:
            return self.keep
        return original - (usual if self.lose is None else self.lose)

    def subset_of(self) -> Subset:
        """The classes with the divergences of their pairs.

        Raises:
            LaqError: the subset or a class is unknown, or there are not two different ones.
        """
        if self.subset:
            return _of_the_study(self.subset)
        matrix, names = np.load(need(DIVERGENCE / "matrix.npy")), [str(n) for n in np.load(need(NAMES))]
        classes = list(_numbers(self.classes, names))
        if len(set(classes)) < max(len(classes), 2):
            found = ", ".join(names[number] for number in classes)
            raise LaqError(f"--classes: two or more different ones are needed, found {found}")
        return describe(matrix, names, ASKED, ASKED, classes)


def _of_the_study(name: str) -> Subset:
    subsets = {subset.name: subset for subset in read_subsets()}
    if name not in subsets:
        raise LaqError(f"--subset: {name!r} is unknown; known: {', '.join(subsets)}")
    return subsets[name]


def _numbers(classes: str, names: Sequence[str]) -> Iterator[int]:
    """The classes' numbers; a name that is a number means the class of that name."""
    for entry in filter(None, map(str.strip, classes.split(","))):
        if entry in names:
            yield names.index(entry)
        elif entry.isdecimal() and int(entry) < len(names):
            yield int(entry)
        else:
            close = get_close_matches(entry, names, n=5, cutoff=0.5)
            meant = f"close: {', '.join(close)}; " if close else ""
            raise LaqError(
                f"--classes: unknown class {entry!r}; {meant}allowed are 0 to {len(names) - 1} and the names "
                f"in {NAMES}"
            )
