"""Attention as the linears that it computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

_functions: Final[Any] = F  # whose stubs know nothing of what attention is made of
_of_torch: Final = _functions._in_projection_packed  # noqa: SLF001 (attention's own)


@contextmanager
def linears_of_attention() -> Iterator[None]:
    """Have torch compute attention by linears whose weights are parameters.

    In evaluation mode it has one operation of its own, which hides the projections, and sets the outputs for
    masked keys to zero on the way; what calls of a network give must not depend on who watches them. Where
    queries, keys and values are not the same, it multiplies each with a part of one parameter.

    Torch keeps both for the whole process, and so for the threads that work on batches: of several threads
    that are within at a time, the first sets them and the last to leave puts them back. In all others
    attention computes the same meanwhile, but for rounding and the outputs for masked keys.
    """
    _within.enter()
    try:
        yield
    finally:
        _within.leave()


class _Within:
    """How many are within, and what was there before the first of them came."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._before: tuple[bool, Any]

    def enter(self) -> None:
        with self._lock:
            if self._count == 0:
                fast = torch.backends.mha.get_fastpath_enabled()
                self._before = fast, _functions._in_projection_packed  # noqa: SLF001
                _set(fast=False, packed=_projections)
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                fast, packed = self._before
                _set(fast=fast, packed=packed)


_within: Final = _Within()


def _set(*, fast: bool, packed: Any) -> None:
    torch.backends.mha.set_fastpath_enabled(fast)
    _functions._in_projection_packed = packed  # noqa: SLF001


def _projections(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor | None = None) -> Any:
    """Queries, keys and values (..., E), by the thirds of ``w`` (3 E, E): a linear for each input."""
    if q is k is v:
        return _of_torch(q, k, v, w, b)
    inputs = {id(x): x for x in (q, k, v)}
    outputs = {key: F.linear(x, w, b).chunk(3, -1) for key, x in inputs.items()}
    return [outputs[id(x)][third].contiguous() for third, x in enumerate((q, k, v))]
