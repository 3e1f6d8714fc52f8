"""What a network is called with, batch by batch, and the hash of it all."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from typing import Any, Self

import torch


@dataclass(frozen=True)
class Batch:
    """What a network is called with: ``network(*args, **kwargs)``; each a tensor (n, ...) of n images."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> tuple[Any, ...]:
        """All inputs, the keywords' last."""
        return (*self.args, *self.kwargs.values())

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.values[0])

    @property
    def kind(self) -> Hashable:
        """The type and shape of an image's inputs; batches that share it can be joined."""
        return tuple((value.dtype, value.shape[1:]) for value in self.values)

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """The images of all batches, which are of one kind, as one batch."""
        return cls(
            tuple(torch.cat(values) for values in zip(*(batch.args for batch in batches), strict=True)),
            {name: torch.cat([batch.kwargs[name] for batch in batches]) for name in batches[0].kwargs},
        )

    def parts(self, size: int) -> Iterator["Batch"]:
        """The images in their order, ``size`` at a time."""
        for start in range(0, self.count, size):
            yield self.map(itemgetter(slice(start, start + size)))

    def map(self, function: Callable[[Any], Any]) -> "Batch":
        """``function`` of every input."""
        return Batch(
            tuple(function(value) for value in self.args),
            {name: function(value) for name, value in self.kwargs.items()},
        )


class Digest:
    """SHA-256 of calibration inputs, which is the same however they are cut into batches.

    Of one input it is the hash of all its bytes in order; of several, the hash of their hashes.
    """

    def __init__(self) -> None:
        self._hashes = [sha256()]

    def update(self, batch: Batch) -> None:
        """Take in the bytes of the next images."""
        self._hashes += [sha256() for _ in range(len(self._hashes), len(batch.values))]
        for digest, value in zip(self._hashes, batch.values, strict=True):
            # NumPy knows no bfloat16, but bytes.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

    def hexdigest(self) -> str:
        """The digest in hexadecimal."""
        if len(self._hashes) == 1:
            return self._hashes[0].hexdigest()
        return sha256(b"".join(digest.digest() for digest in self._hashes)).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type of numbers without that of torch, such as ``float32``."""
    return str(dtype).removeprefix("torch.")
