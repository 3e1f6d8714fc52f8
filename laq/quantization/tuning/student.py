"""A quantized network that learns: codes by straight-through rounding, the rest as it is."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from laq.quantization.execution.base import in_float32
from laq.quantization.recipe import QuantizedLayer, QuantizedNetwork
from laq.quantization.tuning.settings import Tuning


@dataclass(frozen=True)
class _Relaxed:
    """A layer whose codes are the nearest to real numbers, and whose steps have factors.

    Attributes:
        latent: real numbers, of the codes' shape, which begin as the codes themselves.
        factor: logarithms of the factors, of the steps' shape, or one where the layer has a single step.
    """

    layer: QuantizedLayer
    latent: Tensor
    factor: Tensor

    @classmethod
    def of(cls, layer: QuantizedLayer) -> "_Relaxed":
        step = layer.alphabet.step
        single = bool((step.abs() == step.abs().flatten()[0]).all())
        factor = step.new_zeros(()) if single else torch.zeros_like(step)
        return cls(layer, layer.codes.to(step.dtype).requires_grad_(), factor.requires_grad_())

    def weights(self) -> Tensor:
        """The weights, whose gradients reach the codes as if these were not rounded (Bengio et al. 2013)."""
        alphabet = self.layer.alphabet
        within = self.latent.clamp(alphabet.low, alphabet.high)
        codes = within.round().detach() + (within - within.detach())
        return (codes + alphabet.offset) * (alphabet.step * self.factor.exp())

    def quantized(self) -> QuantizedLayer:
        """The layer as it is now."""
        alphabet, kept = self.layer.alphabet, self.latent.detach()
        codes = kept.clamp(alphabet.low, alphabet.high).round().to(torch.int32)
        step = (alphabet.step * self.factor.detach().exp()).contiguous()
        return replace(self.layer, codes=codes, alphabet=alphabet.with_step(step))


class Student:
    """Copies of a quantized network, one for each part of a batch, and what they learn together."""

    def __init__(self, result: QuantizedNetwork, tuning: Tuning, parts: int) -> None:
        self.result = result
        self.copies = [copy.deepcopy(result.network) for _ in range(parts)]
        self._relaxed = {layer.parameter: _Relaxed.of(layer) for layer in result.layers}
        self._vectors = {
            name: in_float32(parameter.detach().clone()).requires_grad_()
            for name, parameter in result.network.named_parameters()
            if parameter.dim() < 2 and parameter.is_floating_point()
        }
        codes = [relaxed.latent for relaxed in self._relaxed.values()]
        others = [relaxed.factor for relaxed in self._relaxed.values()] + list(self._vectors.values())
        groups = [{"params": codes, "lr": tuning.codes_rate}, {"params": others, "lr": tuning.scales_rate}]
        self._rates = (tuning.codes_rate, tuning.scales_rate)
        self.optimizer = torch.optim.Adam(groups)
        for network in self.copies:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name in self._relaxed or name in self._vectors)
        self.show()

    @property
    def _learned(self) -> list[Tensor]:
        """What the optimizer changes."""
        return [t for one in self._relaxed.values() for t in (one.latent, one.factor)] + [
            *self._vectors.values()
        ]

    def slow_down(self, factor: float) -> None:
        """Learn from now on at this factor of the rates."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def state(self) -> list[Tensor]:
        """A copy of all that is learned."""
        return [tensor.detach().clone() for tensor in self._learned]

    def restore(self, state: Sequence[Tensor]) -> None:
        """The opposite."""
        with torch.no_grad():
            for tensor, kept in zip(self._learned, state, strict=True):
                tensor.copy_(kept)
        self.show()

    def show(self) -> dict[str, Tensor]:
        """Give all copies the parameters as they are now; returns these, with gradients."""
        with torch.enable_grad():
            now = {name: relaxed.weights() for name, relaxed in self._relaxed.items()} | self._vectors
        with torch.no_grad():
            for network in self.copies:
                for name, tensor in now.items():
                    network.get_parameter(name).copy_(tensor)
        return now

    def step(self, now: dict[str, Tensor]) -> None:
        """Learn from the gradients of all copies, which are added up in their order."""
        for name, tensor in now.items():
            gradients = [
                in_float32(g)
                for network in self.copies
                if (g := network.get_parameter(name).grad) is not None
            ]
            if gradients:
                torch.autograd.backward([tensor], [sum(gradients[1:], gradients[0])])
        self.optimizer.step()
        self.optimizer.zero_grad()
        for network in self.copies:
            network.zero_grad()

    def codes_moved(self) -> int:
        """How many weights have another code than at first."""
        return sum(int((one.quantized().codes != one.layer.codes).sum()) for one in self._relaxed.values())

    def quantized(self, network: nn.Module) -> QuantizedNetwork:
        """The network as it is now: ``network``, a copy of the result's, gets its parameters."""
        layers = tuple(relaxed.quantized() for relaxed in self._relaxed.values())
        with torch.no_grad():
            for layer in layers:
                network.get_parameter(layer.parameter).copy_(layer.alphabet.decode(layer.codes))
            for name, tensor in self._vectors.items():
                network.get_parameter(name).copy_(tensor)
        return replace(self.result, network=network, layers=layers)
