"""Measures cells: those that share a network and calibration images are measured together, each once."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from laq.architectures import Classifier
from laq.cache import cached, is_whole
from laq.dataset.images import ImageSet
from laq.errors import LaqError
from laq.network.evaluation import predict
from laq.network.weights import load_network
from laq.parallel import Workers, run_all
from laq.quantization import (
    QuantizationError,
    QuantizedNetwork,
    Recipe,
    choose_activations,
    choose_bits_each,
    parse_bits,
    quantize_each,
)
from laq.quantization.execution.devices import check_device
from laq.sections.study import Base, Calibration
from laq.study.cells import Cell
from laq.study.inputs import StudyInputs, study_code
from laq.study.progress import StudyProgress
from laq.study.results import SECONDS, TRAINING_KL, Judged, judge, write_results

# Costs per calibration image, in runs of the network on one image: of quantizing a network, and of choosing
# the bits of its layers; and per image of each step of a tuning, which goes forth and back.
_QUANTIZING: Final = 9
_CHOOSING: Final = 120
_TUNING: Final = 3
_MOST_NAMED: Final = 5


@dataclass(frozen=True)
class CellGroup:
    """Cells with the same network before quantization and, if they need any, the same calibration images."""

    cells: tuple[Cell, ...]

    @property
    def networks(self) -> list[list[Cell]]:
        """The cells of each quantized network to make: those with the same recipe and bits."""
        made: dict[object, list[Cell]] = {}
        for cell in self.cells:
            made.setdefault((cell.recipe, cell.bits), []).append(cell)
        return list(made.values())

    @property
    def classes(self) -> list[int]:
        """The classes of all the group's subsets; each network is run once on their test images."""
        return sorted({number for cell in self.cells for number in cell.subset.classes})


@dataclass(frozen=True)
class _Shared:
    """The properties that the cells of a group have in common.

    ``subset`` is the one that their network is made for; None if the network is the same for all subsets.
    ``tuned`` is the recipe, with its bits, of a network that is tuned: these take long, so that each is kept
    before the next begins.
    """

    base: Base
    subset: str | None
    quantized: bool
    label_aware: bool
    calibration: Calibration | None
    seed: int | None
    tuned: tuple[Recipe, int | str] | None


def groups_of(cells: Sequence[Cell]) -> list[CellGroup]:
    """The groups that ``cells`` are measured in."""
    groups: dict[_Shared, list[Cell]] = {}
    for cell in cells:
        own = cell.base == "finetuned" or cell.calibration == "subset" or cell.is_label_aware
        shared = _Shared(
            base=cell.base,
            subset=cell.subset.name if own else None,
            quantized=cell.recipe is not None,
            label_aware=cell.is_label_aware,
            calibration=cell.calibration,
            seed=cell.seed,
            tuned=(cell.recipe, cell.bits) if cell.recipe and cell.recipe.tune else None,
        )
        groups.setdefault(shared, []).append(cell)
    return [CellGroup(tuple(group)) for group in groups.values()]


def cost(group: CellGroup, inputs: StudyInputs) -> float:
    """The estimated cost of measuring the group, in runs of the network on one image."""
    images, first = inputs.params.calibration_images, group.cells[0]
    scored = len(inputs.images(inputs.split)) * len(group.classes) / float(inputs.design["classes"])
    learned = _QUANTIZING * images * (first.recipe is not None)
    chosen = _CHOOSING * images * first.is_label_aware
    tuning = first.recipe and first.recipe.tune
    tuned = _TUNING * tuning.steps * tuning.batch_size if tuning else 0
    return len(group.networks) * (scored + inputs.ranked + learned + chosen + tuned)


def measure_all(cells: Sequence[Cell], inputs: StudyInputs, workers: Workers) -> dict[Cell, Path]:
    """Measure the cells that are missing, and keep each as soon as it is done; returns all cells' folders.

    Groups that fail are tried once more, cell by cell.

    Raises:
        LaqError: cells failed even when measured alone, while the others are kept; the study asks for a GPU
            and there is none.
    """
    folders = {cell: inputs.folder(cell) for cell in cells}
    missing = [cell for cell, folder in folders.items() if not is_whole(folder)]
    if missing and not workers.scheduler:  # whose workers may have GPUs that this machine lacks
        try:
            check_device(inputs.params.device)
        except QuantizationError as error:
            raise LaqError(f"study.{error}") from None
    costs: dict[Cell, int] = {}
    for group in groups_of(cells):
        costs |= dict.fromkeys(group.cells, round(cost(group, inputs) / len(group.cells)))
    with StudyProgress(folders, costs, workers) as bar:
        measure = partial(_measure_groups, inputs, workers, bar)
        failed = measure(sorted(groups_of(missing), key=partial(_turn, inputs)))
        reasons = measure([CellGroup((cell,)) for group in failed for cell in group.cells])
    if reasons:
        raise LaqError("\n".join(_failures(reasons, len(cells))))
    return folders


