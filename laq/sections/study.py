"""The section ``study``, and what other sections say in its words: bits, methods, grids of cells."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from laq.files import digest
from laq.quantization.bits.spec import parse_bits
from laq.quantization.methods.registry import find_method
from laq.quantization.options import (
    HIGHEST,
    LOWEST,
    OPTIONS,
    AlphabetKind,
    Granularity,
    QuantizationError,
    Radius,
)
from laq.sections.base import Positive, Section, Seed, Several

Base = Literal["original", "finetuned"]
Calibration = Literal["subset", "all"]
_LONGEST_NAME = 60


def check_bits(value: Any) -> int | str:
    """A number of bits, or a text that says what each layer gets (``laq.quantization.parse_bits``).

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip() if type(value) in {int, str} else ""
    bits = int(text) if re.fullmatch(r"\d+", text, re.ASCII) else text
    try:
        parse_bits(bits)
    except QuantizationError as error:
        raise ValueError(
            f"found {value!r}; must be {LOWEST} to {HIGHEST}, or a text such as auto:3, auto:96000B, asc:4, "
            'desc:4, "3 first:8 last:8", "8,4,4" or "body.fc=8 *=3", whose numbers of bits are within that'
        ) from error
    return bits


def bits_name(bits: int | str) -> str:
    """A name for files and metrics: 3bit, auto_3; what file systems find too long ends in a hash."""
    if str(bits).isdigit():
        return f"{bits}bit"
    name = re.sub(r"[^A-Za-z0-9.]+", "_", str(bits)).strip("_")
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{digest(bits)[:8]}"


def _check_method(value: Any) -> str:
    return find_method(value).name


def _check_options(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"found {value!r}; must be a map of methods to their options")  # noqa: TRY004
    return {name: dict(find_method(name).check(options)) for name, options in value.items()}


Bits = Annotated[int | str, BeforeValidator(check_bits)]
MethodName = Annotated[str, BeforeValidator(_check_method)]


class Grid(Section):
    """A factorial grid of cells: every combination of these factors.

    Methods that need no images leave out calibrations and seeds.
    """

    bits: Several[Bits]
    methods: Several[MethodName]
    bases: Several[Base]
    calibrations: Several[Calibration]
    seeds: Several[Seed]


class Further(Section):
    """Cells beside those of the study's grid; a factor that is left out is as there."""

    bits: Several[Bits] | None = None
    methods: Several[MethodName] | None = None
    bases: Several[Base] | None = None
    calibrations: Several[Calibration] | None = None
    seeds: Several[Seed] | None = None


class Study(Grid):
    """What to quantize how, for each subset: options of ``Recipe``, and those of methods by their names."""

    also: tuple[Further, ...] = ()
    alphabet: Annotated[AlphabetKind, BeforeValidator(OPTIONS["alphabet"])]
    granularity: Annotated[Granularity, BeforeValidator(OPTIONS["granularity"])]
    radius: Annotated[Radius, BeforeValidator(OPTIONS["radius"])]
    percentile: Annotated[float, BeforeValidator(OPTIONS["percentile"])]
    fuse: Annotated[bool, BeforeValidator(OPTIONS["fuse"])]
    bias_correction: Annotated[bool, BeforeValidator(OPTIONS["bias_correction"])]
    calibration_images: Positive
    retain_rate: Annotated[float, BeforeValidator(OPTIONS["retain_rate"])]
    batch_size: Annotated[int, BeforeValidator(OPTIONS["batch_size"])]
    ignore: Annotated[tuple[str, ...], BeforeValidator(OPTIONS["ignore"])]
    options: Annotated[dict[str, dict[str, Any]], BeforeValidator(_check_options)] = Field(
        default_factory=dict
    )
    keep_networks: bool

    def restricted(self, **factors: Any) -> "Study":
        """The study with these factors in the place of its own (keys of ``Grid``); its networks are kept."""
        return self.model_copy(update={**factors, "also": (), "keep_networks": True})

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The study's own grid, then the further ones."""
        own = {name: getattr(self, name) for name in Grid.model_fields}
        further = ({**own, **more.model_dump(exclude_none=True)} for more in self.also)
        return tuple(Grid.model_construct(**fields) for fields in (own, *further))

    @property
    def fine_tunes(self) -> bool:
        """Whether any cell's network is a fine-tuned one."""
        return any("finetuned" in grid.bases for grid in self.grids)
