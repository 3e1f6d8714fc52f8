"""What later stages read of the stage ``divergence``."""

from pathlib import Path
from typing import Final

from laq.files import read_json
from laq.paths import DIVERGENCE

MATRIX: Final = "matrix.npy"
ALTERNATIVES: Final = "alternatives"  # a folder of matrices made otherwise
MADE: Final = "divergence.json"


def read_name(folder: Path = DIVERGENCE) -> str:
    """How the study's own matrix was made, in the words of ``divergence.alternatives``."""
    return str(read_json(folder / MADE)["name"])
