"""What goes into a quantization, the recipe, and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Final, Self

from torch import Tensor, nn

from laq.quantization.alphabet import Alphabet, AlphabetSpec
from laq.quantization.methods.registry import DEFAULT, METHODS, find_method
from laq.quantization.options import (
    OPTIONS,
    AlphabetKind,
    Granularity,
    QuantizationError,
    Radius,
    RangeRule,
    check,
)
from laq.quantization.tuning.settings import Tuning, tuning_of

__all__ = ["QuantizationError", "QuantizedLayer", "QuantizedNetwork", "Recipe"]

_HELD_BACK: Final = 0.125  # by what is tuned
# Options that belonged to all methods in packed files of the first kind, whether they used them or not.
_ONCE_OF_ALL: Final = ("threshold", "form")


@dataclass(frozen=True)
class Recipe:  # noqa: PLW1641 (a frozen dataclass makes its hash)
    """How to quantize.

    Attributes:
        bits: of every layer, or of each by name (``laq.quantization.bits.spec`` makes such maps).
        method: a name in ``METHODS``: round-to-nearest, GPFQ, its stochastic and sparse kin, GPTQ, Qronos,
            AdaRound, BRECQ.
        alphabet: which levels there are, see ``make_alphabet``, as for the next three.
        granularity: a step per output channel, or one for the layer.
        radius: the largest level: a fraction of the largest weight, or how to choose it.
        percentile: of |w|, which stands for the largest weight.
        retain_rate: fraction of a convolution's patches to learn from.
        held_back: share of the calibration images that nothing learns from, one at least if not 0; they tell
            the result's ``held_back_error``. What is tuned holds back an eighth if this is 0.
        batch_size: images that are worked on at once; changes memory and rounding, nothing else.
        ignore: patterns of the names of layers that keep their weights.
        fuse: fold batch norms into the convolutions before them, first.
        bias_correction: shift the biases so that a layer's mean outputs stay what they were.
        equalize: give channels between two convolutions weights of like ranges on both sides, see
            ``execution.equalization``. Batch norms are folded.
        memory_gib: half of it is for activations, before they go to a temporary folder, and half for a
            layer's covariances, or patches and residuals, where the method can do with less.
        activations: bits of all activations, or of each by patterns of the names of the points where they are
            rounded, of which the first that matches counts, or a text such as ``auto:6``, of which
            ``choose_activations`` makes a map; None leaves them floats. Batch norms are folded.
        activation_range: how to choose the range of an activation, a name in ``activations.ranges.RANGES``.
        tune: how to tune the whole network after the method, if at all: a ``Tuning``, a map of its options,
            or its loss alone, ``subset`` or ``all``. Images that are held back judge it.
        seed: draws the patches, the stochastic roundings, and what tuning draws.
        options: the method's own, by name; what is left out has its default. GPFQ and its kin have
            ``form`` (``residual`` or ``covariance``; ``auto`` is the cheaper one), the sparse ones also
            ``threshold`` (λ, in steps of the alphabet: 0.75).

    Raises:
        QuantizationError: an option is not allowed.

    Examples:
        >>> from laq.quantization import Recipe
        >>> Recipe(bits=3, method="qronos", alphabet="twos_complement").alphabet_spec("any layer").bits
        3
        >>> Recipe(bits=1)
        Traceback (most recent call last):
            ...
        laq.quantization.options.QuantizationError: bits: found 1; must be a whole number from 2 to 24...
    """

    bits: int | dict[str, int] = field(default=4, hash=False)  # a map has no hash
    method: str = DEFAULT
    alphabet: AlphabetKind = "symmetric"
    granularity: Granularity = "channel"
    radius: Radius = "auto"
    percentile: float = 1.0
    retain_rate: float = 1.0
    held_back: float = 0.0
    batch_size: int = 16
    ignore: tuple[str, ...] = ()
    fuse: bool = False
    bias_correction: bool = False
    equalize: bool = False
    memory_gib: float = 4.0
    activations: int | str | dict[str, int] | None = field(default=None, hash=False)
    activation_range: RangeRule = "mse"
    tune: Tuning | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in OPTIONS:
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.activations is not None or self.equalize:
            object.__setattr__(self, "fuse", True)
        object.__setattr__(self, "tune", check("tune", self.tune, tuning_of))
        if self.tune is not None and not self.held_back:
            object.__setattr__(self, "held_back", _HELD_BACK)
        method = check("method", self.method, find_method)
        object.__setattr__(self, "options", check("options", self.options, method.check))

    def __eq__(self, other: object) -> bool:
        """Whether all options are the same, and patterns in the same order: the first that matches counts."""
        if not isinstance(other, Recipe):
            return NotImplemented
        ours, theirs = ([getattr(r, option.name) for option in fields(r)] for r in (self, other))
        return ours == theirs and self.patterns == other.patterns

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The recipe that ``dataclasses.asdict`` made ``content`` of, perhaps in an earlier version.

        Raises:
            QuantizationError: an option is unknown or not allowed.
        """
        if not isinstance(content, Mapping):
            raise QuantizationError(f"found {content!r}; must be the options of a recipe")
        kept = dict(content)
        before = {name: kept.pop(name) for name in _ONCE_OF_ALL if name in kept}
        if unknown := kept.keys() - {known.name for known in fields(cls)}:
            raise QuantizationError(f"unknown option {min(unknown)}; a later laq may know it")
        if isinstance(kept.get("tune"), Mapping) and "held_back" in kept["tune"]:
            kept["tune"] = {**kept["tune"]}
            kept["held_back"] = kept["tune"].pop("held_back")
        method = METHODS.get(str(kept.get("method", DEFAULT)))
        if before and method:
            kept["options"] = {name: value for name, value in before.items() if name in method.options}
        return cls(**kept)

    @property
    def memory(self) -> float:
        """``memory_gib`` in bytes."""
        return self.memory_gib * 2**30

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those that give activations their bits, in their order."""
        return tuple(self.activations) if isinstance(self.activations, dict) else ()

    def activation_bits(self, point: str) -> int | None:
        """The bits of the activations that are rounded at a point; None if these stay floats."""
        if not isinstance(self.activations, dict):
            assert not isinstance(self.activations, str)
            return self.activations
        return next((bits for pattern, bits in self.activations.items() if fnmatchcase(point, pattern)), None)

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

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, quantize
        >>> network, images = torch.nn.Linear(8, 3), torch.rand(16, 8)
        >>> (layer,) = quantize(network, images, Recipe(bits=2)).layers
        >>> layer.codes.shape, layer.levels, sorted(set(layer.codes.flatten().tolist()) - {-1, 0, 1})
        (torch.Size([3, 8]), 3, [])
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
        return int((self.alphabet.decode(self.codes) == 0).sum()) / self.codes.numel()


@dataclass(frozen=True)
class NotQuantized:
    """Weights that keep their values, how many there are, and the reason.

    They are a parameter of two dimensions or more, or what an operation multiplies with and is no parameter.
    """

    name: str
    weights: int
    reason: str


@dataclass(frozen=True)
class InputKind:
    """What one input of a network is: its keyword, if it has one, the shape of one image's, and its type."""

    keyword: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Tuned:
    """What a tuning did, by the calibration images that neither it nor the method learned from.

    Divergences are KL(float ‖ quantized) of the tempered probabilities that the tuning compares, times the
    square of the temperature, in nats, averaged over the images that were held back.

    Attributes:
        taken: whether the tuned network is the nearer one to the float network; else it was left.
        divergence_before: of the network as the method made it.
        divergence_after: of the tuned network; None if it was never finite.
        codes_moved: how many weights have another code in the tuned network.
        passes: how often it went over as many images as are learned from.
        learned: how many images are learned from.
        held_back: how many are held back.

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, Tuning, quantize
        >>> tuning = Tuning(loss="all", steps=8, batch_size=4)
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> told = quantize(network, torch.rand(16, 8), Recipe(bits=3, tune=tuning)).tuned
        >>> told.learned, told.held_back
        (14, 2)
    """

    taken: bool
    divergence_before: float
    divergence_after: float | None
    codes_moved: int
    passes: float
    learned: int
    held_back: int


