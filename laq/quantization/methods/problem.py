"""The problem that a method solves for each layer, and its solution.

With the layer's weights w and inputs X in the float network, and inputs X̃ in the partly quantized one, every
method looks for levels q of an alphabet that make ‖w X - q X̃‖ small, neuron by neuron.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from laq.quantization.alphabet import Alphabet


@dataclass(frozen=True)
class RoundingRule:
    """How a target z becomes a level, z being in steps of the alphabet.

    - ``nearest``;
    - ``stochastic``: the level below or above, the likelier the nearer (Zhang and Saab 2023); ``noise``
      (G, N, d) holds numbers drawn from [0, 1);
    - ``hard``: 0 if |z| ≤ λ, else the nearest (Zhang, Zhou and Saab 2023, L0); λ is ``threshold``;
    - ``soft``: the nearest to sign(z) max(|z| - λ, 0) (the same, L1).
    """

    kind: Literal["nearest", "stochastic", "hard", "soft"] = "nearest"
    threshold: float = 0.0
    noise: Tensor | None = None


@dataclass(frozen=True)
class LayerProblem:
    """A layer's weights and what they may become.

    Attributes:
        W: float32 or float64, (G, N, d): G groups of N neurons with d weights.
        alphabet: the levels, with steps (G, N, 1).
        rule: how targets are rounded.
    """

    W: Tensor
    alphabet: Alphabet
    rule: RoundingRule = RoundingRule()

    def part(self, groups: slice, neurons: slice, columns: slice) -> "LayerProblem":
        """Some of the weights."""
        noise = self.rule.noise
        return LayerProblem(
            self.W[groups, neurons, columns],
            self.alphabet.with_step(self.alphabet.step[groups, neurons]),
            self.rule if noise is None else replace(self.rule, noise=noise[groups, neurons, columns]),
        )


@dataclass(frozen=True)
class Settings:
    """What a method may go by beside the problem.

    Attributes:
        layer: its name.
        options: the method's own, each with a value.
        seed: for whatever is drawn.
        memory: bytes that a method may take where it has a choice.
    """

    layer: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    memory: float = float("inf")


@dataclass(frozen=True)
class Solution:
    """Codes (G, N, d), int32, and what they took.

    Attributes:
        errors: computes, per neuron (G, N), the squared error ‖w X - q X̃‖² up to a constant of the neuron;
            called only where there are several alphabets to choose from.
        flops: operations in products and sums over patches, and of matrices.
        flops_of_errors: computes likewise those of ``errors``, where they are many.
    """

    codes: Tensor
    errors: Callable[[], Tensor]
    flops: float = 0.0
    flops_of_errors: Callable[[], float] = float  # which is 0.0
