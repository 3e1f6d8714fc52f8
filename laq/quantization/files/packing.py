"""Quantized networks as small files: codes of no more bits than they need, steps, and the float rest.

A file is safetensors and holds no code. For each quantized layer, ``codes:LAYER`` are bit planes, uint8
(bits, ⌈weights / 8⌉), and ``step:LAYER`` is a step per neuron, or one if all are equal. Everything else
has its own name and type. A header says how to read them (``Header``).
"""

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from laq.quantization.alphabet import Alphabet
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork, Recipe

FORMAT: Final = 1
# One key: safetensors writes several in an order that changes from run to run.
_KEY: Final = "laq"
_CODES: Final = "codes:"
_STEP: Final = "step:"
_OTHER_NETWORK: Final = "give load a network of the architecture that the file was written from"
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Cut:
    """Which rows (class indices) of the classifier stay: output i of the cut network is class ``rows[i]``.

    ``layer`` names the Linear or Conv2d whose outputs are the logits.
    """

    layer: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class LayerHeader:
    """How to read one layer's codes; the fields are those of its alphabet and of ``QuantizedLayer``."""

    name: str
    bits: int
    low: int
    high: int
    offset: float
    shape: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        format: of the file; later ones than ``FORMAT`` are refused.
        laq: the version that wrote the file, as ``torch``.
        relative_error: of the whole network's outputs, before any cut.
        calibration: SHA-256 of the calibration inputs' bytes.
        notes: whatever the writer added, such as the classes that the network is for.
    """

    format: int
    laq: str
    torch: str
    recipe: Recipe
    relative_error: float
    calibration: str
    layers: tuple[LayerHeader, ...]
    folded: tuple[str, ...]
    cut: Cut | None
    notes: dict[str, Any]


def save(
    path: PathLike,
    result: QuantizedNetwork,
    notes: Mapping[str, Any] | None = None,
    cut: Cut | None = None,
) -> int:
    """Write the file whole or not at all; returns its size in bytes. For the arguments see ``pack``."""
    content = safetensors.torch.save(*pack(result, notes, cut))
    write_whole(path, content)
    return len(content)


def load(path: PathLike, network: nn.Module) -> nn.Module:
    """The quantized network, in evaluation mode: equal bit for bit to the one that was saved.

    Args:
        path: what ``save`` wrote.
        network: of the architecture that was quantized, uncut and unfused, with any weights. It is
            left as it is.

    Raises:
        QuantizationError: the file is missing, damaged, of a later format, or of another network.
    """
    return load_quantized(path, network).network


def load_quantized(path: PathLike, network: nn.Module) -> QuantizedNetwork:
    """As ``load``, and the layers' codes; ``seconds`` and ``flops``, which no file holds, are NaN.

    Raises:
        QuantizationError: as ``load``.
    """
    with _opened(path) as file:
        header = _header(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
    try:
        return unpack(tensors, header, network)
    except QuantizationError as error:
        raise QuantizationError(f"{os.fspath(path)}: {error}") from error


def read_metadata(path: PathLike) -> Header:
    """The header alone.

    Raises:
        QuantizationError: as ``load``.
    """
    with _opened(path) as file:
        return _header(path, file.metadata())


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
    tensors = {name: t.cpu().contiguous() for name, t in _state(result.network).items()}
    for layer in result.layers:
        del tensors[f"{layer.name}.weight"]
        steps = _steps(layer).flatten().cpu()
        tensors[_CODES + layer.name] = pack_codes(layer.codes, layer.alphabet)
        tensors[_STEP + layer.name] = (steps[:1] if bool((steps == steps[0]).all()) else steps).clone()
    header = Header(
        format=FORMAT,
        laq=version("laq"),
        torch=str(torch.__version__),
        recipe=result.recipe,
        relative_error=result.relative_error,
        calibration=result.calibration,
        layers=tuple(_layer_header(layer) for layer in result.layers),
        folded=result.folded,
        cut=cut,
        notes=dict(notes or {}),
    )
    return tensors, {_KEY: json.dumps(asdict(header), separators=(",", ":"))}


def unpack(tensors: Mapping[str, Tensor], header: Header, network: nn.Module) -> QuantizedNetwork:
    """The inverse of ``pack``, for a ``network`` as ``load`` wants it, which is left as it is.

    Raises:
        QuantizationError: the tensors are damaged or those of another network.
    """
    network = copy.deepcopy(network).eval()
    _shape_like_the_file(network, header, tensors)
    layers = tuple(_read_layer(entry, tensors) for entry in header.layers)
    found = {name: t for name, t in tensors.items() if not name.startswith((_CODES, _STEP))}
    found |= {f"{layer.name}.weight": layer.alphabet.decode(layer.codes) for layer in layers}
    expected = _state(network)
    _check_match(expected, found)
    for name, target in expected.items():
        target.copy_(found[name])
    return QuantizedNetwork(
        network, layers, header.relative_error, header.recipe, header.folded, header.calibration
    )


def keep_rows(result: QuantizedNetwork, cut: Cut) -> QuantizedNetwork:
    """A copy with fewer outputs: to float rounding the chosen ones of the full network.

    Raises:
        QuantizationError: the cut does not fit the network.
    """
    network = copy.deepcopy(result.network)
    _narrow(network, cut)
    layers = tuple(_cut_layer(layer, cut) if layer.name == cut.layer else layer for layer in result.layers)
    return replace(result, network=network, layers=layers)


def pack_codes(codes: Tensor, alphabet: Alphabet) -> Tensor:
    """Bit planes, uint8 (bits, ⌈n / 8⌉), least significant first, of n codes (int32, any shape)."""
    # The difference may overflow int32, but never uint32, which has the same bits.
    unsigned = (codes.flatten().cpu() - alphabet.low).numpy().view(np.uint32)
    planes = [np.packbits((unsigned & np.uint32(1 << bit)) != 0) for bit in range(_width(alphabet))]
    return torch.from_numpy(np.stack(planes))


def unpack_codes(planes: Tensor, count: int, low: int) -> Tensor:
    """The ``count`` codes, int32, that ``pack_codes`` packed."""
    unsigned = np.zeros(count, np.uint32)
    for bit, plane in enumerate(planes.numpy()):
        unsigned |= np.unpackbits(plane, count=count).astype(np.uint32) << np.uint32(bit)
    return torch.from_numpy(unsigned.view(np.int32)) + low


def codes_bytes(result: QuantizedNetwork) -> int:
    """Bytes that the codes alone take in a file."""
    return sum(_width(layer.alphabet) * -(-layer.codes.numel() // 8) for layer in result.layers)


def float32_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers in float32, batch norms' counters left out."""
    return 4 * sum(t.numel() for t in _state(network).values())


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


