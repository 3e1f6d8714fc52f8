"""Calibration images as people have them: tensors, arrays, batches of them, with labels or by name.

They are, as tensors or NumPy arrays,

- one array (n, ...), a mapping of names to such arrays, or a tuple of them: cut into batches of
  ``batch_size``;
- a list, a DataLoader or any other iterable of batches, each of which is an array, a tuple or list
  such as (images, labels), or a mapping. Batches are taken as they come, once.

Of a tuple, and of a list that is a batch, the first elements are the inputs: as many as ``forward``
has positional parameters without a default, at least one. What follows, such as labels, is ignored.
A mapping's entries go by keyword to the parameters of their names; labels do so only where
``forward`` has no default for them. Where no entry has the name of the first parameter, one called
``image``, ``images``, ``img``, ``pixel_values``, ``pixels``, ``input`` or ``inputs`` takes its place.
A tuple of arrays of one type and one shape beyond the first dimension, which is what ``torch.split``
gives, holds batches where ``forward`` takes one input.
"""

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from laq.quantization.calibration.batch import Batch, Digest, dtype_name
from laq.quantization.calibration.trial import check_runs, device_of, fits_first_layer
from laq.quantization.recipe import QuantizationError

__all__ = ["Batch", "Digest", "calibration_batches", "check_runs"]

# Names of images and of labels in batches that are mappings, unless forward has parameters of these names.
_IMAGES: Final = ("image", "images", "img", "pixel_values", "pixels", "input", "inputs")
_LABELS: Final = frozenset({"label", "labels", "target", "targets"})
_ARRAYS: Final = (Tensor, np.ndarray)


@dataclass(frozen=True)
class _Signature:
    """The parameters of a forward: all names, those without a default, and the positional ones of these."""

    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()


def calibration_batches(
    network: nn.Module, images: Any, batch_size: int, digest: Digest | None = None
) -> Iterator[Batch]:
    """Batches on the network's device, checked as they come.

    Nothing is converted: images must have the dtype that the network is called with. Empty batches are
    skipped.

    Args:
        network: what takes the images; where their shape or type raises doubts, it is run on two of
            them, in evaluation mode.
        images: in one of the module's forms.
        batch_size: of what is one array, or one set of inputs.
        digest: takes in the bytes of all images.

    Raises:
        QuantizationError: there are no images; they are of another kind, or hold values that are not
            finite; the network cannot be run on them.
    """
    device, count, proven = device_of(network), 0, set[Any]()
    for inputs, size in _given(images, _signature(network), batch_size):
        if inputs.count and inputs.kind not in proven and not fits_first_layer(network, inputs):
            check_runs(network, inputs)
        proven.add(inputs.kind)
        for batch in inputs.parts(size or max(1, inputs.count)):
            _check_finite(batch, count)
            count += batch.count
            if digest is not None:
                digest.update(batch)
            yield batch.map(lambda tensor: tensor.to(device))
    if count == 0:
        raise QuantizationError("no calibration images: give at least one")


def _check_finite(batch: Batch, count: int) -> None:
    for value in batch.values:
        if not torch.isfinite(value).all():
            finite = torch.isfinite(value).reshape(len(value), -1).all(1)
            bad = count + int((~finite).nonzero()[0])
            raise QuantizationError(f"calibration image {bad} holds values that are not finite")


def _signature(network: nn.Module) -> _Signature:
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that is not Python's
        return _Signature()
    named = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    required = [p for p in named if p.default is p.empty]
    return _Signature(
        tuple(p.name for p in named if p.kind != p.POSITIONAL_ONLY),
        tuple(p.name for p in required),
        tuple(p.name for p in required if p.kind != p.KEYWORD_ONLY),
    )


def _given(images: Any, signature: _Signature, size: int) -> Iterator[tuple[Batch, int | None]]:
    """The inputs, all at once, to be cut into batches of ``size``, or batch by batch and None."""
    one = isinstance(images, (*_ARRAYS, Mapping)) or (
        isinstance(images, tuple) and not _holds_batches(images, signature)
    )
    if one:
        inputs = _arguments(images, signature).map(_tensor)
        if len(lengths := {len(value): None for value in inputs.values}) > 1:
            found = " and ".join(map(str, lengths))
            raise QuantizationError(f"calibration images: inputs must be of the same images; found {found}")
        yield inputs, size
    elif isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Iterable):
        raise _unusable(images)
    else:
        for batch in images:
            yield _arguments(batch, signature).map(_tensor), None


