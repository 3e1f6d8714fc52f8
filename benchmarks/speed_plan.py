"""The plan of the speed benchmark: cases, contenders, and the jobs that combine them.

This module does without torch, to keep the process small that starts the measurements.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]

# GPFQ's authors take a quarter of the patches that do not overlap; this is the rate for kernels of 3 x 3.
RETAIN_RATE: Final = 0.25 / 9
# Each rival, and the contender of ours that does the same work on the same patches.
RIVALS: Final = {
    "brevitas-gpfq": "laq-gpfq",
    "brevitas-gptq": "laq-gptq",
    "brevitas-qronos": "laq-qronos",
    "textbook": "laq-gpfq-sampled",
}
# A rival runs right after its counterpart, so that lasting noise affects both.
CONTENDERS: Final = tuple(name for theirs, ours in RIVALS.items() for name in (ours, theirs))
OURS: Final = tuple(RIVALS.values())


@dataclass(frozen=True)
class Case:
    """A network, the side of its images in pixels, their number, and who takes part by default."""

    architecture: str
    size: int
    images: int = 64
    contenders: tuple[str, ...] = CONTENDERS


CASES: Final = {
    "resnet20": Case("resnet20", 32),
    "resnet18": Case("resnet18", 112),
    "mobilenet_v2": Case("mobilenet_v2", 112),
    "resnet50": Case("resnet50", 224, contenders=OURS),
    "resnet50-512": Case("resnet50", 224, images=512, contenders=OURS),
}


@dataclass(frozen=True)
class Setting:
    """The settings of all jobs of a run; ``images`` None stands for each case's own number."""

    bits: int = 4
    images: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """One measurement, taken in a process of its own."""

    case: str
    contender: str
    repeat: int
    images: int
    bits: int
    device: str

    def made(self, record: dict[str, Any]) -> bool:
        """Whether ``record`` is of this job."""
        return all(record.get(name) == value for name, value in vars(self).items())


def plan(cases: Sequence[str], contenders: Sequence[str], repeats: int, setting: Setting) -> Iterator[Job]:
    """The jobs, repeat by repeat; if ``contenders`` is empty, each case has its own."""
    for repeat in range(repeats):
        for case in cases:
            images = setting.images or CASES[case].images
            for name in contenders or CASES[case].contenders:
                yield Job(case, name, repeat, images, setting.bits, setting.device)
