"""Writes the chosen network as an ONNX file and times it, where a time was asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from laq.advise.candidates import Candidates
from laq.advise.export import SubsetExport
from laq.advise.text import Findings, named
from laq.errors import LaqError
from laq.export.latency import Latency, latency
from laq.params import Params
from laq.paths import WEIGHTS

ONNX: Final = "network.onnx"


@dataclass(frozen=True)
class TimedFile:
    """The time of the chosen network's file, or what failed, and the longest time that was allowed.

    No file that must be the same when it is made again holds it.
    """

    time: Latency | Exception
    max_ms: float

    @property
    def refused(self) -> str:
        """Why the network is not delivered, the same each time; empty if it is. The median counts."""
        if isinstance(self.time, Exception):
            return "its ONNX file could not be made or timed"
        if self.time.milliseconds[1] > self.max_ms:
            return (
                f"its ONNX file takes longer than the {self.max_ms:g} ms for a picture that --max-ms allows"
            )
        return ""


def write_timed(
    folder: Path, found: Findings, measured: Candidates, params: Params, max_ms: float | None
) -> TimedFile | None:
    """Write the chosen network's ONNX file, unless it is refused; None if no time or no network is asked of.

    Nothing is raised, so that the evidence can be written before ``refusal`` tells what failed.
    """
    if not (max_ms and found.chosen):
        return None
    export, path = SubsetExport(found.subset), folder / ONNX
    side = export.design.preprocessing.size
    try:
        export.write_onnx(path, measured.folders[found.chosen["cell"]] / WEIGHTS, params.export)
        made = TimedFile(latency(path, np.zeros((1, 3, side, side), np.uint8)), max_ms)
    except Exception as error:  # noqa: BLE001 (``refusal`` tells or raises it, after the evidence is written)
        made = TimedFile(error, max_ms)
    if made.refused:
        path.unlink(missing_ok=True)
    return made


def refusal(found: Findings, made: TimedFile, params: Params) -> str:
    """One line: why the network is not delivered, and what would help.

    Raises:
        Exception: what failed, unless it is a LaqError, whose message the line has.
    """
    assert found.chosen
    if isinstance(made.time, LaqError):
        return f"{named(found.chosen)} is not delivered: {made.time}"
    if isinstance(made.time, Exception):
        raise made.time
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
