"""Codes in no more bits than they need, and steps in as few numbers as say the same."""

import numpy as np
import torch
from torch import Size, Tensor

from laq.quantization.alphabet import Alphabet


def width(alphabet: Alphabet) -> int:
    """Bits that tell all levels apart."""
    return (alphabet.levels - 1).bit_length()


def pack_codes(codes: Tensor, alphabet: Alphabet) -> Tensor:
    """Bit planes, uint8 (bits, ⌈n / 8⌉), least significant first, of n codes (int32, any shape)."""
    # The difference may overflow int32, but never uint32, which has the same bits.
    unsigned = (codes.flatten().cpu() - alphabet.low).numpy().view(np.uint32)
    planes = [np.packbits((unsigned & np.uint32(1 << bit)) != 0) for bit in range(width(alphabet))]
    return torch.from_numpy(np.stack(planes))


def unpack_codes(planes: Tensor, count: int, low: int) -> Tensor:
    """The ``count`` codes, int32, that ``pack_codes`` packed."""
    unsigned = np.zeros(count, np.uint32)
    for bit, plane in enumerate(planes.numpy()):
        unsigned |= np.unpackbits(plane, count=count).astype(np.uint32) << np.uint32(bit)
    return torch.from_numpy(unsigned.view(np.int32)) + low


def pack_steps(step: Tensor, shape: Size) -> Tensor:
    """Steps that broadcast over codes of ``shape``, each once.

    Returns:
        (N,) for steps of the N rows alone, (1,) for a single one. Otherwise a tensor of as many
        dimensions as ``shape`` whose sizes divide those of the codes: along a dimension each step stands
        for a block of codes. Steps of a grouped transposed convolution, whose weights have the shape
        (G · in, out, ...), are (G, out, ...) so.
    """
    least = step.cpu().reshape((1,) * (len(shape) - step.ndim) + tuple(step.shape))
    for dimension in range(least.ndim):
        least = _without_repetition(least, dimension)
    rows = len(least)
    if least.numel() > rows:
        return least.contiguous()
    return least.flatten().repeat_interleave(1 if rows == 1 else shape[0] // rows)


def unpack_steps(packed: Tensor, shape: Size) -> Tensor | None:
    """Steps that broadcast over codes of ``shape``, from what ``pack_steps`` made; None if that cannot be."""
    if packed.ndim == 1 and len(packed) in {1, shape[0]}:
        return packed.expand(shape[0]).reshape(-1, *(1 for _ in shape[1:]))
    if packed.ndim != len(shape) or any(k == 0 or n % k for k, n in zip(packed.shape, shape, strict=True)):
        return None
    for dimension, (k, n) in enumerate(zip(packed.shape, shape, strict=True)):
        if k > 1:
            packed = packed.repeat_interleave(n // k, dimension)
    return packed


def full_steps(step: Tensor, shape: Size) -> Tensor:
    """Steps of codes of ``shape`` with one for each row, (N, 1 or more, ...)."""
    step = step.reshape((1,) * (len(shape) - step.ndim) + tuple(step.shape))
    return step.expand(shape[0], *step.shape[1:])


def _without_repetition(step: Tensor, dimension: int) -> Tensor:
    """The shortest tensor of which each entry along a dimension stands for a block of equal ones."""
    n = step.shape[dimension]
    for k in (k for k in range(1, n) if n % k == 0):
        blocks = step.reshape(*step.shape[:dimension], k, n // k, *step.shape[dimension + 1 :])
        first = blocks.narrow(dimension + 1, 0, 1)
        if torch.equal(first.expand_as(blocks), blocks):
            return first.squeeze(dimension + 1)
    return step
