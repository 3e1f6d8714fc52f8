"""Operations of single modules, as tests ask for them."""

from torch import nn

from laq.quantization.operations import Operation
from laq.quantization.operations.convolution import Convolution


def operation_of_module(layer: nn.Conv2d) -> Operation:
    """What ``conv2d`` computes for a module, whose inputs are padded already where borders are not zeros."""
    names = ("stride", "padding", "dilation", "groups")
    return Convolution.of("conv2d", {name: getattr(layer, name) for name in names}, layer.weight)
