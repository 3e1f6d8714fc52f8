"""Measures every candidate on the given classes, with the size of the file that would be delivered."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from scipy.stats import binomtest

from laq.advise.export import SubsetExport
from laq.cache import cached
from laq.dataset.images import read_manifest
from laq.files import read_json, write_json
from laq.finetune import finetune
from laq.imports import code_digest
from laq.parallel import Workers
from laq.params import Params
from laq.paths import DATASET, WEIGHTS
from laq.sections.commands import Advise
from laq.sections.study import Grid, Study
from laq.study.cells import Cell, plan
from laq.study.inputs import StudyInputs
from laq.study.measure import measure_all
from laq.study.results import read_measurement
from laq.study.tables import NO_IMAGES
from laq.subsets.subset import Subset

CONFIDENCE: Final = 0.95
_SIZE: Final = "size.json"


@dataclass(frozen=True)
class Candidates:
    """The measurements for a subset: a row of ``table`` per cell, and the cells' folders by name."""

    subset: Subset
    table: pd.DataFrame
    folders: dict[str, Path]
    inputs: StudyInputs


def measure(params: Params, subset: Subset, workers: Workers) -> Candidates:
    """Fine-tune for the subset if candidates need it, quantize and score; cached results are read.

    Raises:
        LaqError: training or measuring failed.
    """
    study = as_study(params.study, params.advise)
    cells = planned(subset, study)
    # A single subset is a single task: it needs no worker processes on this machine.
    one = workers if workers.scheduler else Workers()
    tuned = finetune([subset], params.finetune, one) if study.fine_tunes else {}
    inputs = StudyInputs(study, finetuned={made.name: path for made, path in tuned.items()})
    folders = measure_all(cells, inputs, workers)
    table = pd.DataFrame(_rows(folders, inputs)).astype({"levels": "Int64", "seed": "Int64"})
    return Candidates(subset, table, {cell.name: folder for cell, folder in folders.items()}, inputs)


def as_study(study: Study, advise: Advise) -> Study:
    """The study with the bits, methods, bases, calibrations and seeds of ``advise``, keeping weights."""
    return study.restricted(**{name: getattr(advise, name) for name in Grid.model_fields})


def planned(subset: Subset, study: Study) -> list[Cell]:
    """All cells to measure, with the original float network first, the reference for points lost."""
    return list(dict.fromkeys([Cell(subset, "original"), *plan([subset], study)]))


def _rows(folders: dict[Cell, Path], inputs: StudyInputs) -> Iterator[dict[str, Any]]:
    """The table's rows; the sizes of quantized networks are those of files cut to the subset's classes."""
    export = SubsetExport(next(iter(folders)).subset)
    n = len(inputs.images("test").select(export.numbers))
    original = next(folder for cell, folder in folders.items() if cell.variant == "original")
    best, whole = (read_measurement(original)[name] for name in ("top1_sub_percent", "size_bytes"))
    balanced = read_manifest(DATASET).is_balanced
    for cell, folder in folders.items():
        measured = read_measurement(folder)
        size, top1 = measured["size_bytes"], measured["top1_sub_percent"]
        if cell.recipe:
            size = _exported_size(export, cell, folder / WEIGHTS, inputs)
        low, high = interval(round(top1 * n / 100), n)
        yield {
            "cell": cell.name,
            "variant": cell.variant,
            "method": cell.method,
            "bits": str(cell.bits),
            "calibration": cell.calibration or NO_IMAGES,
            "seed": cell.seed,
            "mean_bits": measured["mean_bits"],
            "levels": measured["levels"],
            "size_bytes": size,
            "compression": whole / size,
            "n": n,
            "top1_sub_percent": top1,
            **({} if balanced else {"balanced_percent": measured["balanced_top1_sub_percent"]}),
            "low_percent": low,
            "high_percent": high,
            "lost_points": best - top1,
        }


def _exported_size(export: SubsetExport, cell: Cell, packed: Path, inputs: StudyInputs) -> int:
    """The size in bytes of the quantized network's file after its classifier is cut to the classes."""

    def fill(place: Path) -> None:
        _, size = export.write(place / WEIGHTS, packed)
        (place / WEIGHTS).unlink()
        write_json(place / _SIZE, size)

    code = code_digest("laq.advise.export")
    dependencies = {**inputs.dependencies(cell), "names": export.names, "export": code}
    place = cached("sizes", dependencies, fill)
    return int(read_json(place / _SIZE, int, f"remove the folder {place} and run the command again"))


def interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) in percent of the accuracy, given ``correct`` of ``n`` images."""
    found = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)
