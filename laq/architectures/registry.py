"""The registry of network sources: all that other modules know of a source stands in its entry here.

A new source is a module of this package with two functions, an entry in this file, and the form of its names
in ``laq.sections.architecture``: ``make(request)`` builds a network, and ``usual(request)`` tells what its
published weights were trained with.
This module imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from laq.errors import LaqError
from laq.files import project_root
from laq.sections.architecture import ARCHITECTURE, EFFICIENTNET_LITE, RESNETS

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class NetworkRequest:
    """A network that is asked of a source.

    Attributes:
        architecture: as ``params.yaml`` names it, for messages.
        name: what follows the source's prefix.
        outputs: how many there shall be, where the source can choose; None: as many as it has by itself.
        pretrained: with the weights that it comes with, else with any.
        arguments: for the function that builds it.
        folder: which relative paths start from.
    """

    architecture: str
    name: str
    outputs: int | None = None
    pretrained: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = field(default_factory=project_root)

    def file(self, name: str) -> Path:
        """A file that the network is built from.

        Raises:
            LaqError: there is none.
        """
        path = self.folder / Path(name).expanduser()
        if not path.is_file():
            raise LaqError(f"network.architecture: no file {name!r} (from {self.folder})")
        return path


@dataclass(frozen=True)
class Usual:
    """What a network's published weights were trained with, as far as its source tells.

    ``mean`` and ``std`` are of pixels in 0..1; ``output_names`` tell what each output stands for.
    """

    input_size: int | None = None
    mean: Colours | None = None
    std: Colours | None = None
    output_names: tuple[str, ...] = ()


IMAGENET_MEAN: Final[Colours] = (0.485, 0.456, 0.406)
IMAGENET_STD: Final[Colours] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetworkSource:
    """A source's entry.

    Attributes:
        form: what names its networks in ``params.yaml``; what stands before the colon is its prefix.
        module: where its functions are.
        names: those of its networks, where they have no prefix.
        packages: what its networks are built by, beside torch.
        extra: of laq, with which these are installed.
        has_weights: whether its networks come with weights.
    """

    form: str
    module: str
    names: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str = ""
    has_weights: bool = True

    @property
    def prefix(self) -> str:
        """What its networks' names begin with, the colon included; empty where there is no prefix."""
        before, colon, _ = self.form.partition(":")
        return before + colon if colon else ""

    @property
    def functions(self) -> Any:
        """The module with ``make`` and ``usual``."""
        return import_module(self.module)


_EFFICIENTNET_LITE: Final = NetworkSource(
    EFFICIENTNET_LITE,
    "laq.architectures.efficientnet_lite",
    names=(EFFICIENTNET_LITE,),
    packages=("efficientnet-lite-pytorch",),
    extra="efficientnet-lite",
)
_ZOO: Final = NetworkSource(
    "resnet20",
    "laq.architectures.resnet",
    names=RESNETS,
    has_weights=False,
)
_EXPORTED: Final = NetworkSource("FILE.pt2", "laq.architectures.exported")
_TORCHVISION: Final = NetworkSource(
    "torchvision:NAME", "laq.architectures.torchvision_models", packages=("torchvision",)
)
SOURCES: Final[Sequence[NetworkSource]] = (
    _ZOO,
    _EFFICIENTNET_LITE,
    _TORCHVISION,
    NetworkSource(
        "timm:NAME", "laq.architectures.timm_models", packages=("timm", "torchvision"), extra="timm"
    ),
    NetworkSource("torchhub:OWNER/REPO:MODEL", "laq.architectures.torch_hub"),
    NetworkSource("python:MODULE_OR_FILE.py:FUNCTION", "laq.architectures.python_function"),
    _EXPORTED,
)


def find_source(architecture: str) -> tuple[NetworkSource, str]:
    """The source of an architecture, and the network's name there; names alone may be torchvision's.

    Raises:
        LaqError: no source has such names.
    """
    try:
        ARCHITECTURE(architecture)
    except ValueError as error:
        raise LaqError(f"network.architecture: {error}") from error
    for source in SOURCES:
        if architecture in source.names:
            return source, architecture
        if source.prefix and architecture.startswith(source.prefix):
            return source, architecture.removeprefix(source.prefix)
    if architecture.endswith(".pt2"):
        return _EXPORTED, architecture
    return _TORCHVISION, architecture


def optional_package(name: str, request: NetworkRequest) -> ModuleType:
    """A package that one source alone needs.

    Raises:
        LaqError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        source, _ = find_source(request.architecture)
        raise LaqError(
            f"{request.architecture} needs {name}, which cannot be imported ({error}): "
            f"`pip install 'laq[{source.extra}]'`"
        ) from error


def no_statistics(section: str, architecture: str) -> LaqError:
    """What is wrong where neither a section nor a source tells what weights were trained with."""
    return LaqError(
        f"{section}.mean: missing; {architecture} does not tell which mean and std its weights were trained "
        "with; give both"
    )


def packages_of(architecture: str) -> tuple[str, ...]:
    """The packages that an architecture is built by, beside torch."""
    source, name = find_source(architecture)
    if source.prefix == "python:" and file_of(architecture) is None:
        return tuple(packages_distributions().get(name.partition(":")[0].partition(".")[0], [])[:1])
    return source.packages


def file_of(architecture: str) -> str | None:
    """The file that an architecture is built from, as its name says it, if it is built from one."""
    source, name = find_source(architecture)
    if source is _EXPORTED:
        return name
    path, _, _ = name.rpartition(":")
    return path if source.prefix == "python:" and path.endswith(".py") else None
