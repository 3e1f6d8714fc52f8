"""The tables that the stage ``study`` writes, and all later ones read."""

import zlib
from collections.abc import Iterator, Mapping
from gzip import BadGzipFile
from math import inf
from pathlib import Path
from typing import Any, Final

import pandas as pd

from laq.errors import LaqError
from laq.files import MAKE, md5, need, project_root
from laq.paths import STUDY, WEIGHTS

MEASUREMENTS = "measurements.csv"
LAYERS = "layers.csv"
PREDICTIONS = "predictions.npz"
# The entry in column ``calibration`` for networks that were made without calibration images.
NO_IMAGES = "none"
# Restricted top-1 on the test images that choose a subset's best network, and on the others (``selection``).
CHOOSING: Final = "top1_choosing_percent"
REPORTING: Final = "top1_reporting_percent"
IMAGES_OF = {"subset": "the subset", "all": "all classes"}


_WHOLE: Final = ("levels", "seed", "weights")  # these columns hold whole numbers, or nothing
_TEXTS: Final = ("dataset", "network", "cell", "subset", "variant", "method", "bits", "calibration", "kind")
_NUMBERS: Final = (
    "subset_size_classes", "median_divergence_nats", "mean_divergence_nats", "top1_all_percent",
    "top5_all_percent", "top1_sub_percent", "top5_sub_percent", "mean_bits", "sparsity_percent", "size_bytes",
)  # fmt: skip


def read_measurements(path: Path = STUDY / MEASUREMENTS, remedy: str = MAKE) -> pd.DataFrame:
    """The table of all cells; column ``bits`` has the bits as requested, as texts.

    Raises:
        LaqError: the file is missing or damaged; the line ends with the ``remedy``.
    """
    table = read_table(path, dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, float), remedy)
    if (twice := table.cell[table.cell.duplicated()]).any():
        raise LaqError(f"{path}: cell {twice.iloc[0]} stands twice; each must but once; {remedy}")
    return table


def read_table(path: Path, columns: Mapping[str, type], remedy: str = MAKE) -> pd.DataFrame:
    """Read a CSV table that must have some ``columns`` of str or float, none with an empty entry.

    Raises:
        LaqError: the file is missing or damaged; the line ends with the ``remedy``.
    """
    texts = [name for name, kind in columns.items() if kind is str]
    types: dict[Any, Any] = {**dict.fromkeys(texts, str), **dict.fromkeys(_WHOLE, "Int64")}
    try:
        table = pd.read_csv(need(path, remedy), dtype=types)
    except (ValueError, EOFError, BadGzipFile, zlib.error) as error:
        raise LaqError(f"{path}: not a whole CSV table ({' '.join(str(error).split())}); {remedy}") from error
    if wrong := next(_mistakes(table, columns), ""):
        raise LaqError(f"{path}: {wrong}; {remedy}")
    return table


def _mistakes(table: pd.DataFrame, columns: Mapping[str, type]) -> Iterator[str]:
    """What a table lacks of the columns that it must have."""
    if table.empty:
        yield "has no rows"
    for name, kind in columns.items():
        if name not in table:
            yield f"has no column {name}"
            continue
        numbers = pd.to_numeric(table[name], errors="coerce").abs() < inf if kind is float else None
        fits = table[name].notna() if numbers is None else numbers
        if not fits.all():
            allowed = "a text" if kind is str else "a finite number"
            yield f"{name}: found {table[name][~fits].tolist()[0]!r}; must be {allowed}"


def seconds_file() -> Path:
    """The file with the seconds that the cells of ``measurements.csv`` took on this machine.

    DVC does not version it, because the outputs of a stage must be the same bytes in every run.
    """
    return project_root() / ".laq" / "seconds" / f"{md5(STUDY / MEASUREMENTS)}.csv"


def weights_file(folder: Path, cell_name: str) -> Path:
    """The file with a cell's quantized weights."""
    return folder / "networks" / cell_name / WEIGHTS
