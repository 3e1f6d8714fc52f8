"""What a tuning may be told; imports neither torch nor numba, so that the command line can ask it at once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, Self, get_args

from laq.quantization.options import BOOLEAN, Option, check, nearest_name, number, one_of, whole_number

Loss = Literal["subset", "all"]


@dataclass(frozen=True)
class Tuning:
    """How to tune a quantized network to the float one.

    Attributes:
        loss: whose probabilities are compared: those of a ``subset`` of classes, or of ``all``.
        classes: the subset, as indices of the logits; a study fills in its subsets'.
        steps: of the optimizer; what it takes grows with these, not with the number of images.
        batch_size: images in each step.
        temperature: that logits are divided by.
        codes_rate: how far codes may go in a step, in steps of the alphabet, at first; 0 keeps them.
        scales_rate: the same of the alphabets' steps and the weights of norms, relatively, and of biases; 0
            keeps them.
        mix: learn from mixtures of two images too, which the float network has answers for as well.

    Raises:
        QuantizationError: an option is not allowed.

    Examples:
        >>> from laq.quantization import Recipe, Tuning
        >>> Recipe(bits=2, tune=Tuning(classes=(3, 17, 42))).tune.steps
        500
        >>> Recipe(bits=2, tune="all").tune == Tuning(loss="all")
        True
    """

    loss: Loss = "subset"
    classes: tuple[int, ...] = ()
    steps: int = 500
    batch_size: int = 32
    temperature: float = 2.0
    codes_rate: float = 0.02
    scales_rate: float = 0.004
    mix: bool = True

    @property
    def compared(self) -> tuple[int, ...] | None:
        """The classes whose probabilities are compared; None for all."""
        return None if self.loss == "all" else self.classes

    @property
    def of_any_loss(self) -> Self:
        """What decides which images are learned from, whichever classes count."""
        return replace(self, loss="all", classes=())

    def __post_init__(self) -> None:
        for name, option in _OPTIONS.items():
            object.__setattr__(self, name, check(name, getattr(self, name), option))


def _classes(value: Any) -> tuple[int, ...]:
    found = tuple(whole_number(0)(number) for number in value)
    if len(set(found)) < len(found):
        raise ValueError
    return found


_LOSSES: Final = one_of(*get_args(Loss))
_OPTIONS: Final[Mapping[str, Option]] = {
    "loss": _LOSSES,
    "classes": Option(_classes, "different numbers of classes"),
    "steps": whole_number(1),
    "batch_size": whole_number(1),
    "temperature": number(above=0),
    "codes_rate": number(least=0),
    "scales_rate": number(least=0),
    "mix": BOOLEAN,
}
# Of the options that a study gives, whose methods and subsets tell the others.
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {n: dict(option.schema) for n, option in _OPTIONS.items() if n not in ("loss", "classes")},
    "additionalProperties": False,
}


def tuning_of(value: Any) -> Tuning | None:
    """What users write: nothing, a loss, or a map of options, with a loss or without.

    Raises:
        ValueError: it is none of these, or an option is unknown or not allowed.
    """
    if value is None or isinstance(value, Tuning):
        return value
    if isinstance(value, str):
        value = {"loss": value}
    if not isinstance(value, Mapping):
        allowed = f"none, {_LOSSES.allowed}, or a map of options to values"
        raise ValueError(f"found {value!r}; must be {allowed}")  # noqa: TRY004
    known = [option.name for option in fields(Tuning)]
    for name in value:
        if name not in known:
            hint = nearest_name(str(name), known)
            raise ValueError(f"found {name!r}, which a tuning does not have: it has {', '.join(known)}{hint}")
    return Tuning(**value)
