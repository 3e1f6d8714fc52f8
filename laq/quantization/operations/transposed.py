"""``conv_transpose1d``, ``conv_transpose2d`` and ``conv_transpose3d``, as convolutions of spread inputs.

A transposed convolution of stride s is the convolution, of stride 1 and with its kernel turned around, of
inputs between which s - 1 zeros are put (Dumoulin and Visin 2016, section 4).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.calibration.patches import windows
from laq.quantization.operations.base import SpatialOperation, along

_ATEN: Final = torch.ops.aten


@dataclass(frozen=True)
class TransposedConvolution(SpatialOperation):
    """Weights are (G channels, N, *kernel), inputs (images, G channels, *space).

    Attributes:
        stride: along each dimension of space, as for the next two.
        border: zeros before and after the spread inputs; negative where these are cut.
    """

    stride: tuple[int, ...]
    border: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    functions: ClassVar = {
        torch.conv_transpose1d: "conv_transpose1d",
        torch.conv_transpose2d: "conv_transpose2d",
        torch.conv_transpose3d: "conv_transpose3d",
        _ATEN.conv_transpose1d.default: "conv_transpose1d",
        _ATEN.conv_transpose2d.input: "conv_transpose2d",
        _ATEN.conv_transpose3d.input: "conv_transpose3d",
    }
    arguments: ClassVar = (
        "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
    )  # fmt: skip
    defaults: ClassVar = {
        "bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1,
    }  # fmt: skip

    @classmethod
    def of(cls, kind: str, arguments: Mapping[str, Any], weight: Tensor) -> Self:
        """The operation."""
        size = tuple(weight.shape[2:])
        stride, padding, more, dilation = (
            along(arguments[name], len(size)) for name in ("stride", "padding", "output_padding", "dilation")
        )
        before = [d * (k - 1) - p for k, d, p in zip(size, dilation, padding, strict=True)]
        border = tuple((n, n + extra) for n, extra in zip(before, more, strict=True))
        return cls(kind, arguments["groups"], size, stride, border, dilation)

    def to_matrices(self, weight: Tensor) -> Tensor:
        """(G, N, channels x kernel), the kernel turned around."""
        by_group = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return by_group.flip(self._space(by_group)).flatten(2)

    def from_matrices(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """(G channels, N, *kernel)."""
        turned = matrices.reshape(*matrices.shape[:2], shape[0] // self.groups, *self.size)
        return turned.flip(self._space(turned)).transpose(1, 2).reshape(shape)

    def step_over(self, step: Tensor, shape: torch.Size) -> Tensor:
        """(1, N, 1, ...), or (G channels, N, 1, ...) where there are several groups."""
        channels = 1 if self.groups == 1 else shape[0] // self.groups
        rows = step.mT.repeat_interleave(channels, 1).flatten(0, 1)
        return rows.reshape(*rows.shape, *(1 for _ in self.size))

    def grid(self, shape: torch.Size) -> torch.Size:
        """Images, and outputs along each dimension."""
        space = len(self.size)
        images = shape[0] if len(shape) == space + 2 else 1
        spread = ((n - 1) * s + 1 for n, s in zip(shape[-space:], self.stride, strict=True))
        sides = (n + sum(b) for n, b in zip(spread, self.border, strict=True))
        outputs = (n - d * (k - 1) for n, k, d in zip(sides, self.size, self.dilation, strict=True))
        return torch.Size((images, *outputs))

    def _space(self, weights: Tensor) -> tuple[int, ...]:
        return tuple(range(weights.dim() - len(self.size), weights.dim()))

    def windows(self, images: Tensor) -> Tensor:
        """A view of the padded inputs."""
        sides = [(n - 1) * s + 1 for n, s in zip(images.shape[2:], self.stride, strict=True)]
        spread = images.new_zeros(*images.shape[:2], *sides)
        spread[(..., *(slice(None, None, s) for s in self.stride))] = images  # type: ignore[index]
        padded = F.pad(spread, [n for pair in reversed(self.border) for n in pair])
        return windows(padded, self.groups, self.size, (1,) * len(self.size), self.dilation)
