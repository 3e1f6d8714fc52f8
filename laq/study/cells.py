"""The cells of a study: each is a network, a subset and a recipe to measure together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import get_args

from laq.quantization import METHODS, Recipe, parse_bits
from laq.quantization.bits.spec import Budget
from laq.quantization.methods.registry import name_with, split_name
from laq.sections.study import Base, Calibration, Grid, Study, bits_name
from laq.subsets.subset import Subset

FLOAT_BITS = 32
BASES: tuple[Base, ...] = get_args(Base)


def is_label_aware(bits: int | str) -> bool:
    """Whether the bits are allocated to layers by a budget, which depends on the subset's classes."""
    return isinstance(bits, str) and isinstance(parse_bits(bits).plan, Budget)


@dataclass(frozen=True)
class Cell:
    """A measurement to make: the network ``base`` on ``subset``, in float or quantized by ``recipe``.

    ``bits`` are those of the recipe, or a text that gives each layer its bits, perhaps for this subset only.
    ``calibration`` says from which classes calibration images are drawn; None if none are used.
    """

    subset: Subset
    base: Base
    recipe: Recipe | None = None
    bits: int | str = FLOAT_BITS
    calibration: Calibration | None = None

    @property
    def is_label_aware(self) -> bool:
        """Whether bits, of weights or of activations, are spent where the subset's classes need them."""
        return is_label_aware(self.bits) or bool(self.recipe and isinstance(self.recipe.activations, str))

    @property
    def variant(self) -> str:
        """Original, quantized, finetuned or finetuned_quantized."""
        if self.recipe is None:
            return self.base
        return "quantized" if self.base == "original" else "finetuned_quantized"

    @property
    def method(self) -> str:
        """The name of the recipe's method and tuning (``all_names``), or ``float``."""
        if self.recipe is None:
            return "float"
        return name_with(self.recipe.method, self.recipe.tune.loss if self.recipe.tune else None)

    @property
    def seed(self) -> int | None:
        """The seed that draws the calibration images, if any are used."""
        return self.recipe.seed if self.recipe and self.calibration else None

    @property
    def name(self) -> str:
        """The cell's name, unique within a study."""
        bits = "" if self.recipe is None else f"-{bits_name(self.bits)}"
        images = f".{self.calibration}-{self.seed}" if self.calibration else ""
        return f"{self.subset.name}.{self.variant}.{self.method}{bits}{images}"


def plan(subsets: Sequence[Subset], params: Study) -> list[Cell]:
    """Every cell of the study once: for each subset the float networks, then recipes and calibrations."""
    cells = (cell for subset in subsets for cell in _cells_of(subset, params))
    return list({cell.name: cell for cell in cells}.values())


def _cells_of(subset: Subset, params: Study) -> Iterator[Cell]:
    """The cells of a subset; a cell that several grids ask for appears several times."""
    for base in BASES:
        for grid in params.grids:
            if base in grid.bases:
                yield Cell(subset, base)
                yield from _quantized(subset, base, grid, params)


def _quantized(subset: Subset, base: Base, grid: Grid, params: Study) -> Iterator[Cell]:
    shared = {f.name: getattr(params, f.name) for f in fields(Recipe) if f.name in Study.model_fields}
    for bits, name in product(grid.bits, grid.methods):
        known = {"bits": bits} if isinstance(bits, int) else {"bits": Recipe.bits}
        method, loss = split_name(name)
        classes = tuple(sorted(subset.classes)) if loss == "subset" else ()
        tune = replace(params.tune, loss=loss, classes=classes) if loss else None
        own = {"method": method, "options": params.options.get(method, {}), "tune": tune}
        recipe = Recipe(**{**shared, **known, **own})
        learns = (
            METHODS[method].learns_from != "nothing"
            or recipe.radius == "error"
            or recipe.bias_correction
            or recipe.equalize
            or recipe.activations is not None
            or recipe.tune is not None
        )
        if not (learns or is_label_aware(bits)):
            # Without calibration images, all calibrations and seeds give the same network.
            yield Cell(subset, base, recipe, bits)
            continue
        for calibration, seed in product(grid.calibrations, grid.seeds):
            yield Cell(subset, base, replace(recipe, seed=seed), bits, calibration)
