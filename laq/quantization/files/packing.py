"""Quantized networks as small files: codes of no more bits than they need, steps, and the float rest.

A file is safetensors and holds no code. For each quantized layer, ``codes:LAYER`` are bit planes, uint8
(bits, ⌈weights / 8⌉), and ``step:LAYER`` are its steps, each once (``pack_steps``). Everything else has
its own name and type; a parameter with several names has the first of them. Where activations are rounded,
``activations:step``, ``:zero_point`` and ``:highest`` hold a number for each point, in the order of the
graph. A header says how to read it all (``Header``).
"""

import copy
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Size, Tensor, nn

from laq.quantization.activations.ranges import ActivationGrid
from laq.quantization.alphabet import Alphabet
from laq.quantization.calibration.batch import dtype_name
from laq.quantization.execution.attention import linears_of_attention
from laq.quantization.execution.graph import NoGraphError
from laq.quantization.execution.points import (
    POINTS,
    empty_batch,
    points_of,
    with_points,
)
from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.files.architecture import (
    OTHER_NETWORK,
    check_finite,
    copy_to_fill,
    fit,
    narrow,
    state_of,
)
from laq.quantization.files.codes import (
    full_steps,
    pack_codes,
    pack_steps,
    unpack_codes,
    unpack_steps,
    width,
)
from laq.quantization.files.header import (
    FORMAT,
    Cut,
    Header,
    LayerHeader,
    fits_format_1,
    read_header,
    write_header,
)
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork

# One key: safetensors writes several in an order that changes from run to run.
_KEY: Final = "laq"
_CODES: Final = "codes:"
_STEP: Final = "step:"
_LONGEST: Final = 600  # characters of a message: names in damaged files may be of any length
_GRIDS: Final = ("activations:step", "activations:zero_point", "activations:highest")
_STEP_TYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PathLike = str | os.PathLike[str]


def save(
    path: PathLike,
    result: QuantizedNetwork,
    notes: Mapping[str, Any] | None = None,
    cut: Cut | None = None,
) -> int:
    """Write the file whole or not at all; returns its size in bytes. For the arguments see ``pack``.

    Examples:
        >>> import tempfile, torch
        >>> from laq.quantization import Recipe, load, quantize, save
        >>> network = torch.nn.Linear(256, 64)
        >>> result = quantize(network, torch.rand(32, 256), Recipe(bits=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/small.safetensors", result)
        ...     again = load(f"{folder}/small.safetensors", torch.nn.Linear(256, 64))
        >>> 256 * 64 * 4 / 8 <= size < 256 * 64  # bytes: 4 bits a weight, and the rest
        True
        >>> torch.equal(again.weight, result.network.weight)
        True
    """
    content = safetensors.torch.save(*pack(result, notes, cut))
    write_whole(path, content)
    return len(content)


def load(path: PathLike, network: nn.Module) -> nn.Module:
    """The quantized network, in evaluation mode: equal bit for bit to the one that was saved.

    Args:
        path: what ``save`` wrote.
        network: of the architecture that was quantized, uncut and unfused, with any weights, also in
            a wrapper such as torch.compile's or on the meta device. It is left as it is.

    Raises:
        QuantizationError: the file is missing, damaged, of a later format, or of another network.

    Examples:
        >>> import torch
        >>> from laq.quantization import load
        >>> load("missing.safetensors", torch.nn.Linear(2, 2))
        Traceback (most recent call last):
            ...
        laq.quantization.options.QuantizationError: missing.safetensors: not found; name a file...
    """
    return load_quantized(path, network).network


def load_quantized(path: PathLike, network: nn.Module) -> QuantizedNetwork:
    """As ``load``, and the layers' codes; ``seconds`` and ``flops``, which no file holds, are NaN.

    Raises:
        QuantizationError: as ``load``.
    """
    with _named(path):
        metadata, tensors = _read(path, whole=True)
        return unpack(tensors, _header(metadata), network)


def read_metadata(path: PathLike) -> Header:
    """The header alone.

    Raises:
        QuantizationError: as ``load``.
    """
    with _named(path):
        return _header(_read(path, whole=False)[0])


