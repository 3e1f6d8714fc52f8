"""What every operation that is quantized says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from laq.quantization.calibration.patches import Patches, Places


@dataclass(frozen=True)
class Operation(ABC):
    """One call of an operation, seen as G products of matrices: weights (G, N, d) by inputs (G, d, m).

    Attributes:
        kind: the name of the function, such as ``conv2d``.
        groups: G, which share no inputs.
    """

    kind: str
    groups: int

    functions: ClassVar[Mapping[Callable[..., Any], str]]  # and the kind that each is
    arguments: ClassVar[tuple[str, ...]]  # their names, in the functions' order
    defaults: ClassVar[Mapping[str, Any]]

    @classmethod
    @abstractmethod
    def of(cls, kind: str, arguments: Mapping[str, Any], weight: Tensor) -> Self:
        """The operation that a call with these ``arguments`` by name computes."""

    @property
    @abstractmethod
    def kernel(self) -> int:
        """How many of the d weights of a neuron belong to one input channel."""

    @property
    def has_shifts(self) -> bool:
        """Whether a channel's columns are its images moved about within a border of zeros."""
        return False

    @abstractmethod
    def to_matrices(self, weight: Tensor) -> Tensor:
        """The weights as (G, N, d)."""

    @abstractmethod
    def from_matrices(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """The opposite: (G, N, d) as weights of this ``shape``."""

    @abstractmethod
    def step_over(self, step: Tensor, shape: torch.Size) -> Tensor:
        """Steps (G, N, 1) in a shape that broadcasts over weights of this ``shape``."""

    @abstractmethod
    def grid(self, shape: torch.Size) -> torch.Size:
        """For inputs of this ``shape``: how many images, and patches along each dimension of an image."""

    @abstractmethod
    def patches(self, X: Tensor, X_q: Tensor, choose: Callable[[torch.Size], Places | None]) -> Patches:
        """The columns of inputs X and X̃; ``choose`` picks places of the ``grid`` where patches are drawn."""


@dataclass(frozen=True)
class SpatialOperation(Operation):
    """An operation whose kernel moves over images (images, channels, *space), or over one without the first.

    Attributes:
        size: of the kernel along each dimension of space.
    """

    size: tuple[int, ...]

    @property
    def kernel(self) -> int:
        """The kernel's weights."""
        return torch.Size(self.size).numel()

    def patches(self, X: Tensor, X_q: Tensor, choose: Callable[[torch.Size], Places | None]) -> Patches:
        """Views of the inputs with their borders, whose patches are copied when they are needed."""
        space = len(self.size)
        X, X_q = (self.windows(t if t.dim() == space + 2 else t[None]) for t in (X, X_q))
        return Patches(X, X_q, choose(X.shape[2 + space :]), space)

    @abstractmethod
    def windows(self, images: Tensor) -> Tensor:
        """A view (G, channels, *kernel, images, *outputs) of what the kernel sees, wherever it stands."""


def along(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """A number for each dimension, where one may stand for all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values
