"""Architectures by name, and the classifier that wraps one: raw pixels in, logits out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from laq.architectures.head import classifier_head, put_rows
from laq.architectures.registry import NetworkRequest, Usual, file_of, find_source, packages_of
from laq.files import md5, project_root
from laq.pictures import SQUASHED_TO_32, Preprocessing

__all__ = [
    "Classifier",
    "NetworkDesign",
    "Preprocess",
    "Usual",
    "build",
    "classifier_head",
    "file_of",
    "make_body",
    "packages_of",
    "put_rows",
    "seeded",
    "usual_of",
]


@dataclass(frozen=True)
class NetworkDesign:
    """All that it takes to build a classifier again, without its weights.

    Images, which ``preprocessing`` makes of pictures, are scaled to ``input_size`` pixels a side where theirs
    differs, and normalised by ``mean`` and ``std`` (of pixels in 0..1).

    Attributes:
        architecture: what a source of the registry builds (``laq.architectures.registry``).
        arguments: that its function is called with.
        own_outputs: how many outputs the architecture has, where these are not ``classes``: its head is then
            replaced by one for the classes.
    """

    architecture: str
    classes: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    preprocessing: Preprocessing = SQUASHED_TO_32  # of those that were saved without
    arguments: Mapping[str, Any] = field(default_factory=dict)
    own_outputs: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name; those that most networks leave alone only where they are given."""
        fields = asdict(self)
        for name in ("arguments", "own_outputs"):
            if not fields[name]:
                del fields[name]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The opposite."""
        given = {**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])}
        if "preprocessing" in fields:
            given["preprocessing"] = Preprocessing(**fields["preprocessing"])
        return cls(**given)

    def beside(self, folder: Path, origin: Path) -> Self:
        """The design that names the file, if the architecture is built from one, by its place in ``folder``.

        The file, whose path starts from ``origin``, is copied there under a name with its hash: the folder is
        all that it takes to build the network, and designs differ where files do.
        """
        name = file_of(self.architecture)
        if name is None:
            return self
        source = origin / Path(name).expanduser()
        tag = f"-{md5(source)[:12]}"
        copied = f"{source.stem.removesuffix(tag)}{tag}{source.suffix}"
        (folder / copied).write_bytes(source.read_bytes())
        return replace(self, architecture=self.architecture.replace(name, copied, 1))


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


def build(design: NetworkDesign, seed: int = 0, folder: Path | str | None = None) -> Classifier:
    """Build a classifier with weights drawn from ``seed``, in evaluation mode.

    ``folder`` is where the path of a file starts from that the architecture is built from; by default the
    project's.

    Raises:
        LaqError: the architecture is unknown or cannot be built.
    """
    with seeded(seed):
        outputs = design.own_outputs or design.classes
        body = make_body(design.architecture, design.arguments, outputs, folder=folder)
        if design.own_outputs is not None:
            # Whose rows these are is of no matter: the weights are not those of the network yet.
            rows = [number % design.own_outputs for number in range(design.classes)]
            body = put_rows(body, rows, design.own_outputs)
        return Classifier(design, body).eval()


def make_body(
    architecture: str,
    arguments: Mapping[str, Any],
    outputs: int | None = None,
    *,
    pretrained: bool = False,
    folder: Path | str | None = None,
) -> nn.Module:
    """Build the network of a source: with ``pretrained``, that and its published weights.

    Raises:
        LaqError: the architecture is unknown or cannot be built.
    """
    source, name = find_source(architecture)
    request = NetworkRequest(
        architecture, name, outputs, pretrained, arguments, Path(folder or project_root())
    )
    made: nn.Module = source.functions.make(request)
    return made.eval()


def usual_of(architecture: str) -> Usual:
    """What the published weights of an architecture were trained with, as far as its source tells.

    Raises:
        LaqError: the architecture is unknown.
    """
    source, name = find_source(architecture)
    told: Usual = source.functions.usual(NetworkRequest(architecture, name))
    return told


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block on its own random stream; the caller's global one is left as it was.

    torch draws initial weights and dropout masks from the global stream alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
