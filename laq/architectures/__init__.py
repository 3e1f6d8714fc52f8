"""Architectures by name, and the classifier that wraps one: raw pixels in, logits out."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from laq.architectures.resnet import CifarResNet
from laq.errors import LaqError
from laq.pictures import SQUASHED_TO_32, Preprocessing

_TORCHVISION: Final = (
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "vgg16",
    "vgg16_bn",
)
# What hubs and the code they bring raise: no network, no such name, arguments they do not take.
_HUB_ERRORS: Final = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError)
_SPECIAL: Final[dict[str, dict[str, Any]]] = {
    # The auxiliary heads serve training from scratch alone and never run at inference.
    "googlenet": {"aux_logits": False, "init_weights": True},
}


def _torchvision(name: str, classes: int, **options: Any) -> nn.Module:
    import torchvision  # noqa: PLC0415 (takes seconds, and most networks need none)

    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return network


ZOO: Final[dict[str, Callable[[int], nn.Module]]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 32, 44, 56)},
    "resnet20x2": partial(CifarResNet, 20, width=2),
    **{name: partial(_torchvision, name, **_SPECIAL.get(name, {})) for name in _TORCHVISION},
}


@dataclass(frozen=True)
class NetworkDesign:
    """All that it takes to build a classifier again, without its weights.

    ``architecture`` is a name of the zoo, ``timm:NAME``, or ``torchhub:OWNER/REPO:MODEL``. Images, which
    ``preprocessing`` makes of pictures, are scaled to ``input_size`` pixels a side where theirs differs, and
    normalised by ``mean`` and ``std`` (of pixels in 0..1).
    """

    architecture: str
    classes: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    preprocessing: Preprocessing = SQUASHED_TO_32  # of those that were saved without

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The opposite."""
        given = {**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])}
        if "preprocessing" in fields:
            given["preprocessing"] = Preprocessing(**fields["preprocessing"])
        return cls(**given)


class Preprocess(nn.Module):
    """Pixels 0..255 (b, 3, h, w), any dtype → scaled, normalised ``precision`` (b, 3, size, size)."""

    mean: Tensor
    std: Tensor
    precision = torch.float32

    def __init__(self, design: NetworkDesign) -> None:
        super().__init__()
        self.size = design.input_size
        self.register_buffer("mean", torch.tensor(design.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(design.std).view(1, 3, 1, 1), persistent=False)
        fits = design.input_size == design.preprocessing.size
        self.resize = nn.Identity() if fits else _Resize(design.input_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the network's input."""
        scaled = self.resize(pixels.to(self.precision) / 255)
        normal: Tensor = (scaled - self.mean) / self.std
        return normal


class _Resize(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


class Classifier(nn.Module):
    """A network that takes raw pixels: ``body(preprocess(pixels))``, in channels-last memory."""

    def __init__(self, design: NetworkDesign, body: nn.Module) -> None:
        super().__init__()
        self.design = design
        self.preprocess = Preprocess(design)
        self.body = body.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 (b, 3, h, w) → logits (b, classes)."""
        logits: Tensor = self.body(self.preprocess(pixels))
        return logits


def build(design: NetworkDesign, seed: int = 0, *, pretrained: bool = False) -> Classifier:
    """Build a classifier with weights drawn from ``seed``, in evaluation mode.

    ``pretrained`` fetches the published weights of a ``timm:`` or ``torchhub:`` architecture.

    Raises:
        LaqError: the architecture is unknown or cannot be fetched.
    """
    with seeded(seed):
        return Classifier(design, _body(design, pretrained=pretrained)).eval()


def _body(design: NetworkDesign, *, pretrained: bool) -> nn.Module:
    hub, _, name = design.architecture.partition(":")
    if hub == "timm":
        return _timm(name, design.classes, pretrained=pretrained)
    if hub == "torchhub":
        return _torchhub(name, pretrained=pretrained)
    if design.architecture not in ZOO:
        raise LaqError(
            f"architecture {design.architecture!r} is unknown; known: {', '.join(sorted(ZOO))}, "
            "timm:NAME, torchhub:OWNER/REPO:MODEL"
        )
    return ZOO[design.architecture](design.classes)


def _timm(name: str, classes: int, *, pretrained: bool) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise LaqError(f"timm:{name} needs the package timm: `pip install 'laq[timm]'`") from error
    # Asked for another number of classes, timm would replace a pretrained head by a random one.
    head = {} if pretrained else {"num_classes": classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **head)
    except _HUB_ERRORS as error:
        raise LaqError(f"timm:{name} cannot be made: {_first_line(error)}") from error
    return model


def _torchhub(name: str, *, pretrained: bool) -> nn.Module:
    repository, _, model = name.partition(":")
    try:
        loaded: nn.Module = torch.hub.load(  # type: ignore[no-untyped-call]
            repository, model, pretrained=pretrained, trust_repo=True
        )
    except _HUB_ERRORS as error:
        raise LaqError(f"torchhub:{name} cannot be loaded: {_first_line(error)}") from error
    return loaded


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def packages_of(architecture: str) -> tuple[str, ...]:
    """The packages that an architecture is built by, beside torch."""
    if architecture.startswith("timm:"):
        return "timm", "torchvision"
    return ("torchvision",) if architecture in _TORCHVISION else ()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block on its own random stream; the caller's global one is left as it was.

    torch draws initial weights and dropout masks from the global stream alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def classifier_head(network: nn.Module) -> nn.Linear:
    """The last Linear layer: its input are the penultimate features.

    Raises:
        LaqError: the network has no Linear layer.
    """
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not heads:
        raise LaqError("the network has no Linear layer, so no penultimate features")
    return heads[-1]
