"""What later stages read of the stage ``divergence``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from laq.files import read_json
from laq.paths import DIVERGENCE

MATRIX: Final = "matrix.npy"
ALTERNATIVES: Final = "alternatives"  # a folder of matrices made otherwise
MADE: Final = "divergence.json"
PLANE: Final = "plane.npy"  # float64 (C, 5): means and covariances of the classes, in two dimensions


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
