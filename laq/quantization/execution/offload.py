"""Where activations wait: in memory as far as that goes, then in files."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor

Values = dict[str, Any]
Key = tuple[int, ...]  # a chunk and a network, and what else tells values apart
INPUTS: Final = -1  # in place of a network: what all of them are given


class Offload:
    """Keeps dictionaries of activations; at most ``memory`` bytes of them outside of files."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._held: dict[Key, Values] = {}
        self._sizes: dict[Key, int] = {}
        self._in_files: set[Key] = set()
        self._used = 0
        self._lock = Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="laq-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def put(self, key: Key, values: Values) -> None:
        """Keep activations, in the place of those that are there."""
        self.drop(key)
        size = _bytes(values)
        with self._lock:
            fits = self._used + size <= self._memory
            if fits:
                self._held[key], self._sizes[key] = values, size
                self._used += size
        if not fits:  # in one file: tensors that share memory go on sharing it
            if len(values) == 1:  # a lone part of a larger tensor goes without the rest
                values = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
            torch.save(values, self._file(key))
            self._in_files.add(key)

    def look(self, key: Key) -> Values:
        """The activations, which stay."""
        held = self._held.get(key)
        if held is not None:
            return held
        values: Values = torch.load(self._file(key), weights_only=True)
        return values

    def take(self, key: Key) -> Values:
        """The activations, which are gone from here."""
        values = self.look(key)
        self.drop(key)
        return values

    def drop(self, key: Key) -> None:
        """Forget activations, if there are any."""
        with self._lock:
            self._held.pop(key, None)
            self._used -= self._sizes.pop(key, 0)
        if key in self._in_files:
            self._in_files.remove(key)
            os.unlink(self._file(key))  # noqa: PTH108 (this room knows no pathlib)

    def _file(self, key: Key) -> str:
        return f"{self._folder.name}/{'.'.join(map(str, key))}.pt"


def _bytes(values: Any) -> int:
    """What the tensors in nested ``values`` take; memory that several share counts once."""
    parts, whole = Counter[int](), dict[int, int]()
    for tensor in _tensors(values):
        memory = tensor.untyped_storage()
        parts[memory.data_ptr()] += tensor.nbytes
        whole[memory.data_ptr()] = memory.nbytes()
    return sum(min(size, whole[memory]) for memory, size in parts.items())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping | tuple | list):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)
