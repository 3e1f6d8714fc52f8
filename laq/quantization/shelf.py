"""Where activations wait: in memory as far as that goes, then in files."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

Values = dict[str, Any]


class Shelf:
    """Keeps a dictionary of activations per chunk; at most ``memory`` bytes of them outside of files."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._held: dict[int, Values] = {}
        self._sizes: dict[int, int] = {}
        self._lock = Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="laq-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def put(self, chunk: int, values: Values) -> None:
        """Keep a chunk's activations."""
        size = _bytes(values)
        with self._lock:
            fits = sum(self._sizes.values()) + size <= self._memory
            if fits:
                self._held[chunk], self._sizes[chunk] = values, size
        if not fits:  # in one file: tensors that share memory go on sharing it
            torch.save(values, self._file(chunk))

    def look(self, chunk: int) -> Values:
        """A chunk's activations, which stay."""
        held = self._held.get(chunk)
        if held is not None:
            return held
        values: Values = torch.load(self._file(chunk), weights_only=True)
        return values

    def take(self, chunk: int) -> Values:
        """A chunk's activations, which are gone from here."""
        values = self.look(chunk)
        with self._lock:
            self._held.pop(chunk, None)
            self._sizes.pop(chunk, None)
        with suppress(FileNotFoundError):
            os.unlink(self._file(chunk))  # noqa: PTH108 (this room knows no pathlib)
        return values

    def _file(self, chunk: int) -> str:
        return f"{self._folder.name}/{chunk}.pt"


def _bytes(values: Any) -> int:
    """What the tensors in nested ``values`` take."""
    if isinstance(values, Tensor):
        return values.nbytes
    if isinstance(values, Mapping):
        return sum(map(_bytes, values.values()))
    return sum(map(_bytes, values)) if isinstance(values, tuple | list) else 0
