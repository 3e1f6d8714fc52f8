"""The section ``study``, and what other sections say in its words: bits, methods, grids of cells."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from laq.files import digest
from laq.quantization.bits.spec import TEXT, UnreachablePatternError, parse_bits
from laq.quantization.methods.registry import METHODS, all_names, check_name, find_method
from laq.quantization.options import (
    BITS,
    DEVICE,
    HIGHEST,
    LOWEST,
    OPTIONS,
    AlphabetKind,
    DeviceChoice,
    Granularity,
    Radius,
    RangeRule,
)
from laq.quantization.tuning.settings import SCHEMA as TUNING_SCHEMA
from laq.quantization.tuning.settings import Tuning, tuning_of
from laq.sections.base import Checked, Positive, Section, Seed, Several

Base = Literal["original", "finetuned"]
Calibration = Literal["subset", "all"]
_LONGEST_NAME = 60


def check_bits(value: Any) -> int | str:
    """A number of bits, or a text that says what each layer gets (``laq.quantization.parse_bits``).

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip() if type(value) in {int, str} else ""
    try:
        bits = int(text) if re.fullmatch(r"\d+", text, re.ASCII) else text
        parse_bits(bits)
    except UnreachablePatternError as error:
        raise ValueError(str(error).removeprefix("bits: ")) from error
    except ValueError as error:
        raise ValueError(
            f"found {value!r}; must be a whole number from {LOWEST} to {HIGHEST}, or a text such as auto:3, "
            'auto:96000B, asc:4, desc:4, "3 first:8 last:8", "8,4,4" or "body.fc=8 *=3", whose numbers of '
            "bits are within that"
        ) from error
    return bits


def bits_name(bits: int | str) -> str:
    """A name for files and metrics: 3bit, auto_3; what file systems find too long ends in a hash."""
    if str(bits).isdigit():
        return f"{bits}bit"
    name = re.sub(r"[^A-Za-z0-9.]+", "_", str(bits)).strip("_")
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{digest(bits)[:8]}"


def _check_options(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"found {value!r}; must be a map of methods to their options")  # noqa: TRY004
    return {name: dict(find_method(name).check(options)) for name, options in value.items()}


def _check_tuning(value: Any) -> Tuning:
    if isinstance(value, Tuning):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(  # noqa: TRY004
            f"found {value!r}; must be a map of options to values; methods such as qronos-tuned and "
            "qronos-tuned-all say what is tuned"
        )
    for name, instead in _TOLD_ELSEWHERE.items():
        if name in value:
            raise ValueError(f"{name}: found {value[name]!r}; leave it out: {instead}")
    found = tuning_of(value)
    assert found is not None
    return found


def _map(values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a map that has no other keys."""
    return {"type": "object", "properties": dict(values), "additionalProperties": False}


_TOLD_ELSEWHERE: Final = {
    "loss": "methods such as qronos-tuned and qronos-tuned-all say it",
    "classes": "they are the subsets'",
}
_ONE_OF_METHODS: Final = {"enum": all_names()}
_OPTIONS_OF_METHODS: Final = _map(
    {
        name: _map({key: dict(option.allows.schema) for key, option in method.options.items()})
        for name, method in METHODS.items()
    }
)
# Without names of groups, which JavaScript, that editors check by, writes in another way.
_BITS_TEXT: Final = {"type": "string", "pattern": f"^ *(?:{re.sub('[?]P<[a-z]+>', '?:', TEXT)}) *$"}
Bits = Annotated[
    int | str, BeforeValidator(check_bits), WithJsonSchema({"anyOf": [dict(BITS.schema), _BITS_TEXT]})
]
MethodName = Annotated[str, BeforeValidator(check_name), WithJsonSchema(_ONE_OF_METHODS)]


class Grid(Section):
    """A factorial grid of cells: every combination of these factors.

    Methods that need no images leave out calibrations and seeds.
    """

    bits: Several[Bits]
    methods: Several[MethodName]
    bases: Several[Base]
    calibrations: Several[Calibration]
    seeds: Several[Seed]

    @property
    def grids(self) -> "tuple[Grid, ...]":
        """The grid itself, then those that come with it."""
        return (self,)

    @model_validator(mode="after")
    def _bits_have_names_of_their_own(self) -> Self:
        named: dict[str, int | str] = {}
        for bits in (bits for grid in self.grids for bits in grid.bits):
            if (other := named.setdefault(bits_name(bits), bits)) != bits:
                raise ValueError(
                    f"bits: found {other!r} and {bits!r}, which differ only in punctuation, so that their "
                    "files would share a name; keep one"
                )
        return self


class Further(Section):
    """Cells beside those of the study's grid; a factor that is left out is as there."""

    bits: Several[Bits] | None = None
    methods: Several[MethodName] | None = None
    bases: Several[Base] | None = None
    calibrations: Several[Calibration] | None = None
    seeds: Several[Seed] | None = None


class Study(Grid):
    """What to quantize how, for each subset: options of ``Recipe``, and those of methods by their names.

    ``tune`` has the options of the tuning after methods whose names end in ``-tuned`` or ``-tuned-all``.
    """

    also: tuple[Further, ...] = ()
    alphabet: Annotated[AlphabetKind, Checked(OPTIONS["alphabet"])]
    granularity: Annotated[Granularity, Checked(OPTIONS["granularity"])]
    radius: Annotated[Radius, Checked(OPTIONS["radius"])]
    percentile: Annotated[float, Checked(OPTIONS["percentile"])]
    fuse: Annotated[bool, Checked(OPTIONS["fuse"])]
    bias_correction: Annotated[bool, Checked(OPTIONS["bias_correction"])]
    equalize: Annotated[bool, Checked(OPTIONS["equalize"])] = False
    activations: Annotated[int | str | dict[str, int] | None, Checked(OPTIONS["activations"])] = None
    activation_range: Annotated[RangeRule, Checked(OPTIONS["activation_range"])] = "mse"
    tune: Annotated[Tuning, BeforeValidator(_check_tuning), WithJsonSchema(dict(TUNING_SCHEMA))] = Tuning()
    calibration_images: Positive
    retain_rate: Annotated[float, Checked(OPTIONS["retain_rate"])]
    held_back: Annotated[float, Checked(OPTIONS["held_back"])] = 0.0
    batch_size: Annotated[int, Checked(OPTIONS["batch_size"])]
    ignore: Annotated[tuple[str, ...], Checked(OPTIONS["ignore"])]
    options: Annotated[
        dict[str, dict[str, Any]], BeforeValidator(_check_options), WithJsonSchema(_OPTIONS_OF_METHODS)
    ] = Field(default_factory=dict)
    device: Annotated[DeviceChoice, Checked(DEVICE)] = "cpu"
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
