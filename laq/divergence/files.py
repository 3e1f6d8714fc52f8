"""What later stages read of the stage ``divergence``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from laq.files import read_array, read_json
from laq.paths import CLASS_NAMES, DIVERGENCE

MATRIX: Final = "matrix.npy"
ALTERNATIVES: Final = "alternatives"  # a folder of matrices made otherwise
MADE: Final = "divergence.json"


@dataclass(frozen=True)
class _Made:
    """What is read of the file that says how the study's own matrix was made."""

    name: str


def read_name(folder: Path = DIVERGENCE) -> str:
    """How the study's own matrix was made, in the words of ``divergence.alternatives``.

    Raises:
        LaqError: the file is missing or damaged.
    """
    made: _Made = read_json(folder / MADE, _Made)
    return made.name


def read_divergence(folder: Path = DIVERGENCE) -> tuple[NDArray[np.float64], list[str]]:
    """The study's own matrix (C, C) in nats, and the names of its C classes.

    Raises:
        LaqError: a file is missing or damaged.
    """
    names = read_array(folder / CLASS_NAMES.name, str, (None,))
    return read_array(folder / MATRIX, float, (len(names), len(names))), [str(name) for name in names]
