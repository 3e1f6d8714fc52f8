"""``linear``: y = x Wᵀ over the last dimension of x."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.calibration.patches import Patches, Places, rows_as_patches
from laq.quantization.operations.base import Operation


@dataclass(frozen=True)
class Linear(Operation):
    """Weights are (N, d), inputs (..., d)."""

    functions: ClassVar = {F.linear: "linear", torch.ops.aten.linear.default: "linear"}
    arguments: ClassVar = ("input", "weight", "bias")
    defaults: ClassVar = {"bias": None}

    @classmethod
    def of(cls, kind: str, arguments: Mapping[str, Any], weight: Tensor) -> Self:  # noqa: ARG003 (of any operation)
        """The operation, which has no further arguments."""
        return cls(kind, 1)

    @property
    def kernel(self) -> int:
        """A weight for each input."""
        return 1

    def to_matrices(self, weight: Tensor) -> Tensor:
        """(1, N, d)."""
        return weight[None]

    def from_matrices(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """(N, d)."""
        return matrices.view(shape)

    def step_over(self, step: Tensor, shape: torch.Size) -> Tensor:
        """(N, 1)."""
        return step.reshape(-1, *(1 for _ in shape[1:]))

    def grid(self, shape: torch.Size) -> torch.Size:
        """All rows are in use: a row is an image of one patch."""
        return torch.Size((shape[:-1].numel(),))

    def patches(
        self,
        X: Tensor,
        X_q: Tensor,
        choose: Callable[[torch.Size], Places | None],  # noqa: ARG002 (of any operation)
    ) -> Patches:
        """The rows of X and X̃, all of them."""
        X, X_q = (t.reshape(1, -1, t.shape[-1]) for t in (X, X_q))
        return rows_as_patches(X, X_q)