def _state(network: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a network: each tensor once, shared ones under their first name."""
    kept = network.state_dict().keys()
    return {
        name: t.detach()
        for name, t in chain(network.named_parameters(), network.named_buffers())
        if name in kept and not name.endswith("num_batches_tracked")
    }


def _width(alphabet: Alphabet) -> int:
    """Bits that tell all levels apart."""
    return (alphabet.levels - 1).bit_length()


def _steps(layer: QuantizedLayer) -> Tensor:
    """A step per neuron, (N, 1, ...)."""
    neurons, *others = layer.codes.shape
    return layer.alphabet.step.expand(neurons, *(1 for _ in others))


def _layer_header(layer: QuantizedLayer) -> LayerHeader:
    a, shape = layer.alphabet, tuple(layer.codes.shape)
    return LayerHeader(layer.name, layer.bits, a.low, a.high, a.offset, shape, layer.relative_error)


def _cut_layer(layer: QuantizedLayer, cut: Cut) -> QuantizedLayer:
    rows = list(cut.rows)
    alphabet = layer.alphabet.with_step(_steps(layer)[rows])
    return replace(layer, codes=layer.codes[rows], alphabet=alphabet)


def _narrow(network: nn.Module, cut: Cut) -> None:
    """Cut the classifier of ``network`` in place."""
    head = dict(network.named_modules()).get(cut.layer)
    if not isinstance(head, nn.Linear | nn.Conv2d) or getattr(head, "groups", 1) != 1:
        raise QuantizationError(f"cut: {cut.layer!r} is no Linear or ungrouped Conv2d; name the classifier")
    rows, last = list(cut.rows), len(head.weight) - 1
    if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) > last:
        raise QuantizationError(f"cut: rows of {cut.layer} must be distinct and in 0..{last}, got {rows}")
    head.weight = nn.Parameter(head.weight.detach()[rows])
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias.detach()[rows])
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(rows))


def _shape_like_the_file(network: nn.Module, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Repeat on a fresh network what fusion, bias correction and a cut did to its modules."""
    modules = dict(network.named_modules())
    for name in header.folded:
        if name not in modules:
            raise QuantizationError(f"the network has no {name}; {_OTHER_NETWORK}")
        network.set_submodule(name, nn.Identity())
    for name in tensors:
        layer = modules.get(name.removesuffix(".bias"))
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.detach().new_empty(len(layer.weight)))
    if header.cut is not None:
        _narrow(network, header.cut)


