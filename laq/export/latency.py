"""How long files take for a picture in onnxruntime, one beside the other; no file that is kept holds it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laq.machine import processor
from laq.run.runtime import logits, open_file

ROUNDS: Final = 60
WARMING: Final = 5  # of them, which do not count
_QUARTILES: Final = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Latency:
    """What one picture takes; ``str`` says it with the machine.

    Attributes:
        milliseconds: the quartiles of the runs: lower, median and upper.
        speedup: another file's time divided by this one's, round by round: likewise. None if there is none.
        runs: how many count.
        threads: of the runtime.
        processor: its name.
    """

    milliseconds: tuple[float, float, float]
    speedup: tuple[float, float, float] | None
    runs: int
    threads: int
    processor: str

    def __str__(self) -> str:
        return f"{self.figures} ({self.conditions})"

    @property
    def figures(self) -> str:
        """The medians, with the quartiles."""
        low, middle, high = self.milliseconds
        own = f"{middle:.2f} ms for a picture ({low:.2f} to {high:.2f})"
        if self.speedup is None:
            return own
        low, middle, high = self.speedup
        return f"{own}, {middle:.2f} times as fast as the float network's file ({low:.2f} to {high:.2f})"

    @property
    def conditions(self) -> str:
        """What was measured how."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"medians and quartiles of {self.runs} runs in onnxruntime; {threads}, {self.processor}"


def latency(path: Path, image: NDArray[Any], threads: int = 1, beside: Path | None = None) -> Latency:
    """The time of the file at ``path``, perhaps beside another one's, on an image (1, …) that both take.

    Raises:
        LaqError: onnxruntime cannot run one of them.
    """
    seconds = in_turns([open_file(file, threads) for file in (path, beside) if file], image)
    own, *others = seconds.T
    return Latency(
        milliseconds=_quartiles(1000 * own),
        speedup=_quartiles(others[0] / own) if others else None,
        runs=len(seconds),
        threads=threads,
        processor=processor(),
    )


def in_turns(sessions: Sequence[Any], image: NDArray[Any], rounds: int = ROUNDS) -> NDArray[np.float64]:
    """Seconds (rounds that count, sessions): all run once in every round, on the same busy machine."""
    taken = [[_seconds(session, image) for session in sessions] for _ in range(rounds)]
    return np.array(taken[min(WARMING, rounds - 1) :])


def _seconds(session: Any, image: NDArray[Any]) -> float:
    begin = time.perf_counter()
    logits(session, image)
    return time.perf_counter() - begin


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, _QUARTILES).tolist()
    return low, middle, high
