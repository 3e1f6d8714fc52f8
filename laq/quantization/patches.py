"""What a layer multiplies its weights with: rows of patches for a convolution, of inputs for a Linear."""

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear
_PADDING_MODES: Final = {"zeros": "constant"}  # the one mode that F.pad calls otherwise


def grouped_weights(layer: Layer) -> Tensor:
    """The layer's weights as (G, N, d): G groups of N neurons with d weights."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return layer.weight.detach().reshape(groups, layer.weight.shape[0] // groups, -1)


def input_rows(layer: Layer, retain_rate: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A function from the layer's inputs to the rows (G, m, d) that its weights meet.

    Of a convolution's patches, which lie on its own grid of strides, a random ``retain_rate`` is
    kept: the same ones for whatever inputs the function is given, so that the analog and the
    quantized network's rows belong together. A Linear layer keeps every row.
    """
    if isinstance(layer, nn.Linear):
        return lambda inputs: inputs.reshape(1, -1, inputs.shape[-1])

    @cache
    def places(grid: torch.Size) -> tuple[Tensor, ...] | None:
        kept = max(1, round(retain_rate * grid.numel()))
        if kept == grid.numel():
            return None
        drawn = torch.randperm(grid.numel(), generator=generator)[:kept]
        return torch.unravel_index(drawn.sort().values, grid)

    def rows(inputs: Tensor) -> Tensor:
        windows = _windows(inputs, layer)
        chosen = places(windows.shape[:3])
        patches = windows.flatten(0, 2) if chosen is None else windows[chosen]
        return patches.reshape(len(patches), layer.groups, -1).transpose(0, 1)

    return rows


def _windows(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution's patches as a view (b, rows, columns, channels, kernel height, kernel width)."""
    mode = _PADDING_MODES.get(conv.padding_mode, conv.padding_mode)
    padded = F.pad(inputs, conv._reversed_padding_repeated_twice, mode)  # noqa: SLF001 (also resolves "same")
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    b, c, h, w = padded.shape
    rows, columns = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    at_b, at_c, at_h, at_w = padded.stride()
    return padded.as_strided(
        (b, rows, columns, c, kh, kw), (at_b, at_h * sh, at_w * sw, at_c, at_h * dh, at_w * dw)
    )
