"""What goes into a quantization, the recipe, and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from torch import Tensor, nn

from laq.quantization.alphabet import (
    HIGHEST,
    LOWEST,
    RADIUS_RULES,
    Alphabet,
    AlphabetKind,
    AlphabetSpec,
    Granularity,
    Radius,
)

Method = Literal["rtn", "gpfq", "sgpfq", "gpfq_l0", "gpfq_l1", "gptq", "qronos"]
METHODS: tuple[Method, ...] = get_args(Method)
Form = Literal["auto", "residual", "covariance"]


class QuantizationError(ValueError):
    """The network, the calibration images or the options cannot be worked with."""


def _among(words: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return words.__contains__, ", ".join(words)


def _are_bits(value: Any) -> bool:
    every = value.values() if isinstance(value, dict) else [value]
    return all(type(bits) is int and LOWEST <= bits <= HIGHEST for bits in every)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _is_radius(value: Any) -> bool:
    return value in RADIUS_RULES or _is_positive(value)


def _is_share(value: Any) -> bool:
    return _is_positive(value) and value <= 1


def _is_none_or_more(value: Any) -> bool:
    return value == 0 or _is_positive(value)


# What a recipe's options may be, and that in words.
_ALLOWED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "bits": (_are_bits, f"{LOWEST} to {HIGHEST}, or a map of layers to such, as choose_bits makes"),
    "method": _among(METHODS),
    "alphabet": _among(get_args(AlphabetKind)),
    "granularity": _among(get_args(Granularity)),
    "radius": (_is_radius, f"{', '.join(RADIUS_RULES)}, or a number above 0"),
    "percentile": (_is_share, "above 0, at most 1"),
    "threshold": (_is_none_or_more, "a number, at least 0"),
    "retain_rate": (_is_share, "above 0, at most 1"),
    "batch_size": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "form": _among(get_args(Form)),
    "memory_gib": (_is_none_or_more, "a number, at least 0"),
    "seed": (lambda value: type(value) is int, "a whole number"),
}


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    Attributes:
        bits: of every layer, or of each by name (``laq.quantization.bits.spec`` makes such maps).
        method: round-to-nearest, GPFQ, its stochastic and sparse kin, GPTQ or Qronos.
        alphabet: which levels there are, see ``make_alphabet``, as for the next three.
        granularity: a step per output channel, or one for the layer.
        radius: the largest level: a fraction of the largest weight, or how to choose it.
        percentile: of |w|, which stands for the largest weight.
        threshold: λ of the sparse methods, in steps of the alphabet; up to 0.5 that of ``gpfq_l0`` does
            nothing, since rounding to the nearest makes the same zeros.
        retain_rate: fraction of a convolution's patches to learn from.
        batch_size: images that are worked on at once; changes memory and rounding, nothing else.
        ignore: patterns of the names of layers that keep their weights.
        fuse: fold batch norms into the convolutions before them, first.
        bias_correction: shift the biases so that a layer's mean outputs stay what they were.
        form: of GPFQ; ``auto`` picks the cheaper one (``inputs.choose_form``).
        memory_gib: half of it is for activations, before they go to a temporary folder, and half for a
            layer's patches and residuals, before the form is taken that needs less.
        seed: draws the patches and the stochastic roundings.

    Raises:
        QuantizationError: an option that is none of these.
    """

    bits: int | dict[str, int] = 4
    method: Method = "gpfq"
    alphabet: AlphabetKind = "symmetric"
    granularity: Granularity = "channel"
    radius: Radius = "auto"
    percentile: float = 1.0
    threshold: float = 0.75
    retain_rate: float = 1.0
    batch_size: int = 16
    ignore: tuple[str, ...] = ()
    fuse: bool = False
    bias_correction: bool = False
    form: Form = "auto"
    memory_gib: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (allows, words) in _ALLOWED.items():
            value = getattr(self, name)
            if not allows(value):
                raise QuantizationError(f"{name}: found {value!r}; must be {words}")

    @property
    def memory(self) -> float:
        """``memory_gib`` in bytes."""
        return self.memory_gib * 2**30

    def alphabet_spec(self, layer: str) -> AlphabetSpec:
        """The alphabet of one layer."""
        bits = self.bits if isinstance(self.bits, int) else self.bits[layer]
        return AlphabetSpec(self.alphabet, bits, self.granularity, self.radius, self.percentile)


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer's outcome: ``alphabet.decode(codes)``, in the weights' type, are the layer's weights.

    Attributes:
        name: the module's whose ``weight`` is quantized, else the parameter's own name.
        codes: int32, of the weights' shape; ``alphabet.step`` broadcasts over them.
        relative_error: ‖Y - Ỹ‖ / ‖Y‖ over the calibration images, Y and Ỹ being the outputs of this
            layer in the analog and in the quantized network.
        seconds: what choosing the codes took, without running the networks.
        flops: of that, the floating-point operations in products over patches and of matrices.
        operation: the function of torch that multiplies with the weights, such as ``conv2d``.
        parameter: the weights' name among the network's parameters, the first one of several.
    """

    name: str
    bits: int
    codes: Tensor
    alphabet: Alphabet
    relative_error: float
    seconds: float
    flops: float
    operation: str = ""
    parameter: str = ""

    def __post_init__(self) -> None:
        if not self.parameter:
            object.__setattr__(self, "parameter", f"{self.name}.weight")

    @property
    def levels(self) -> int:
        """How many values a weight may take."""
        return self.alphabet.levels

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are zero."""
        return int((self.codes == -self.alphabet.offset).sum()) / self.codes.numel()


@dataclass(frozen=True)
class QuantizedNetwork:
    """A quantized copy of a network, its layers in the order of execution, and its outputs' error.

    Attributes:
        relative_error: ‖Y - Ỹ‖ / ‖Y‖ over the calibration images, Y being the network's outputs.
        folded: batch norms that were folded into convolutions; identities stand in their places.
        calibration: SHA-256 of the calibration inputs' bytes, in hexadecimal.
    """

    network: nn.Module
    layers: tuple[QuantizedLayer, ...]
    relative_error: float
    recipe: Recipe
    folded: tuple[str, ...] = ()
    calibration: str = ""

    @property
    def weights(self) -> int:
        """How many weights are quantized."""
        return sum(layer.codes.numel() for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of quantized weights that are zero."""
        return sum(layer.sparsity * layer.codes.numel() for layer in self.layers) / self.weights

    @property
    def mean_bits(self) -> float:
        """Bits per quantized weight, on average."""
        return sum(layer.bits * layer.codes.numel() for layer in self.layers) / self.weights
