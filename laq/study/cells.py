"""What the study measures: cells, each a network, a subset and a recipe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import get_args

from laq.errors import LaqError
from laq.quantization import METHODS, QuantizationError, Recipe, parse_bits
from laq.quantization.bits.spec import Budget
from laq.sections.study import Base, Calibration, Grid, Study, bits_name
from laq.subsets import Subset

FLOAT_BITS = 32
BASES: tuple[Base, ...] = get_args(Base)


def is_label_aware(bits: int | str) -> bool:
    """Whether bits are spent where the subset's classes need them."""
    return isinstance(bits, str) and isinstance(parse_bits(bits).plan, Budget)


def learns(recipe: Recipe) -> bool:
    """Whether the outcome depends on calibration images."""
    learning = METHODS[recipe.method].learns_from != "nothing"
    return learning or recipe.radius == "error" or recipe.bias_correction


@dataclass(frozen=True)
class Cell:
    """What to measure: the network ``base`` on ``subset``, as it is or quantized by ``recipe``.

    ``bits`` are those of the recipe, or say what each layer gets, perhaps for this subset alone.
    ``calibration`` says whose images the quantization learns from, if it learns from any; ``seed``, which.
    """

    subset: Subset
    base: Base
    recipe: Recipe | None = None
    bits: int | str = FLOAT_BITS
    calibration: Calibration | None = None

    @property
    def variant(self) -> str:
        """Original, quantized, finetuned or finetuned_quantized."""
        if self.recipe is None:
            return self.base
        return "quantized" if self.base == "original" else "finetuned_quantized"

    @property
    def method(self) -> str:
        """The recipe's, or ``float``."""
        return "float" if self.recipe is None else self.recipe.method

    @property
    def seed(self) -> int | None:
        """What drew the calibration images."""
        return self.recipe.seed if self.recipe and self.calibration else None

    @property
    def name(self) -> str:
        """The cell's name among all of a study's."""
        bits = "" if self.recipe is None else f"-{bits_name(self.bits)}"
        images = f".{self.calibration}-{self.seed}" if self.calibration else ""
        return f"{self.subset.name}.{self.variant}.{self.method}{bits}{images}"


def plan(subsets: Sequence[Subset], params: Study) -> list[Cell]:
    """Every cell of the study once: per subset the networks as they are, then by recipe and calibration.

    Raises:
        LaqError: the bits are out of range, or two of them would have the same name.
    """
    every = list(dict.fromkeys(bits for grid in params.grids for bits in grid.bits))
    if len({bits_name(bits) for bits in every}) < len(every):
        raise LaqError(f"study.bits: some of {every} differ in signs alone; name them apart")
    for bits in every:
        try:
            parse_bits(bits)
        except QuantizationError as error:
            raise LaqError(f"study.bits: {error}") from error
    cells = (cell for subset in subsets for cell in _cells_of(subset, params))
    return list({cell.name: cell for cell in cells}.values())


def _cells_of(subset: Subset, params: Study) -> Iterator[Cell]:
    """A subset's cells, those that several grids ask for several times."""
    for base in BASES:
        for grid in params.grids:
            if base in grid.bases:
                yield Cell(subset, base)
                yield from _quantized(subset, base, grid, params)


def _quantized(subset: Subset, base: Base, grid: Grid, params: Study) -> Iterator[Cell]:
    shared = {f.name: getattr(params, f.name) for f in fields(Recipe) if f.name in Study.model_fields}
    for bits, method in product(grid.bits, grid.methods):
        known = {"bits": bits} if isinstance(bits, int) else {"bits": Recipe.bits}
        recipe = Recipe(**{**shared, **known, "method": method, "options": params.options.get(method, {})})
        if not (learns(recipe) or is_label_aware(bits)):
            yield Cell(subset, base, recipe, bits)
            continue
        for calibration, seed in product(grid.calibrations, grid.seeds):
            yield Cell(subset, base, replace(recipe, seed=seed), bits, calibration)