@dataclass(frozen=True)
class QuantizedNetwork:
    """A quantized copy of a network, its layers in the order of execution, and its outputs' error.

    Attributes:
        relative_error: ‖Y - Ỹ‖ / ‖Y‖ over the calibration images, Y being the network's outputs; over those
            that are learned from, if some are held back.
        held_back_error: the same of the logits, over the images that are held back; None if there are none.
            What is much larger than ``relative_error`` was learned by heart.
        folded: batch norms that were folded into convolutions; identities stand in their places.
        calibration: SHA-256 of the calibration inputs' bytes, in hexadecimal.
        not_quantized: what else holds weights, and why it keeps them.
        on_floats: what computes on floats between activations that are rounded, by the names of the graph's
            nodes: no integer runtime has a form of it.
        inputs: what the network is called with, if its activations are rounded.
        device: what it was quantized on: ``cpu``, or the name of a GPU.
        tuned: what tuning did, if the recipe asks for it.
        tuning_seconds: what that took.

    Examples:
        >>> import torch
        >>> from laq.quantization import Recipe, quantize
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> result = quantize(network, torch.rand(16, 8), Recipe(bits={"0": 2, "2": 4}))
        >>> result.weights, result.mean_bits  # (32 × 2 + 8 × 4) / 40
        (40, 2.4)
        >>> result.network(torch.rand(5, 8)).shape
        torch.Size([5, 2])
    """

    network: nn.Module
    layers: tuple[QuantizedLayer, ...]
    relative_error: float
    recipe: Recipe
    folded: tuple[str, ...] = ()
    calibration: str = ""
    not_quantized: tuple[NotQuantized, ...] = ()
    on_floats: tuple[str, ...] = ()
    inputs: tuple[InputKind, ...] = ()
    device: str = "cpu"
    tuned: Tuned | None = None
    tuning_seconds: float = 0.0
    held_back_error: float | None = None

    @property
    def weights(self) -> int:
        """How many weights are quantized; those that several layers share count once."""
        return sum(layer.codes.numel() for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of quantized weights that are zero."""
        return sum(layer.sparsity * layer.codes.numel() for layer in self.layers) / self.weights

    @property
    def mean_bits(self) -> float:
        """Bits per quantized weight, on average."""
        return sum(layer.bits * layer.codes.numel() for layer in self.layers) / self.weights
