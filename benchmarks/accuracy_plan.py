"""The plan of the accuracy benchmark: questions, and the trials that answer them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

from laq.quantization import METHODS

Calibration = Literal["subset", "all"]
BITS: Final = (2, 3, 4, 8)
FEW_BITS: Final = (2, 3, 4)
FEW_IMAGES: Final = 64  # Brevitas takes long
MANY_IMAGES: Final = 256


@dataclass(frozen=True)
class Trial:
    """One way of quantizing, to be tried on every subset; the engine ``float`` quantizes nothing."""

    engine: Literal["float", "laq", "brevitas"]
    method: str = ""
    bits: int | str = 32
    alphabet: str = "symmetric"
    radius: float | str = 1.0
    threshold: float = 0.75
    images: int = MANY_IMAGES
    calibration: Calibration = "subset"

    def made(self, record: dict[str, Any]) -> bool:
        """Whether ``record`` is of this trial."""
        return all(record[name] == value for name, value in vars(self).items())


FLOAT: Final = Trial("float")


def plan(questions: Sequence[str]) -> list[Trial]:
    """The trials that the questions need, each once."""
    asked = (trial for question in questions for trial in QUESTIONS[question]())
    return list(dict.fromkeys([FLOAT, *asked]))


def beside_brevitas() -> Iterator[Trial]:
    """Does the engine do as well as Brevitas, with the same levels, steps and images?"""
    pairs = [("laq", m) for m in ("rtn", "gpfq", "gptq", "qronos")]
    pairs += [("brevitas", m) for m in ("gpfq", "gptq", "qronos")]
    for bits, calibration, (engine, method) in product(BITS, ("subset", "all"), pairs):
        yield Trial(engine, method, bits, images=FEW_IMAGES, calibration=calibration)  # type: ignore[arg-type]


def methods() -> Iterator[Trial]:
    """Which method loses least, each with steps chosen by the layer's error?"""
    for calibration, bits, method in product(("subset", "all"), BITS, METHODS):
        # Both sparse methods then set weights below 0.75 of a step to 0: L1 shrinks by 0.25 before it rounds.
        threshold = 0.25 if method == "gpfq_l1" else 0.75
        yield Trial("laq", method, bits, "symmetric", "error", threshold, calibration=calibration)  # type: ignore[arg-type]


def levels() -> Iterator[Trial]:
    """How much does one more level gain?"""
    for bits, alphabet, method in product(FEW_BITS, ("symmetric", "twos_complement"), ("gpfq", "qronos")):
        yield Trial("laq", method, bits, alphabet, "error")


def radii() -> Iterator[Trial]:
    """How is the radius best chosen?"""
    for bits, radius in product(FEW_BITS, (1.0, "auto", "mse", "error")):
        yield Trial("laq", "gpfq", bits, radius=radius)


def allocations() -> Iterator[Trial]:
    """Do bits spent where the subset's classes need them beat as many spent evenly?"""
    for bits in (3, "auto:3"):
        yield Trial("laq", "gpfq", bits, radius="error")


QUESTIONS: Final = {
    "brevitas": beside_brevitas,
    "levels": levels,
    "methods": methods,
    "radius": radii,
    "bits": allocations,
}
