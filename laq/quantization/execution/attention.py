"""Attention as the linears that it computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def linears_of_attention() -> Iterator[None]:
    """Keep torch from computing attention in one operation of its own, which hides its projections.

    It does so in evaluation mode, and sets the outputs for masked keys to zero on the way; what calls of a
    network give must not depend on who watches them. Holds for all threads.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