def pack(
    result: QuantizedNetwork, notes: Mapping[str, Any] | None = None, cut: Cut | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Args:
        result: what to pack; batch norms' counters of batches are left out, as inference has no use
            for them.
        notes: kept in the header; anything that JSON can hold.
        cut: rows of the classifier to keep, if not all (``keep_rows``).

    Raises:
        QuantizationError: the cut does not fit the network.
    """
    if cut is not None:
        result = keep_rows(result, cut)
    network = unwrapped(result.network)
    check_finite(network)
    tensors = _separate(state_of(network))
    for layer in result.layers:
        if tensors.pop(layer.parameter, None) is None:
            raise QuantizationError(f"layer {layer.name}: the network has no parameter {layer.parameter}")
        tensors[_CODES + layer.name] = pack_codes(layer.codes, layer.alphabet)
        tensors[_STEP + layer.name] = pack_steps(layer.alphabet.step, layer.codes.shape)
    if result.inputs:
        tensors = _with_grids(tensors, network)
    return tensors, {_KEY: write_header(_header_of(result, network, notes, cut))}


def _header_of(
    result: QuantizedNetwork, network: nn.Module, notes: Mapping[str, Any] | None, cut: Cut | None
) -> Header:
    """What a file says of a result, whose ``network`` is out of its wrappers."""
    return Header(
        format=1 if _fits_format_1(result, network) else FORMAT,
        laq=version("laq"),
        torch=str(torch.__version__),
        recipe=result.recipe,
        relative_error=result.relative_error,
        calibration=result.calibration,
        layers=tuple(_layer_header(layer, network) for layer in result.layers),
        folded=result.folded,
        cut=cut,
        notes=dict(notes or {}),
        not_quantized=result.not_quantized,
        on_floats=result.on_floats,
        inputs=result.inputs,
        tuned=result.tuned,
        held_back_error=result.held_back_error,
    )


def unpack(tensors: Mapping[str, Tensor], header: Header, network: nn.Module) -> QuantizedNetwork:
    """The inverse of ``pack``, for a ``network`` as ``load`` wants it, which is left as it is.

    Raises:
        QuantizationError: the tensors are damaged or those of another network.
    """
    network = copy_to_fill(network)
    fit(network, header, tensors)
    if header.inputs:
        network = _with_points(network, header)
        tensors = _without_grids(tensors, network)
    expected = state_of(network)
    own = {prefix + entry.name for entry in header.layers for prefix in (_CODES, _STEP)}
    found = {name: tensor for name, tensor in tensors.items() if name not in own}
    kinds = {entry.parameter: _kind_of_layer(entry, tensors) for entry in header.layers}
    if twice := kinds.keys() & found.keys():
        raise QuantizationError(f"{min(twice)} is there as codes and as floats; write the file again")
    # Before anything is made of the file: shapes are those of the network from here on.
    _check_match({n: _kind(t) for n, t in expected.items()}, {n: _kind(t) for n, t in found.items()} | kinds)
    layers = tuple(_read_layer(entry, tensors) for entry in header.layers)
    for name, target in expected.items():
        if name in found:
            target.copy_(found[name])
    for layer in layers:
        expected[layer.parameter].copy_(layer.alphabet.decode(layer.codes))
    check_finite(network)
    return QuantizedNetwork(
        network=network,
        layers=layers,
        relative_error=header.relative_error,
        recipe=header.recipe,
        folded=header.folded,
        calibration=header.calibration,
        not_quantized=header.not_quantized,
        on_floats=header.on_floats,
        inputs=header.inputs,
        tuned=header.tuned,
        held_back_error=header.held_back_error,
    )


def _with_points(network: nn.Module, header: Header) -> nn.Module:
    """The network with the points that the inputs in the header lead to.

    Raises:
        QuantizationError: it does not take such inputs.
    """
    batch = empty_batch(header.inputs)
    try:
        with linears_of_attention():  # as when they were found
            return with_points(network, batch)[0]
    except NoGraphError as error:
        raise QuantizationError(
            "inputs: they are damaged, so that the file must be written again, or those of another network: "
            f"{OTHER_NETWORK} ({error.reason})"
        ) from error


def _with_grids(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors, with those of all points in three: a name for each would take more than the numbers."""
    points = points_of(network).values()
    grids = (
        torch.stack([p.step for p in points]),
        torch.stack([p.zero_point for p in points]).to(torch.uint8),
        torch.stack([p.highest for p in points]).to(torch.uint8),
    )
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{POINTS}.")}
    return kept | dict(zip(_GRIDS, grids, strict=True))


def _without_grids(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The inverse of ``_with_grids``.

    Raises:
        QuantizationError: the grids are damaged, or are not as many as the network has points.
    """
    points = list(points_of(network).values())
    grids = [tensors.get(name, torch.empty(0)) for name in _GRIDS]
    wanted = (torch.float32, torch.uint8, torch.uint8)
    if any(g.shape != (len(points),) or g.dtype != kind for g, kind in zip(grids, wanted, strict=True)):
        raise QuantizationError(f"the {len(points)} grids of activations are damaged; write the file again")
    for point, step, zero_point, highest in zip(points, *(grid.tolist() for grid in grids), strict=True):
        if highest:
            point.set_grid(ActivationGrid(step, zero_point, highest))
        if not point.is_whole():
            raise QuantizationError(f"{_GRIDS[0]}: found a grid that is damaged; write the file again")
    state = {name: t for name, t in state_of(network).items() if name.startswith(f"{POINTS}.")}
    return {name: t for name, t in tensors.items() if name not in _GRIDS} | state


def keep_rows(result: QuantizedNetwork, cut: Cut) -> QuantizedNetwork:
    """A copy with fewer outputs: to float rounding the chosen ones of the full network.

    Raises:
        QuantizationError: the cut does not fit the network.
    """
    network = copy.deepcopy(unwrapped(result.network))
    narrow(network, cut, {layer.parameter: layer.operation for layer in result.layers})
    layers = tuple(_cut_layer(layer, cut) if layer.name == cut.layer else layer for layer in result.layers)
    return replace(result, network=network, layers=layers)


def codes_bytes(result: QuantizedNetwork) -> int:
    """Bytes that the codes alone take in a file."""
    return sum(width(layer.alphabet) * -(-layer.codes.numel() // 8) for layer in result.layers)


def float32_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers in float32, batch norms' counters left out."""
    return 4 * sum(t.numel() for t in state_of(network).values())


def write_whole(path: PathLike, content: bytes) -> None:
    """Write a file under a temporary name beside ``path``, then rename it."""
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    # This room knows no pathlib: paths come as strings too.
    try:
        with open(partial, "wb") as file:  # noqa: PTH123
            file.write(content)
        os.replace(partial, path)  # noqa: PTH105
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)  # noqa: PTH108


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own, as safetensors wants them."""
    seen, separate = set[int](), {}
    for name, tensor in tensors.items():
        own = tensor.cpu().contiguous()
        storage = own.untyped_storage()
        separate[name] = own.clone() if storage.data_ptr() in seen or storage.nbytes() > own.nbytes else own
        seen.add(storage.data_ptr())
    return separate


def _fits_format_1(result: QuantizedNetwork, network: nn.Module) -> bool:
    """Whether what reads format 1 alone makes of it what it is."""
    return fits_format_1(result.recipe) and all(
        layer.parameter == f"{layer.name}.weight"
        and isinstance(network.get_submodule(layer.name), nn.Conv2d | nn.Linear)
        and network.get_parameter(layer.parameter).dtype == layer.alphabet.step.dtype
        and pack_steps(layer.alphabet.step, layer.codes.shape).ndim == 1
        for layer in result.layers
    )


def _layer_header(layer: QuantizedLayer, network: nn.Module) -> LayerHeader:
    a, shape = layer.alphabet, tuple(layer.codes.shape)
    dtype = dtype_name(network.get_parameter(layer.parameter).dtype)
    return LayerHeader(
        name=layer.name,
        bits=layer.bits,
        low=a.low,
        high=a.high,
        offset=a.offset,
        shape=shape,
        relative_error=layer.relative_error,
        parameter=layer.parameter,
        operation=layer.operation,
        dtype=dtype,
    )


def _cut_layer(layer: QuantizedLayer, cut: Cut) -> QuantizedLayer:
    rows = list(cut.rows)
    alphabet = layer.alphabet.with_step(full_steps(layer.alphabet.step, layer.codes.shape)[rows])
    return replace(layer, codes=layer.codes[rows], alphabet=alphabet)


def _kind_of_layer(entry: LayerHeader, tensors: Mapping[str, Tensor]) -> str:
    """The type and shape of the weights that an entry says how to read."""
    step = tensors.get(_STEP + entry.name)
    if step is None or step.dtype not in _STEP_TYPES:
        raise _damaged(entry)
    return f"{entry.dtype or dtype_name(step.dtype)} {entry.shape}"


def _read_layer(entry: LayerHeader, tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    """The codes and steps of a layer whose shape and type are the network's."""
    planes, shape = tensors.get(_CODES + entry.name, torch.empty(0)), Size(entry.shape)
    step = unpack_steps(tensors[_STEP + entry.name], shape)
    if step is None or not step.isfinite().all():
        raise _damaged(entry)
    alphabet = Alphabet(step, entry.low, entry.high, entry.offset)
    few, most = 2 ** (entry.bits - 1), 2**entry.bits + 1  # more than one bit less could tell apart
    if not few < alphabet.levels <= most or planes.dtype != torch.uint8:
        raise _damaged(entry)
    if planes.shape != (width(alphabet), -(-shape.numel() // 8)):
        raise _damaged(entry)
    codes = unpack_codes(planes, shape.numel(), entry.low)
    if not entry.low <= int(codes.min()) <= int(codes.max()) <= entry.high:
        raise _damaged(entry)
    return QuantizedLayer(
        name=entry.name,
        bits=entry.bits,
        codes=codes.view(shape),
        alphabet=alphabet,
        relative_error=entry.relative_error,
        seconds=math.nan,
        flops=math.nan,
        # Format 1 names no operations, but knows two.
        operation=entry.operation or ("linear" if len(shape) == 2 else "conv2d"),
        parameter=entry.parameter,
    )


def _damaged(entry: LayerHeader) -> QuantizationError:
    return QuantizationError(f"layer {entry.name}: codes or steps are damaged; write the file again")


def _check_match(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    other = [
        f"{name} {found[name]} instead of {kind}"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    missing, unknown = ([n for n in a if n not in b] for a, b in ((expected, found), (found, expected)))
    problems = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape or type", other))
        if names
    ]
    if problems:
        raise QuantizationError(f"tensors of another network: {'; '.join(problems)}; {OTHER_NETWORK}")


def _kind(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"


def _read(path: PathLike, *, whole: bool) -> tuple[Mapping[str, str] | None, dict[str, Tensor]]:
    """The metadata of a safetensors file, and its tensors if the ``whole`` is wanted."""
    try:
        with safe_open(path, framework="pt") as file:
            # The file is no dictionary.
            return file.metadata(), {n: file.get_tensor(n) for n in file.keys() if whole}  # noqa: SIM118
    except FileNotFoundError as error:
        raise QuantizationError("not found; name a file that save wrote") from error
    except Exception as error:
        # Safetensors and torch raise whatever they stumble upon in a damaged file.
        reason = str(error).partition("\n")[0]
        raise QuantizationError(
            f"not a whole safetensors file ({reason}); name a file that save wrote"
        ) from error


def _header(metadata: Mapping[str, str] | None) -> Header:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise QuantizationError("holds no packed network; name a file that save wrote")
    return read_header(text)


@contextmanager
def _named(path: PathLike) -> Iterator[None]:
    """Errors name the file, in one line, whatever the file has in it."""
    if not isinstance(path, str | os.PathLike):
        raise QuantizationError(f"path: found {path!r:.80}; give the name of a file that save wrote")
    try:
        yield
    except QuantizationError as error:
        line = " ".join(str(error).split())
        if len(line) > _LONGEST:
            line = f"{line[:_LONGEST]}..."
        raise QuantizationError(f"{os.fspath(path)}: {line}") from error
