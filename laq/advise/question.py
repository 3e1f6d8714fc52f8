"""The question: for which classes, how large a network may be, and how accurate it must be."""

from dataclasses import dataclass
from math import inf

from laq.advise.choice import Wanted
from laq.errors import LaqError
from laq.sections.commands import Advise
from laq.subsets.asked import asked_subset, check_asked
from laq.subsets.subset import Subset


@dataclass(frozen=True)
class Question:
    """The classes, and the requirements on a network for them.

    Attributes:
        classes: Names or numbers of classes, separated by commas.
        subset: Instead of ``classes``, the name of one of the study's subsets.
        max_kb: The largest file in KiB; 0 or None allows any size.
        lose: The largest loss of restricted top-1 in points, against the original float network.
        max_ms: The longest that the network may take for a picture, as an ONNX file on one thread of this
            machine; 0 or None allows any time.
        keep: Instead of ``lose``, the least restricted top-1 in percent. Without either,
            ``advise.lose`` of ``params.yaml`` holds.

    Raises:
        LaqError: both or neither of ``classes`` and ``subset`` are given, or both ``lose`` and ``keep``.
    """

    classes: str = ""
    subset: str = ""
    max_kb: float | None = None
    max_ms: float | None = None
    lose: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        check_asked(self.classes, self.subset)
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

        Raises:
            LaqError: the subset or a class is unknown, or fewer than two different classes are given.
        """
        return asked_subset(self.classes, self.subset)
