"""What every option may be, stated once: for ``Recipe``, ``params.yaml``, the command line and methods.

This module imports neither torch nor numba, so that the command line can ask it at once.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isfinite
from numbers import Integral, Real
from typing import Any, Final, Literal, get_args

AlphabetKind = Literal["symmetric", "twos_complement", "midrise", "predecessor"]
Granularity = Literal["channel", "layer"]
RadiusRule = Literal["auto", "mse", "error"]
Radius = float | RadiusRule
RangeRule = Literal["minmax", "percentile", "mse"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
LOWEST: Final = 2  # bits
HIGHEST: Final = 24  # float32 cannot hold finer codes
_MOST_OF_ACTIVATIONS: Final = 8  # which a byte holds
_MEAN: Final = r"auto:(\d+(?:\.\d+)?)"


class QuantizationError(ValueError):
    """The network, the calibration images or the options cannot be worked with."""


@dataclass(frozen=True)
class Option:
    """What an option may be.

    Attributes:
        convert: makes of a value what is kept of it, or raises ``ValueError`` or ``TypeError``.
        allowed: the values that are allowed, in words that follow "must be".
        schema: the same as a JSON Schema, for editors.
        words: those that are allowed, if any are.
    """

    convert: Callable[[Any], Any]
    allowed: str
    schema: Mapping[str, Any] = field(default_factory=dict, compare=False)
    words: Sequence[str] = ()

    def __call__(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            ValueError: it is not allowed.
        """
        try:
            return self.convert(value)
        except (TypeError, ValueError, OverflowError):
            hint = nearest_name(value, self.words) if isinstance(value, str) else ""
            raise ValueError(f"found {value!r}; must be {self.allowed}{hint}") from None


def whole_number(least: int, most: int | None = None) -> Option:
    """A whole number of Python's or NumPy's; booleans and floats are none."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError
        number = int(value)
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    bounds = f"from {least} to {most}"
    if most is None:
        bounds = f"above {least - 1}" if least > 0 else f"of at least {least}"
    schema: dict[str, Any] = {"type": "integer", "minimum": least}
    return Option(convert, f"a whole number {bounds}", schema if most is None else schema | {"maximum": most})


def number(*, above: float | None = None, least: float | None = None, most: float | None = None) -> Option:
    """A finite number of Python's or NumPy's within bounds; booleans are none."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        kept = float(value)
        within = (above is None or kept > above, least is None or kept >= least, most is None or kept <= most)
        if not (isfinite(kept) and all(within)):
            raise ValueError
        return kept

    bounds = {"above": above, "at least": least, "at most": most}
    words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    keywords = {"exclusiveMinimum": above, "minimum": least, "maximum": most}
    schema = {keyword: bound for keyword, bound in keywords.items() if bound is not None}
    return Option(convert, f"a number {', '.join(words)}".strip(), {"type": "number", **schema})


def one_of(*words: str) -> Option:
    """One of some words."""

    def convert(value: Any) -> str:
        return words[words.index(value)]

    return Option(convert, ", ".join(words), {"enum": list(words)}, words)


def either(words: Option, other: Option) -> Option:
    """One of some words, or what another option allows."""

    def convert(value: Any) -> Any:
        return words(value) if isinstance(value, str) else other(value)

    schema = {"anyOf": [words.schema, other.schema]}
    return Option(convert, f"{words.allowed}, or {other.allowed}", schema, words.words)


def matching(pattern: str, allowed: str) -> Option:
    """A text that matches a pattern as a whole."""

    def convert(value: Any) -> str:
        if re.fullmatch(pattern, value, re.ASCII) is None:
            raise ValueError
        return str(value)

    return Option(convert, allowed, {"type": "string", "pattern": f"^(?:{pattern})$"})


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError
    return tuple(value)