def _read_layer(entry: LayerHeader, tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    planes, step = (tensors.get(prefix + entry.name, torch.empty(0)) for prefix in (_CODES, _STEP))
    alphabet = Alphabet(step, entry.low, entry.high, entry.offset)
    count = math.prod(entry.shape)
    fits = planes.dtype == torch.uint8 and planes.shape == (_width(alphabet), -(-count // 8))
    codes = unpack_codes(planes, count, entry.low) if fits else torch.tensor([entry.high + 1])
    if int(codes.max()) > entry.high or tuple(step.shape) not in {(1,), entry.shape[:1]}:
        raise QuantizationError(f"layer {entry.name}: codes or steps are damaged; write the file again")
    neurons, *others = entry.shape
    alphabet = alphabet.with_step(step.expand(neurons).view(neurons, *(1 for _ in others)))
    codes = codes.view(entry.shape)
    return QuantizedLayer(entry.name, entry.bits, codes, alphabet, entry.relative_error, math.nan, math.nan)


def _check_match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    other = [
        f"{name} {_kind(found[name])} instead of {_kind(t)}"
        for name, t in expected.items()
        if name in found and _kind(found[name]) != _kind(t)
    ]
    missing, unknown = ([n for n in a if n not in b] for a, b in ((expected, found), (found, expected)))
    problems = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape or type", other))
        if names
    ]
    if problems:
        raise QuantizationError(f"tensors of another network: {'; '.join(problems)}; {_OTHER_NETWORK}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


@contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    """Open a safetensors file; the block may read it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise QuantizationError(
            f"{os.fspath(path)}: not a whole safetensors file ({reason}); name a file that save wrote"
        ) from error


def _header(path: PathLike, metadata: Mapping[str, str] | None) -> Header:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise QuantizationError(f"{os.fspath(path)}: holds no packed network; name a file that save wrote")
    try:
        content = json.loads(text)
        later = int(content["format"]) > FORMAT
        header = None if later else TypeAdapter(Header).validate_python(content)
    except (ValueError, TypeError, KeyError) as error:
        raise QuantizationError(f"{os.fspath(path)}: its header is damaged; write the file again") from error
    if header is None:
        raise QuantizationError(
            f"{os.fspath(path)}: format {content['format']}, written by laq {content.get('laq')}, while this "
            f"laq reads up to {FORMAT}; upgrade laq"
        )
    return header
