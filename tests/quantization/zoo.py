"""The networks that studies take by their names, with random weights, small enough for tests."""

import torch
from torch import Tensor, nn

from laq.architectures import Classifier, NetworkDesign, build, seeded

# One of each structure: studies' networks, and others of torchvision's.
ARCHITECTURES = (
    "alexnet", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2", "resnet18", "resnet20", "resnet50",
    "resnet8", "vgg16_bn",
)  # fmt: skip
SMALLEST_SIDE = {"alexnet": 64, "vgg16": 32, "vgg16_bn": 32}
_WIDEST = 64


def classifier(architecture: str, classes: int = 10) -> Classifier:
    """A network of the zoo; those with linear layers of up to 103 million weights have narrow ones instead."""
    side = SMALLEST_SIDE.get(architecture, 40)
    network = build(NetworkDesign(architecture, classes, side, (0.5,) * 3, (0.25,) * 3), seed=1)
    if architecture in SMALLEST_SIDE:
        narrow(network.body.get_submodule("classifier"))
    return network


def narrow(layers: nn.Module) -> None:
    """Let no linear layer of a sequence have more than 64 outputs."""
    inputs = None
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Linear):
            outputs = min(layer.out_features, _WIDEST)
            with seeded(int(name)):
                smaller = nn.Linear(inputs or layer.in_features, outputs)
            layers.register_module(name, smaller)
            inputs = outputs


def pixels(count: int = 4) -> Tensor:
    """Images of 32 x 32 pixels."""
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()
