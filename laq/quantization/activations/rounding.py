"""The module that rounds activations at one point of a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import inf
from typing import Final

import torch
from torch import Tensor, nn

from laq.quantization.activations.ranges import ActivationGrid, Histogram

_MOST: Final = 255  # the largest code of a byte
Seen = dict["RoundActivations", Histogram]
_SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)
_IN_FILES: ContextVar[bool] = ContextVar("in_files", default=False)


class RoundActivations(nn.Module):
    """Rounds its inputs to the values of a grid; until it has one, it lets them pass.

    Attributes:
        step: float32 (), between two values of the grid.
        zero_point: int32 (), the code of 0.
        highest: int32 (), the largest code; the least one is 0. It is 0 where there is no grid.
    """

    step: Tensor
    zero_point: Tensor
    highest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("highest", torch.zeros((), dtype=torch.int32))
        self.grid: ActivationGrid | None = None

    @contextmanager
    def trying(self, grid: ActivationGrid) -> Iterator[None]:
        """Round to ``grid`` within the context, and to none behind it."""
        self.set_grid(grid)
        try:
            yield
        finally:
            self.highest.zero_()
            self.grid = None

    def set_grid(self, grid: ActivationGrid) -> None:
        """Round to ``grid`` from now on."""
        self.step.fill_(grid.step)
        self.zero_point.fill_(grid.zero_point)
        self.highest.fill_(grid.highest)
        self.grid = replace(grid, step=self.step.item())

    def is_whole(self) -> bool:
        """Whether it rounds to a grid that there can be, or to none."""
        return self.grid is None or (
            0 < self.grid.step < inf and 0 <= self.grid.zero_point <= self.grid.highest <= _MOST
        )

    def forward(self, X: Tensor) -> Tensor:
        """``X``, of any shape, rounded."""
        if self.grid is None:
            seen = _SEEN.get()
            if seen is not None and self not in seen:  # it stands also where values only move
                seen[self] = Histogram.of(X)
            return X
        return self._as_nodes(X) if _IN_FILES.get() else self.grid.round(X)

    def _as_nodes(self, X: Tensor) -> Tensor:
        """What ONNX computes it by."""
        grid, shape = (self.step.to(X.dtype), self.zero_point.to(torch.uint8)), X.shape
        codes = torch.onnx.ops.symbolic("QuantizeLinear", (X, *grid), dtype=torch.uint8, shape=shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, *grid), dtype=X.dtype, shape=shape)


@contextmanager
def collecting() -> Iterator[Seen]:
    """Collect what passes through modules without a grid, in this thread."""
    seen = Seen()
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


@contextmanager
def in_files() -> Iterator[None]:
    """Have modules compute by ONNX's operators, which ``torch.onnx.export`` writes."""
    token = _IN_FILES.set(True)
    try:
        yield
    finally:
        _IN_FILES.reset(token)
