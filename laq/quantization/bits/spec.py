"""How many bits each layer gets: what users write, and what it says of the layers of a network.

A budget (``auto``) says nothing of single layers: ``bits/allocate.py`` spends it on the most sensitive ones.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Integral
from typing import Any, Final, Literal

from laq.quantization.options import (
    BITS,
    HIGHEST,
    LOWEST,
    QuantizationError,
    check,
    check_patterns,
    number,
    whole_number,
)

CHOICES: Final = (2, 3, 4, 5, 6, 8)
_EXAMPLES: Final = (
    'a number such as 4, one per layer such as 8,4,4, patterns such as "body.fc=8 *=3", or asc:4, desc:4:2, '
    "auto:3, auto:96000B; after a number or the last four also first:8 and last:8"
)
TEXT: Final = (
    r"(?P<listed>\d+(?:,\d+)+)"
    r"|(?P<patterns>[^\s=]+=\d+(?: +[^\s=]+=\d+)*)"
    r"|(?:(?P<uniform>\d+)"
    r"|(?P<order>asc|desc):(?P<average>\d+)(?::(?P<spread>\d+))?"
    r"|auto:(?:(?P<mean>\d+(?:\.\d+)?)|(?P<size>\d+)B))"
    r"(?: +first:(?P<first>\d+))?(?: +last:(?P<last>\d+))?"
)


@dataclass(frozen=True)
class Slope:
    """Bits that rise (``asc``) or fall (``desc``) over depth, from average - spread to average + spread.

    Every number of bits is held for an equal run of layers. Where the layers do not divide equally, the
    runs are rounded symmetrically about the middle, so that the mean over layers (not over weights) is
    ``average`` exactly for any number of layers.
    """

    order: Literal["asc", "desc"]
    average: int
    spread: int = 1

    def bits(self, depth: int) -> list[int]:
        """The bits of ``depth`` layers, first to last."""
        steps, sign = 2 * self.spread + 1, 1 if self.order == "asc" else -1
        centred = (Fraction((2 * i + 1 - depth) * steps, 2 * depth) for i in range(depth))
        return [self.average + sign * round(c) for c in centred]


@dataclass(frozen=True)
class Budget:
    """What label-aware bits may take: bits a weight on average (``mean``), or bytes in all (``size``).

    Counted are the codes alone; steps, biases and layers that are not quantized come on top.

    Raises:
        QuantizationError: neither or both are given, a mean of fewer or more bits than a layer may have, or
            no bytes.
    """

    mean: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) == (self.size is None):
            raise QuantizationError("a budget is either a mean or a size")
        if self.mean is not None:
            check("bits: a budget's mean", self.mean, number(least=LOWEST, most=HIGHEST))
        else:
            check("bits: a budget's size", self.size, whole_number(1))

    def bits(self, weights: int) -> int:
        """The same in bits for so many weights in all."""
        if self.size is not None:
            return 8 * self.size
        return int(Fraction(str(self.mean)) * weights)


class UnreachablePatternError(QuantizationError):
    """A pattern of layers stands after one that matches all that it does."""


Plan = int | tuple[int, ...] | dict[str, int] | Slope | Budget


@dataclass(frozen=True)
class Precision:
    """How many bits each layer gets.

    Attributes:
        plan: the bits of all layers; of each, in the order of execution; by pattern of the layers'
            names, of which the first that matches counts; over depth; or a budget to be spent where
            sensitivities say (``label_aware_bits``).
        first: of the first layer, whatever the plan.
        last: of the last layer, whatever the plan.
        choices: for a budget, the bits that a layer may get.

    Raises:
        QuantizationError: some of them are no whole number that bits may be.
    """

    plan: Plan = 4
    first: int | None = None
    last: int | None = None
    choices: tuple[int, ...] = CHOICES

    def __post_init__(self) -> None:
        for bits in self._mentioned():
            check("bits", bits, BITS)

    def _mentioned(self) -> list[int]:
        match self.plan:
            case int(bits):
                own = [bits]
            case dict(patterns):
                own = list(patterns.values())
            case Slope(average=average, spread=spread):
                own = [average - spread, average + spread]
            case Budget():
                own = []
            case listed:
                own = list(listed)
        return [*own, *self.choices, *(b for b in (self.first, self.last) if b is not None)]

    def ends(self, names: Sequence[str]) -> dict[str, int]:
        """The bits of the first and the last layer, where they are given."""
        ends = ((names[0], self.first), (names[-1], self.last))
        return {name: bits for name, bits in ends if bits is not None}


def parse_bits(value: Any) -> Precision:
    """What users write, in YAML or on a command line, as a ``Precision``.

    ==============================================  ==============================================
    ``4``                                           every layer
    ``[8, 4, 4]``, ``"8,4,4"``                      one per layer, in the order of execution
    ``{"body.fc": 8, "*": 3}``, ``"body.fc=8 *=3"``  the first pattern that matches a layer's name
    ``"asc:4"``, ``"desc:4:2"``                     3 to 5 bits over depth, 6 down to 2
    ``"auto:3"``, ``"auto:96000B"``                 label-aware: on average 3 bits a weight; bytes
    ``"3 first:8 last:8"``                          the same, but for the ends; also of the last two
    ==============================================  ==============================================

    Raises:
        QuantizationError: it is none of these, or holds a pattern that never counts.

    Examples:
        >>> from laq.quantization import parse_bits
        >>> from laq.quantization.bits.spec import bits_per_layer
        >>> bits_per_layer(parse_bits("asc:3 first:8"), ["conv1", "conv2", "conv3", "fc"])
        {'conv1': 8, 'conv2': 3, 'conv3': 3, 'fc': 4}
        >>> parse_bits("auto:2.5").plan
        Budget(mean=2.5, size=None)
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return Precision(int(value))
    if isinstance(value, list | tuple) and value and all(type(b) is int for b in value):
        return Precision(tuple(value))
    if isinstance(value, dict) and value and all(type(k) is str and type(b) is int for k, b in value.items()):
        return Precision(dict(value))
    if isinstance(value, str) and (found := re.fullmatch(TEXT, value.strip(), re.ASCII)):
        return _from_text({key: text for key, text in found.groupdict().items() if text is not None})
    raise QuantizationError(f"bits: found {value!r}, which is not {_EXAMPLES}")


