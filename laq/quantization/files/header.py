"""What a packed file says about itself, in JSON: written as it was always read, and read with suspicion."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Final

from pydantic import PlainValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from laq.quantization.recipe import InputKind, NotQuantized, QuantizationError, Recipe, Tuned

# Format 1 knows Conv2d and Linear modules with a step per row, in the type of their weights.
FORMAT: Final = 2
# Recipes in format 1: two options of some methods stand among those of all.
_OPTIONS_1: Final = {"threshold": 0.75, "form": "auto"}
_RECIPE_1: Final = (
    "bits", "method", "alphabet", "granularity", "radius", "percentile", "threshold", "retain_rate",
    "batch_size", "ignore", "fuse", "bias_correction", "form", "memory_gib", "seed",
)  # fmt: skip
_OFFSETS: Final = (0.0, 0.5)
_LEFT_OUT_EMPTY: Final = ("not_quantized", "on_floats", "inputs", "tuned", "held_back_error")
# Options of a recipe that are left out where one of them is none or false.
_LEFT_OUT_WITH: Final = {
    "activations": ("activations", "activation_range"), "tune": ("tune",), "equalize": ("equalize",),
    "held_back": ("held_back",),
}  # fmt: skip
_SINCE_FORMAT_2: Final = ("parameter", "operation", "dtype")
_MOST_DIMENSIONS: Final = 16  # of an image
_MOST_VALUES: Final = 2**28  # of an image in all inputs


@dataclass(frozen=True)
class Cut:
    """Which rows (class indices) of the classifier stay: output i of the cut network is class ``rows[i]``.

    ``layer`` names the layer whose outputs are the logits: a linear or an ungrouped convolution.
    """

    layer: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class LayerHeader:
    """How to read one layer's codes; the fields are those of its alphabet and of ``QuantizedLayer``.

    Attributes:
        dtype: of the weights, such as ``float16``; if empty, that of the steps.
    """

    name: str
    bits: int
    low: int
    high: int
    offset: float
    shape: tuple[int, ...]
    relative_error: float
    parameter: str = ""
    operation: str = ""
    dtype: str = ""

    def __post_init__(self) -> None:
        if not self.parameter:
            object.__setattr__(self, "parameter", f"{self.name}.weight")
        _require("bits", self.bits, fits=1 <= self.bits <= 32)
        _require("shape", self.shape, fits=len(self.shape) > 0 and min(self.shape) > 0)
        _require("offset", self.offset, fits=self.offset in _OFFSETS)
        _require("high", self.high, fits=-(2**31) <= self.low <= self.high < 2**31)
        _require("parameter", self.parameter, fits=self.parameter in {self.name, f"{self.name}.weight"})

    @property
    def weights(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        format: of the file; later ones than ``FORMAT`` are refused.
        laq: the version that wrote the file, as ``torch``.
        relative_error: of the whole network's outputs, before any cut.
        calibration: SHA-256 of the calibration inputs' bytes.
        notes: whatever the writer added, such as the classes that the network is for.
        not_quantized: what else holds weights, and why it keeps them.
        on_floats, inputs, tuned, held_back_error: as those of ``QuantizedNetwork``; with ``inputs``,
            activations are rounded.
    """

    format: int
    laq: str
    torch: str
    recipe: Annotated[Recipe, PlainValidator(Recipe.from_json)]
    relative_error: float
    calibration: str
    layers: tuple[LayerHeader, ...]
    folded: tuple[str, ...]
    cut: Cut | None
    notes: dict[str, Any]
    not_quantized: tuple[NotQuantized, ...] = ()
    on_floats: tuple[str, ...] = ()
    inputs: tuple[InputKind, ...] = ()
    tuned: Tuned | None = None
    held_back_error: float | None = None

    def __post_init__(self) -> None:
        _require("format", self.format, fits=1 <= self.format <= FORMAT)
        names, parameters = ([getattr(layer, k) for layer in self.layers] for k in ("name", "parameter"))
        keywords = [kind.keyword for kind in self.inputs if kind.keyword]
        unique = (("layers", names), ("layers", parameters), ("folded", self.folded), ("inputs", keywords))
        for field, values in unique:
            repeated = [value for value, count in Counter(values).items() if count > 1]
            _require(field, repeated, fits=not repeated)
        shapes = [kind.shape for kind in self.inputs]
        for shape in shapes:
            _require("inputs", shape, fits=len(shape) <= _MOST_DIMENSIONS and min(shape, default=1) > 0)
        total = sum(map(math.prod, shapes))
        _require("inputs", total, fits=total <= _MOST_VALUES)


_READER: Final = TypeAdapter(Header)


def fits_format_1(recipe: Recipe) -> bool:
    """Whether what reads format 1 alone knows the recipe's options."""
    later = [option for option in fields(recipe) if option.name not in {*_RECIPE_1, "options"}]
    as_before = all(getattr(recipe, option.name) == option.default for option in later)
    return as_before and recipe.options.keys() <= _OPTIONS_1.keys()


def write_header(header: Header) -> str:
    """The header as JSON.

    Raises:
        QuantizationError: JSON cannot hold the notes.
    """
    content = asdict(header)
    for name in _LEFT_OUT_EMPTY:
        if not content[name]:
            del content[name]
    for option, names in _LEFT_OUT_WITH.items():
        for name in names if not content["recipe"][option] else ():
            del content["recipe"][name]
    if header.format == 1:
        content["layers"] = [
            {key: value for key, value in layer.items() if key not in _SINCE_FORMAT_2}
            for layer in content["layers"]
        ]
        options = _OPTIONS_1 | content["recipe"] | dict(header.recipe.options)
        content["recipe"] = {name: options[name] for name in _RECIPE_1}
    try:
        return json.dumps(content, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantizationError(f"notes: {error}; give what JSON can hold") from error


def read_header(text: str) -> Header:
    """The inverse of ``write_header``.

    Raises:
        QuantizationError: the text is no header, or of a later format.
    """
    try:
        content = from_json(text)
        found = content.get("format") if isinstance(content, dict) else None
        later = isinstance(found, int) and FORMAT < found < 2**31
        header = None if later else _READER.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        told = first["msg"].removeprefix("Value error, ")
        raise QuantizationError(f"its header is damaged ({where}{told}); write the file again") from error
    except (ValueError, TypeError, ArithmeticError) as error:  # of numbers beyond all bounds
        raise QuantizationError(f"its header is damaged ({error}); write the file again") from error
    if header is None:
        laq = content.get("laq")
        raise QuantizationError(
            f"format {found}, written by laq {laq if isinstance(laq, str) else '?'}, while this "
            f"laq reads up to {FORMAT}; upgrade laq"
        )
    return header


def _require(field: str, value: object, *, fits: bool) -> None:
    if not fits:
        raise QuantizationError(f"{field}: found {value!r}")
