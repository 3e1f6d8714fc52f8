"""Measures every candidate on the given classes, with the size of the file that would be delivered."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.advise.export import SubsetExport
from laq.advise.selection import Selection, select
from laq.cache import cached
from laq.dataset.images import read_manifest
from laq.errors import LaqError
from laq.files import read_json, write_json
from laq.finetune import finetune
from laq.imports import code_digest
from laq.parallel import Workers
from laq.params import Params
from laq.paths import DATASET, WEIGHTS
from laq.quantization.files.onnx import most_bits
from laq.quantization.methods.registry import label_of
from laq.sections.base import FILE
from laq.sections.commands import Advise
from laq.sections.study import Grid, Study
from laq.study.cells import Cell, plan
from laq.study.inputs import StudyInputs
from laq.study.measure import measure_all
from laq.study.results import TRAINING_KL, read_measurement, read_predictions
from laq.study.tables import NO_IMAGES
from laq.subsets.subset import Subset

_RANKED: Final = 512  # training images, which put the candidates in the order of their tests
_SIZE: Final = "size.json"
_BASES: Final = {
    "original": "the network as it is",
    "finetuned": "the network that is fine-tuned on these classes first",
}
Labels = NDArray[np.int16]


@dataclass(frozen=True)
class Candidates:
    """The measurements for a subset: a row of ``table`` per cell, and the cells' folders by name.

    The table is of the images that choose (``selection``).
    """

    subset: Subset
    selection: Selection
    table: pd.DataFrame
    folders: dict[str, Path]
    inputs: StudyInputs


def measure(params: Params, subset: Subset, workers: Workers) -> Candidates:
    """Fine-tune for the subset if candidates need it, quantize and score; cached results are read.

    Raises:
        LaqError: training or measuring failed.
    """
    study = as_study(params.study, params.advise)
    cells, selection = planned(subset, study), select(params, subset)
    # A single subset is a single task: it needs no worker processes on this machine.
    one = workers if workers.scheduler else Workers()
    tuned = finetune([subset], params.finetune, one) if study.fine_tunes else {}
    weights = {made.name: path for made, path in tuned.items()}
    inputs = StudyInputs(study, finetuned=weights, split=selection.split, ranked=_RANKED)
    folders = measure_all(cells, inputs, workers)
    table = pd.DataFrame(_rows(folders, inputs, selection)).astype({"levels": "Int64", "seed": "Int64"})
    found = {cell.name: folder for cell, folder in folders.items()}
    return Candidates(subset, selection, table, found, inputs)


def as_study(study: Study, advise: Advise) -> Study:
    """The study with the bits, methods, bases, calibrations and seeds of ``advise``, keeping weights.

    Bits of activations that ``advise`` leaves out are the study's.
    """
    factors = {name: getattr(advise, name) for name in Grid.model_fields}
    return study.restricted(**factors, activations=advise.activations or study.activations)


def quick(params: Params) -> Params:
    """The parameters with fewer candidates: the primary question's method, on the network as it is.

    One draw of calibration images is left. Nothing is measured to choose them, so that the promise holds for
    whichever is delivered.
    """
    usual = params.advise
    fewer = {
        "methods": (params.report.primary.method,),
        "bases": ("original",),
        "calibrations": usual.calibrations[:1],
        "seeds": usual.seeds[:1],
    }
    return params.model_copy(update={"advise": usual.model_copy(update=fewer)})


def for_integers(params: Params) -> Params:
    """The parameters with candidates that an ONNX file of integers holds for every processor.

    Where activations are rounded, bits are those at most with which no sum of products overflows
    (``most_bits``); bits that differ by layer are left out, as some layers may have more.

    Raises:
        LaqError: no number of bits is among the candidates.
    """
    if params.export.vnni or (params.advise.activations or params.study.activations) is None:
        return params
    most = most_bits(params.study.alphabet)
    bits = tuple(dict.fromkeys(min(b, most) for b in params.advise.bits if isinstance(b, int)))
    if not bits:
        raise LaqError(
            f"{FILE}: {params.name}.advise.bits: found {', '.join(map(str, params.advise.bits))}; with "
            "--max-ms and rounded activations a number of bits must be among them, such as 7"
        )
    return params.model_copy(update={"advise": params.advise.model_copy(update={"bits": bits})})


def describe_plan(params: Params, subset: Subset, asked: Advise) -> str:
    """What will be measured, before it is: how many networks, and which.

    Bits that were ``asked`` for and are not measured (``for_integers``) are told, too.
    """
    study = as_study(params.study, params.advise)
    candidates = [cell for cell in planned(subset, study) if cell.recipe]
    bits = [str(width) for width in dict.fromkeys(cell.bits for cell in candidates)]
    methods = [label_of(method) for method in dict.fromkeys(cell.method for cell in candidates)]
    bases = [_BASES[base] for base in dict.fromkeys(cell.base for cell in candidates)]
    mixed = [str(width) for width in asked.bits if isinstance(width, str) and width not in params.advise.bits]
    left_out = f"; {' and '.join(mixed)} left out, as bits that differ by layer may be too many for --max-ms"
    return (
        f"{len(candidates)} candidates for {len(subset.classes)} classes: {' and '.join(methods)} at "
        f"{', '.join(bits)} bits, of {' and '.join(bases)}; what was measured before is read, "
        "and how long the rest takes is told once the network in float is measured"
        f"{left_out if mixed else ''}"
    )


def planned(subset: Subset, study: Study) -> list[Cell]:
    """All cells to measure, with the original float network first, the reference for points lost."""
    return list(dict.fromkeys([Cell(subset, "original"), *plan([subset], study)]))


def _rows(folders: dict[Cell, Path], inputs: StudyInputs, selection: Selection) -> Iterator[dict[str, Any]]:
    """The table's rows; the sizes of quantized networks are those of files cut to the subset's classes."""
    export = SubsetExport(next(iter(folders)).subset)
    original = next(folder for cell, folder in folders.items() if cell.variant == "original")
    whole = read_measurement(original)["size_bytes"]
    labels, before = _answers(original, selection)
    balanced = read_manifest(DATASET).is_balanced
    for cell, folder in folders.items():
        measured = read_measurement(folder)
        size = measured["size_bytes"]
        if cell.recipe:
            size = _exported_size(export, cell, folder / WEIGHTS, inputs)
        _, right = _answers(folder, selection)
        by_class = [right[labels == label].mean() for label in np.unique(labels)]
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
            "n": selection.n,
            "correct": int(right.sum()),
            "lost": int((before & ~right).sum()),
            "gained": int((right & ~before).sum()),
            TRAINING_KL: measured[TRAINING_KL],
            **({} if balanced else {"balanced_percent": 100 * float(np.mean(by_class))}),
        }


def _answers(folder: Path, selection: Selection) -> tuple[Labels, NDArray[np.bool_]]:
    """The classes of the choosing images (n,), and which of these a cell's network classifies correctly."""
    kept = read_predictions(folder)[selection.rows]
    return kept["label"], kept["label"] == kept["prediction"]


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
