"""The CIFAR ResNets (He et al. 2016, section 4.2), with projection shortcuts (option B)."""

from collections.abc import Iterator

from torch import Tensor, nn

from laq.architectures.registry import NetworkRequest, Usual
from laq.errors import LaqError

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: (n, c_in, h, w) → (n, c_out, h/stride, w/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            projection = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x))."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(residual + self.downsample(x))
        return out


class CifarResNet(nn.Module):
    """A ResNet of 6n + 2 layers for small images: (b, 3, h, w) → logits (b, classes).

    ``width`` multiplies the number of channels, as in wide ResNets (Zagoruyko and Komodakis 2016).
    """

    def __init__(self, depth: int, classes: int, width: int = 1) -> None:
        super().__init__()
        first, second, third = (width * channels for channels in WIDTHS)
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        self.layer1 = nn.Sequential(*_stage(first, first, blocks, 1))
        self.layer2 = nn.Sequential(*_stage(first, second, blocks, 2))
        self.layer3 = nn.Sequential(*_stage(second, third, blocks, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> Iterator[BasicBlock]:
    for i in range(blocks):
        yield BasicBlock(c_out if i else c_in, c_out, 1 if i else stride)


def make(request: NetworkRequest) -> nn.Module:
    """Build the network of a name such as ``resnet20`` or ``resnet20x2``, which is twice as wide.

    Raises:
        LaqError: weights are asked for, or no number of outputs.
    """
    if request.pretrained or request.outputs is None:
        raise LaqError(
            f"network.source: {request.architecture} has no weights of its own; must be train or file"
        )
    depth, _, width = request.name.removeprefix("resnet").partition("x")
    return CifarResNet(int(depth), request.outputs, int(width or 1))


def usual(request: NetworkRequest) -> Usual:  # noqa: ARG001 (the registry's call)
    """Nothing: these networks come with no weights."""
    return Usual()
