"""A folder that `laq report --publish` wrote, as far as measuring again needs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.dataset.images import read_manifest
from laq.dataset.layout import Manifest
from laq.errors import LaqError
from laq.files import read_json
from laq.params import Params, load_params
from laq.paths import DESIGN
from laq.report import IMAGES, TABLE
from laq.report.unchanged import PROVENANCE, changed_files
from laq.study.tables import read_measurements
from laq.subsets.subset import Subset, read_subsets

SUBSETS: Final = "subsets.json"
PARAMS: Final = "params.yaml"
_REMEDY: Final = "name a folder as `laq report --publish FOLDER` wrote it"
_TRAINED: Final = 3  # subsets whose fine-tuned networks a draw takes first
_NEEDED: Final = (PROVENANCE, PARAMS, IMAGES, SUBSETS, DESIGN, f"{TABLE}.gz")


@dataclass(frozen=True)
class Published:
    """A published study: its parameters, the record of what made it, its images, subsets and table.

    ``changed`` has a sentence for each file that is not what was published.
    """

    folder: Path
    params: Params
    record: dict[str, Any]
    images: Manifest
    subsets: list[Subset]
    table: pd.DataFrame
    changed: list[str]

    @property
    def hashes(self) -> dict[str, str]:
        """DVC's MD5 of what the study was measured on, by its path."""
        inputs: dict[str, str] = self.record["stages"]["study"]["inputs"]
        return inputs

    @property
    def origin(self) -> str:
        """The commit and the processor that the numbers were published from."""
        return f"commit {self.record.get('commit')}, {self.record.get('processor', 'an unnamed processor')}"

    def drawn(self, count: int | None, seed: int) -> pd.DataFrame:
        """``count`` rows of the table drawn by ``seed``, in the table's order; all of them for None.

        Rows of fine-tuned networks have the share that they have of the table. Each subset of theirs is
        trained again before anything is measured, so they come from as few subsets as hold them, three at
        least.
        """
        if count is None or count >= len(self.table):
            return self.table
        rng = np.random.default_rng(seed)
        tuned = self.table.variant.str.startswith("finetuned").to_numpy()
        drawn = list(rng.permutation([subset.name for subset in self.subsets]))
        group = np.array([drawn.index(name) // _TRAINED for name in self.table.subset])
        order = np.lexsort((rng.random(len(tuned)), tuned * group))
        of_tuned = round(count * tuned.mean())
        rows = [*order[tuned[order]][:of_tuned], *order[~tuned[order]][: count - of_tuned]]
        return self.table.iloc[np.sort(rows)]


def missing_files(folder: Path) -> list[str]:
    """What a published folder lacks of the files that measuring it again takes."""
    return [name for name in _NEEDED if not (folder / name).is_file()]


def read_published(folder: Path) -> Published:
    """Read a published folder.

    Raises:
        LaqError: a file is missing or is not what a published report has.
    """
    if missing := missing_files(folder):
        raise LaqError(f"{folder / missing[0]}: not found, and needed to measure the study again; {_REMEDY}")
    record = read_json(folder / PROVENANCE, remedy=_REMEDY)
    try:
        inputs = record["stages"]["study"]["inputs"]
    except (KeyError, TypeError):
        inputs = None
    if not isinstance(inputs, dict):
        raise LaqError(f"{folder / PROVENANCE}: does not tell what the study was measured on; {_REMEDY}")
    changed = list(changed_files(folder, record))
    table = read_measurements(folder / f"{TABLE}.gz", _REMEDY)
    subsets = read_subsets(folder / SUBSETS, remedy=_REMEDY)
    if unknown := sorted(set(table.subset) - {subset.name for subset in subsets}):
        raise LaqError(f"{folder / SUBSETS}: has no subset {unknown[0]}, which the table has")
    images = read_manifest(folder, IMAGES, _REMEDY)
    return Published(folder, load_params(folder / PARAMS), record, images, subsets, table, changed)