def _from_text(parts: dict[str, str]) -> Precision:
    plan: Plan
    match parts:
        case {"listed": listed}:
            plan = tuple(map(int, listed.split(",")))
        case {"patterns": patterns}:
            pairs = [pattern.split("=") for pattern in patterns.split()]
            plan = {name: int(bits) for name, bits in pairs}
            if len(plan) < len(pairs):
                raise QuantizationError(f"bits: found {patterns!r}; each pattern may stand but once")
            _check_reached(patterns, list(plan))
        case {"order": "asc" | "desc" as order}:
            plan = Slope(order, int(parts["average"]), int(parts.get("spread", 1)))
        case {"mean": mean}:
            plan = Budget(mean=float(mean))
        case {"size": size}:
            plan = Budget(size=int(size))
        case _:
            plan = int(parts["uniform"])
    first, last = (int(parts[end]) if end in parts else None for end in ("first", "last"))
    return Precision(plan, first, last)


def _check_reached(text: str, patterns: Sequence[str]) -> None:
    for later, earlier in ((patterns[j], patterns[i]) for j in range(len(patterns)) for i in range(j)):
        if _covers(earlier, later):
            raise UnreachablePatternError(
                f"bits: found {text!r}; {later} never counts after {earlier}, which matches all that it "
                "does: put it first"
            )


def _covers(pattern: str, other: str) -> bool:
    """Whether all names that ``other`` matches match ``pattern``, as far as that is plain to see."""
    if set(pattern) == {"*"}:
        return True
    plain = not set(other) & set("*?[")
    return (plain or (not set(pattern) & set("?[") and "[" not in other)) and fnmatchcase(other, pattern)


def bits_per_layer(precision: Precision, names: Sequence[str]) -> dict[str, int]:
    """The bits of every layer of ``names``, which are in the order of execution.

    Raises:
        QuantizationError: a list of another length, a pattern that matches no layer, a layer that no
            pattern matches, or a budget, which takes sensitivities (``label_aware_bits``).
    """
    match precision.plan:
        case int(bits):
            listed = [bits] * len(names)
        case dict(patterns):
            listed = _by_pattern(patterns, names)
        case Slope() as slope:
            listed = slope.bits(len(names))
        case Budget():
            raise QuantizationError("bits: auto is chosen from sensitivities, see label_aware_bits")
        case plan:
            listed = list(plan)
    if len(listed) != len(names):
        raise QuantizationError(f"bits: {len(listed)} given for {len(names)} layers: {', '.join(names)}")
    return dict(zip(names, listed, strict=True)) | precision.ends(names)


def _by_pattern(patterns: dict[str, int], names: Sequence[str]) -> list[int]:
    check_patterns("bits", patterns, names)
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise QuantizationError(f"bits: no pattern matches layer {name}; end with '*' for all others")
    return [next(bits for p, bits in patterns.items() if fnmatchcase(name, p)) for name in names]
