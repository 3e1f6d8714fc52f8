"""What was measured, and what it was measured on."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd
from PIL import Image

from laq.dataset.images import read_images, read_manifest
from laq.files import dvc_md5
from laq.git import commit, experiment
from laq.network.weights import read_design
from laq.params import Params
from laq.paths import DATASET, NETWORK, SUBSETS, WEIGHTS
from laq.report.tables import with_drops
from laq.study import measurement_row
from laq.study.cells import Cell
from laq.study.results import layer_rows, read_seconds
from laq.subsets.subset import Subset
from laq.track.run_specs import Input

Row = Mapping[str, Any]
_EXAMPLES: Final = 2


class Provenance:
    """What results in ``data/`` were made from: read once for all their runs."""

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The images, the network and the subsets, by DVC's hashes."""
        data, network = read_manifest(DATASET).name, read_design().architecture
        return (
            Input(data, dvc_md5(DATASET), str(DATASET), "images"),
            Input(f"{network} on {data}", dvc_md5(NETWORK), str(NETWORK), "network"),
            Input(f"subsets of {data}", dvc_md5(SUBSETS), str(SUBSETS), "subsets"),
        )

    @cached_property
    def design(self) -> dict[str, Any]:
        """The network's."""
        return read_design().to_json()

    @cached_property
    def examples(self) -> tuple[str, ...]:
        """Test images, as a server takes them."""
        examples = []
        for pixels in read_images(DATASET, "test").pixels[:_EXAMPLES].permute(0, 2, 3, 1).numpy():
            Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
            examples.append(base64.b64encode(buffer.getvalue()).decode())
        return tuple(examples)

    @cached_property
    def tags(self) -> dict[str, str]:
        """The code that results are tracked by, and the DVC experiment that this is."""
        code = commit()
        files = ", ".join(code["uncommitted"] or ()) or None
        found = {**code, "uncommitted": files, "dvc_experiment": experiment()}
        return {f"laq.{name}": str(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Results:
    """What was measured: rows of the study's tables, and where each cell's packed weights lie.

    ``key`` names the whole.
    """

    params: Params
    key: str
    subsets: Sequence[Subset]
    rows: Sequence[Row]
    layers: Sequence[Row]
    weights: Mapping[str, Path]
    provenance: Provenance = field(default_factory=Provenance)

    def of(self, subset: Subset) -> list[Row]:
        """The rows of one subset."""
        return [row for row in self.rows if row["subset"] == subset.name]


def row_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by the names of its columns."""
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


Measured = tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Path]]


def measured(folders: Mapping[Cell, Path]) -> Measured:
    """The rows, the layers and the packed files of cells that are measured, as the study's tables have them.

    Raises:
        LaqError: a float network of theirs is missing, or a file is damaged.
    """
    table = pd.DataFrame(
        {**measurement_row(cell, folder), "seconds": read_seconds(folder)} for cell, folder in folders.items()
    )
    table = table.astype({"levels": "Int64", "seed": "Int64"}).round(6)
    layers = pd.DataFrame([row for cell, folder in folders.items() for row in layer_rows(cell, folder)])
    weights = {cell.name: folder / WEIGHTS for cell, folder in folders.items() if cell.recipe}
    there = {name: path for name, path in weights.items() if path.exists()}
    return row_dicts(with_drops(table)), row_dicts(layers.round(6)), there
