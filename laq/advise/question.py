"""The question: for which classes, how large a network may be, and how accurate it must be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, nan
from typing import Final

from laq.advise.choice import Wanted
from laq.dataset.images import read_class_names
from laq.dataset.layout import CLASSES
from laq.errors import LaqError
from laq.paths import DATASET
from laq.quantization.options import nearest_name
from laq.sections.commands import Advise
from laq.subsets.subset import Subset, read_subsets

ASKED: Final = "asked"  # name and kind of a subset that is not one of the study's


@dataclass(frozen=True)
class Question:
    """The classes, and the requirements on a network for them.

    Attributes:
        classes: Names or numbers of classes, separated by commas.
        subset: Instead of ``classes``, the name of one of the study's subsets.
        max_kb: The largest file in KiB; 0 or None allows any size.
        lose: The largest loss of restricted top-1 in points, against the original float network.
        keep: Instead of ``lose``, the least restricted top-1 in percent. Without either,
            ``advise.lose`` of ``params.yaml`` holds.

    Raises:
        LaqError: both or neither of ``classes`` and ``subset`` are given, or both ``lose`` and ``keep``.
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
        """The largest size of the file in bytes."""
        return 1024 * self.max_kb if self.max_kb else inf

    def wanted(self, usual: Advise) -> Wanted:
        """The request; what it leaves out is as usual."""
        if self.keep is not None:
            return Wanted(keep=self.keep, max_bytes=self.max_bytes, confidence=usual.confidence)
        lose = usual.lose if self.lose is None else self.lose
        return Wanted(lose, max_bytes=self.max_bytes, confidence=usual.confidence)

    def subset_of(self) -> Subset:
        """The classes; those of one of the study's subsets with the divergences of their pairs.

        Classes that are named need none, so that the answer waits for no stage after ``network``.

        Raises:
            LaqError: the subset or a class is unknown, or fewer than two different classes are given.
        """
        if self.subset:
            subsets = {subset.name: subset for subset in read_subsets()}
            if self.subset not in subsets:
                hint = nearest_name(self.subset, list(subsets))
                raise LaqError(f"--subset: found {self.subset!r}; must be {', '.join(subsets)}{hint}")
            return subsets[self.subset]
        names = read_class_names(DATASET)
        classes = list(_numbers(self.classes, names))
        if len(set(classes)) < max(len(classes), 2):
            found = ", ".join(names[number] for number in classes)
            raise LaqError(f"--classes: found {found or 'none'}; give two or more different ones")
        return Subset(ASKED, ASKED, tuple(classes), tuple(names[c] for c in classes), nan, nan, nan, nan)


def _numbers(classes: str, names: Sequence[str]) -> Iterator[int]:
    """The numbers of the classes; an entry that is both a name and a number means the class of that name."""
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
                f"in {DATASET / CLASSES}"
            )
