"""``conv1d``, ``conv2d`` and ``conv3d``: products with the patches that a kernel moves over."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.calibration.patches import windows
from laq.quantization.operations.base import SpatialOperation, along

_FEWEST_TO_SHIFT: Final = 8  # channels, below which products are too small to be worth it
_ATEN: Final = torch.ops.aten


@dataclass(frozen=True)
class Convolution(SpatialOperation):
    """Weights are (G N, channels of a group, *kernel), inputs (images, channels, *space).

    Attributes:
        channels: of a group's inputs.
        stride: along each dimension of space, as for the next two.
        padding: zeros before and after.
    """

    channels: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    functions: ClassVar = {
        torch.conv1d: "conv1d",
        torch.conv2d: "conv2d",
        torch.conv3d: "conv3d",
        _ATEN.conv1d.default: "conv1d",
        _ATEN.conv1d.padding: "conv1d",
        _ATEN.conv2d.default: "conv2d",
        _ATEN.conv2d.padding: "conv2d",
        _ATEN.conv3d.default: "conv3d",
        _ATEN.conv3d.padding: "conv3d",
    }
    arguments: ClassVar = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults: ClassVar = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}

    @classmethod
    def of(cls, kind: str, arguments: Mapping[str, Any], weight: Tensor) -> Self:
        """The operation; padding may be a word, as in torch."""
        size, channels = tuple(weight.shape[2:]), weight.shape[1]
        stride, dilation = (along(arguments[name], len(size)) for name in ("stride", "dilation"))
        padding = _padding(arguments["padding"], size, dilation)
        return cls(kind, arguments["groups"], size, channels, stride, padding, dilation)

    @property
    def has_shifts(self) -> bool:
        """Whether a 3x3 kernel moves over a border of zeros pixel by pixel."""
        places = (self.size, self.stride, self.padding, self.dilation)
        return self.channels >= _FEWEST_TO_SHIFT and places == ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))

    def to_matrices(self, weight: Tensor) -> Tensor:
        """(G, N, channels x kernel)."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def from_matrices(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """(G N, channels, *kernel)."""
        return matrices.view(shape)

    def step_over(self, step: Tensor, shape: torch.Size) -> Tensor:
        """(G N, 1, ...)."""
        return step.reshape(-1, *(1 for _ in shape[1:]))

    def grid(self, shape: torch.Size) -> torch.Size:
        """Images, and outputs along each dimension."""
        space = len(self.size)
        images = shape[0] if len(shape) == space + 2 else 1
        sides = (n + sum(p) for n, p in zip(shape[-space:], self.padding, strict=True))
        spans = (d * (k - 1) for k, d in zip(self.size, self.dilation, strict=True))
        outputs = ((n - span - 1) // s + 1 for n, span, s in zip(sides, spans, self.stride, strict=True))
        return torch.Size((images, *outputs))

    def windows(self, images: Tensor) -> Tensor:
        """A view of the padded inputs."""
        border = [n for pair in reversed(self.padding) for n in pair]
        padded = F.pad(images, border) if any(border) else images
        return windows(padded, self.groups, self.size, self.stride, self.dilation)


def _padding(
    value: str | int | tuple[int, ...], size: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if value == "same":
        spans = (d * (k - 1) for k, d in zip(size, dilation, strict=True))
        return tuple((span // 2, span - span // 2) for span in spans)
    sides = (0,) if isinstance(value, str) else value  # "valid"
    return tuple((n, n) for n in along(sides, len(size)))