def _bits(value: Any) -> int | dict[str, int]:
    if not isinstance(value, Mapping):
        return int(BITS(value))
    if not all(isinstance(layer, str) for layer in value):
        raise TypeError
    return {layer: int(BITS(bits)) for layer, bits in value.items()}


def _activation_mean(value: Any) -> str:
    found = re.fullmatch(_MEAN, value, re.ASCII)
    if found is None or not LOWEST <= float(found[1]) <= _MOST_OF_ACTIVATIONS:
        raise ValueError
    return str(value)


def _activations(value: Any) -> int | str | dict[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        kept: int | str = ACTIVATION_BITS_OR_MEAN(value)
        return kept
    if not value or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError
    return {pattern: int(ACTIVATION_BITS(bits)) for pattern, bits in value.items()}


BOOLEAN: Final = Option(_boolean, "true or false", {"type": "boolean"})
TEXT: Final = matching(r"[^\0]+", "a text, not empty and without null characters")
BITS: Final = whole_number(LOWEST, HIGHEST)
ACTIVATION_BITS: Final = whole_number(LOWEST, _MOST_OF_ACTIVATIONS)
ACTIVATION_MEAN: Final = Option(
    _activation_mean, "a mean of these such as auto:6", {"type": "string", "pattern": f"^(?:{_MEAN})$"}
)
ACTIVATION_BITS_OR_MEAN: Final = either(ACTIVATION_MEAN, ACTIVATION_BITS)
SHARE: Final = number(above=0, most=1)
NO_GPU: Final = "device: found cuda, but torch sees no GPU here; set it to auto or cpu"
DEVICE: Final = one_of(*get_args(DeviceChoice))  # which is no option of a recipe: it says where, not how
# The options of a recipe by name, but for the method and the method's own, which are in its registry.
OPTIONS: Final[Mapping[str, Option]] = {
    "bits": Option(_bits, f"{BITS.allowed}, or a map of layers to such, as choose_bits makes"),
    "alphabet": one_of(*get_args(AlphabetKind)),
    "granularity": one_of(*get_args(Granularity)),
    "radius": either(one_of(*get_args(RadiusRule)), number(above=0)),
    "percentile": SHARE,
    "retain_rate": SHARE,
    "held_back": number(least=0, most=0.5),
    "batch_size": whole_number(1),
    "ignore": Option(
        _patterns,
        "patterns of layers' names, such as ('body.*',)",
        {"type": "array", "items": {"type": "string"}},
    ),
    "fuse": BOOLEAN,
    "bias_correction": BOOLEAN,
    "equalize": BOOLEAN,
    "memory_gib": number(least=0),
    "activations": Option(
        _activations,
        f"none, {ACTIVATION_BITS.allowed}, {ACTIVATION_MEAN.allowed}, or a map of patterns of names to such",
        {
            "anyOf": [
                {"type": "null"},
                ACTIVATION_BITS.schema,
                ACTIVATION_MEAN.schema,
                {"type": "object", "additionalProperties": ACTIVATION_BITS.schema},
            ]
        },
    ),
    "activation_range": one_of(*get_args(RangeRule)),
    "seed": whole_number(0, 2**32 - 1),
}


def check(name: str, value: Any, option: Callable[[Any], Any] | None = None) -> Any:
    """The value of the recipe's option ``name``, or what another ``option`` so called makes of it.

    Raises:
        QuantizationError: it is not allowed.
    """
    try:
        return (option or OPTIONS[name])(value)
    except ValueError as error:
        raise QuantizationError(f"{name}: {error}") from None


def nearest_name(name: str, known: Sequence[str]) -> str:
    """A question after the known name that is nearest to a misspelt one; empty where none is near."""
    names = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), names, 1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def check_patterns(option: str, patterns: Iterable[str], names: Sequence[str], what: str = "layer") -> None:
    """See that every pattern of an option matches some name; ``what`` has these names.

    Raises:
        QuantizationError: one does not.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantizationError(f"{option}: {pattern!r} matches no {what}; {what}s: {', '.join(names)}")