def _holds_batches(images: tuple[Any, ...], signature: _Signature) -> bool:
    """Whether a tuple is one of batches, and not one of inputs."""
    if not all(isinstance(value, _ARRAYS) for value in images):
        return True
    for value in images:
        _check_plain(value)
    kinds = {(dtype_name(value.dtype), tuple(value.shape[1:])) for value in images}
    return len(kinds) <= 1 and len(signature.positional) <= 1


def _arguments(batch: Any, signature: _Signature) -> Batch:
    """What of a batch the network is called with."""
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Mapping):
        return _by_name(batch, signature)
    values = batch if isinstance(batch, tuple | list) else (batch,)
    needed = max(1, len(signature.positional))
    by_keyword = signature.required[len(signature.positional) :]
    if len(values) < needed or by_keyword:
        names = ", ".join(signature.required)
        raise QuantizationError(
            f"calibration images: the network takes {names or 'images'}, found {len(values)} inputs; "
            "give batches that are tuples of all inputs, or mappings of these names to them"
        )
    return Batch(tuple(values[:needed]), {})


def _by_name(batch: Mapping[Any, Any], signature: _Signature) -> Batch:
    required, first = signature.required, signature.required[:1] or ("images",)
    named = {n: batch[n] for n in signature.names if n in batch and (n in required or n not in _LABELS)}
    missing = [name for name in required if name not in named]
    if named and not missing:
        return Batch((), named)
    others = [name for name in _IMAGES if name in batch and name not in named]
    if others and missing in ([], [*signature.positional[:1]]):
        return Batch((batch[others[0]],), named)
    raise QuantizationError(
        f"calibration images: found a mapping of {', '.join(map(str, batch))}; it must hold "
        f"{', '.join(missing or first)}, by which the network's forward names its inputs, or 'image'"
    )


def _tensor(value: Any) -> Tensor:
    """An array as a tensor whose bytes can be read and of which views can be taken."""
    _check_plain(value)
    if not isinstance(value, _ARRAYS) or value.ndim == 0:
        raise _unusable(value)
    if isinstance(value, np.ndarray):
        # torch takes no negative strides and no other byte order, and warns of arrays that are read-only.
        plain = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        try:
            value = torch.from_numpy(plain if plain.flags.writeable else plain.copy())
        except TypeError as error:
            raise _unusable(value) from error
    with torch.inference_mode(mode=False):
        tensor: Tensor = value.detach()
        return tensor.clone() if tensor.is_inference() else tensor


def _check_plain(value: Any) -> None:
    """See that an array holds a number at each of its places.

    Raises:
        QuantizationError: it is of another kind.
    """
    other = ""
    if isinstance(value, np.ma.MaskedArray):
        other = "a masked array; fill in its masked values, as by images.filled(0)"
    elif isinstance(value, Tensor):
        kinds = {
            "a nested tensor; give batches of images of one size": value.is_nested,
            "a tensor on the meta device, which holds no values; give one on the CPU": value.is_meta,
            "a quantized tensor; give images.dequantize()": value.is_quantized,
            "a sparse tensor; give images.to_dense()": value.layout != torch.strided,
        }
        other = next((told for told, found in kinds.items() if found), "")
    if other:
        raise QuantizationError(f"calibration images: found {other}")


def _unusable(value: Any) -> QuantizationError:
    kind = (
        f"an array of {value.dtype} {tuple(value.shape)}"
        if isinstance(value, _ARRAYS)
        else type(value).__name__
    )
    text = f" {os.fspath(value)!r}" if isinstance(value, str | bytes | os.PathLike) else ""
    return QuantizationError(
        f"calibration images: found {kind}{text}; give a tensor or NumPy array (n, ...) of images, "
        "or batches of them, such as torch.utils.data.DataLoader(dataset, batch_size=16)"
    )