def _turn(inputs: StudyInputs, group: CellGroup) -> tuple[bool, float]:
    """The group's place: the float networks first, which all others are compared with; then the costliest."""
    return group.cells[0].recipe is not None, -cost(group, inputs)


def _measure_groups(
    inputs: StudyInputs, workers: Workers, bar: StudyProgress, groups: Sequence[CellGroup]
) -> dict[CellGroup, str]:
    """Measure the groups; returns those that failed, with the reason."""
    failures = {}
    for done, outcome in enumerate(run_all(partial(measure_group, inputs), groups, workers), 1):
        if outcome.result is None:
            failures[outcome.item] = outcome.failure
        else:
            bar.add(outcome.item.cells, outcome.result, len(groups) - done)
    return failures


def _failures(reasons: Mapping[CellGroup, str], cells: int) -> Iterator[str]:
    """The lines of the error message: which cells failed, and why."""
    yield f"{len(reasons)} of {cells} cells failed twice; the others are kept; run the command again to retry"
    for group, reason in list(reasons.items())[:_MOST_NAMED]:
        yield f"{group.cells[0].name}: {reason}"
    if len(reasons) > _MOST_NAMED:
        yield f"and {len(reasons) - _MOST_NAMED} more"


def measure_group(inputs: StudyInputs, group: CellGroup) -> float:
    """Measure the cells of a group and keep each; returns the seconds that this took.

    Raises:
        LaqError: this process runs other code than the one that started the study.
    """
    if study_code() != inputs.code:
        raise LaqError(
            "worker: its laq or torch differs from that of this study; install the same versions everywhere"
        )
    began = time.monotonic()
    network = load_network(weights=inputs.weights(group.cells[0]))
    scored = inputs.scored(group.classes)
    before = [predict(network, images) for images in scored]
    for cells, result in _networks(inputs, group, network):
        after = before if result is None else [predict(result.network, images) for images in scored]
        for cell in cells:
            write = partial(
                write_results,
                cell=cell,
                judged=_judged(cell, scored, before, after),
                made=result or network,
                keep_network=inputs.params.keep_networks,
            )
            cached("cells", inputs.dependencies(cell), write, aside=(SECONDS,))
    return time.monotonic() - began


def _judged(
    cell: Cell, scored: Sequence[ImageSet], before: Sequence[Tensor], after: Sequence[Tensor]
) -> Judged:
    """Judge a cell by the images that score, and its distance to its float network by those that rank."""
    found, *ranking = (
        judge(cell.subset.classes, images.labels, logits)
        for images, *logits in zip(scored, before, after, strict=True)
    )
    if not ranking:
        return found
    return replace(found, numbers=found.numbers | {TRAINING_KL: ranking[0].numbers["kl_nats"]})


def _networks(
    inputs: StudyInputs, group: CellGroup, network: Classifier
) -> Iterator[tuple[list[Cell], QuantizedNetwork | None]]:
    """The group's networks, each with its cells; one pass over the images quantizes all of them."""
    networks = group.networks
    if group.cells[0].recipe is None:
        yield networks[0], None
        return
    images = inputs.calibration_images(group.cells[0])
    recipes = _recipes([cells[0] for cells in networks], network, images)
    yield from zip(
        networks, quantize_each(network, images, recipes, device=inputs.params.device), strict=True
    )


def _recipes(cells: Sequence[Cell], network: Classifier, images: torch.Tensor) -> list[Recipe]:
    """The cells' recipes with all bits chosen; equal recipes share what that measures."""
    chosen: dict[str, Recipe] = {}
    spent: dict[Recipe, dict[str, int]] = {}  # on activations, which do not depend on how weights are chosen
    for recipe in dict.fromkeys(cell.recipe for cell in cells if cell.recipe):
        alike = [cell for cell in cells if cell.recipe == recipe]
        classes, made = sorted(alike[0].subset.classes), recipe
        if isinstance(recipe.activations, str):
            shared = replace(recipe, bits=Recipe.bits, method=Recipe.method, options={})
            if shared not in spent:
                spent[shared] = choose_activations(network, images, recipe, classes)
            made = replace(recipe, activations=spent[shared])
        mixed = [cell for cell in alike if isinstance(cell.bits, str)]
        precisions = [parse_bits(cell.bits) for cell in mixed]
        maps = choose_bits_each(precisions, network, images, made, classes) if mixed else ()
        chosen |= {cell.name: made for cell in alike}
        chosen |= {cell.name: replace(made, bits=bits) for cell, bits in zip(mixed, maps, strict=True)}
    return [chosen[cell.name] for cell in cells if cell.recipe]
