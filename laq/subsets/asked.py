"""The classes that a user asks for on the command line: one of the study's subsets, or classes by name."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from math import nan
from typing import Final

from laq.dataset.images import read_class_names
from laq.dataset.layout import CLASSES
from laq.errors import LaqError
from laq.paths import DATASET
from laq.quantization.options import nearest_name
from laq.subsets.subset import Subset, read_subsets

ASKED: Final = "asked"  # name and kind of a subset that is not one of the study's


def check_asked(classes: str, subset: str) -> None:
    """See that one of the two is given.

    Raises:
        LaqError: both or neither are.
    """
    if bool(classes.strip()) == bool(subset):
        found = "both" if subset else "none"
        raise LaqError(f"--classes NAME,NAME,... or --subset NAME: give one of them, found {found}")


def asked_subset(classes: str, subset: str) -> Subset:
    """The subset of this name, with the divergences of its pairs, or else that of ``classes``.

    Classes that are named, by names or numbers with commas between them, have no divergences, so that they
    wait for no stage after ``network``.

    Raises:
        LaqError: the subset or a class is unknown, or fewer than two different classes are given.
    """
    if subset:
        subsets = {known.name: known for known in read_subsets()}
        if subset not in subsets:
            hint = nearest_name(subset, list(subsets))
            raise LaqError(f"--subset: found {subset!r}; must be {', '.join(subsets)}{hint}")
        return subsets[subset]
    names = read_class_names(DATASET)
    numbers = list(_numbers(classes, names))
    if len(set(numbers)) < max(len(numbers), 2):
        found = ", ".join(names[number] for number in numbers)
        raise LaqError(f"--classes: found {found or 'none'}; give two or more different ones")
    return Subset(ASKED, ASKED, tuple(numbers), tuple(names[n] for n in numbers), nan, nan, nan, nan)


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
