"""The tables that the stage ``study`` writes, and all later ones read."""

from pathlib import Path
from typing import Any

import pandas as pd

from laq.files import md5, need, project_root
from laq.paths import STUDY, WEIGHTS

MEASUREMENTS = "measurements.csv"
LAYERS = "layers.csv"
# The entry in column ``calibration`` for networks that were made without calibration images.
NO_IMAGES = "none"
IMAGES_OF = {"subset": "the subset", "all": "all classes"}


def read_measurements(path: Path = STUDY / MEASUREMENTS) -> pd.DataFrame:
    """The table of all cells; column ``bits`` has the bits as requested, as texts.

    Raises:
        LaqError: the stage has not run.
    """
    types: dict[Any, Any] = {"levels": "Int64", "seed": "Int64", "bits": str}
    return pd.read_csv(need(path), dtype=types)


def seconds_file() -> Path:
    """The file with the seconds that the cells of ``measurements.csv`` took on this machine.

    DVC does not version it, because the outputs of a stage must be the same bytes in every run.
    """
    return project_root() / ".laq" / "seconds" / f"{md5(STUDY / MEASUREMENTS)}.csv"


def weights_file(folder: Path, cell_name: str) -> Path:
    """The file with a cell's quantized weights."""
    return folder / "networks" / cell_name / WEIGHTS
