"""Writes the chosen network as an ONNX file and times it, where a time was asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from laq.advise.candidates import Candidates
from laq.advise.export import SubsetExport
from laq.advise.text import Findings, named
from laq.export.latency import Latency, latency
from laq.params import Params
from laq.paths import WEIGHTS

ONNX: Final = "network.onnx"


@dataclass(frozen=True)
class TimedFile:
    """The time of the chosen network's file, and the longest that was allowed.

    No file that must be the same when it is made again holds it.
    """

    time: Latency
    max_ms: float

    @property
    def is_slow(self) -> bool:
        """Whether a picture takes longer, in the median."""
        return self.time.milliseconds[1] > self.max_ms


def write_timed(
    folder: Path, found: Findings, measured: Candidates, params: Params, max_ms: float | None
) -> TimedFile | None:
    """Write the chosen network's ONNX file, unless it is too slow; None if no time or no network is asked of.

    Raises:
        LaqError: the network cannot be exported, or onnx or onnxruntime is missing.
    """
    if not (max_ms and found.chosen):
        return None
    export, path = SubsetExport(found.subset), folder / ONNX
    export.write_onnx(path, measured.folders[found.chosen["cell"]] / WEIGHTS, params.export)
    side = export.design.preprocessing.size
    made = TimedFile(latency(path, np.zeros((1, 3, side, side), np.uint8)), max_ms)
    if made.is_slow:
        path.unlink()
    return made


def too_slow(found: Findings, made: TimedFile, params: Params) -> str:
    """One line: why the network is not delivered, and what would help."""
    assert found.chosen
    integers = params.advise.activations or params.study.activations
    remedy = (
        "take"
        if integers
        else "set advise.activations: 8 in params.yaml, so that it computes in integers, or take"
    )
    return (
        f"{named(found.chosen)} is not delivered: its ONNX file takes {made.time}, and --max-ms allows "
        f"{made.max_ms:g}; {remedy} a smaller network"
    )
