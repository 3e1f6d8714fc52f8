"""Quantized networks as ONNX files, with integer codes, that other runtimes run.

Quantized weights are INT4, INT8 or INT16, whatever holds the alphabet, and become floats of the network's
type by a DequantizeLinear with a scale per output channel; above 16 bits they are floats. In a mid-rise
alphabet the integers are 2 c + 1, in half steps, which takes one bit more. Not every runtime computes in
every type: onnxruntime's CPU has no convolutions in float64 and in bfloat16.

Where activations are rounded, a QuantizeLinear and a DequantizeLinear stand at each point, and biases are
INT32 in the step of their products: onnxruntime makes integer operators of what is between. On x86
processors without VNNI these add pairs of products in 16 bits, in which 8-bit weights can overflow.
"""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Size, Tensor, nn

from laq.quantization.activations.rounding import in_files
from laq.quantization.execution.points import points_of
from laq.quantization.execution.unwrap import unwrapped
from laq.quantization.files.codes import pack_steps
from laq.quantization.files.onnx_integers import merge_pads, round_biases
from laq.quantization.files.onnx_nodes import Nodes
from laq.quantization.files.packing import PathLike, write_whole
from laq.quantization.options import AlphabetKind
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork

# torch's default (20) is the last one whose DequantizeLinear takes neither INT4 nor INT16.
OPSET: Final = 21
OPSET_OF_BFLOAT16: Final = 22  # the first one whose Conv takes it
_BITS: Final = (4, 8, 16)
_LEAST: Final = {"int4": 4, "int8": 8}  # bits of an integer in a file, by its storage
_LARGEST: Final = 64  # of which two times 255 are in 16 bits
_MOST_BITS: Final = 7  # of weights that are no larger


Storage = Literal["auto", "int4", "int8"]


class _Tools(NamedTuple):
    ir: Any
    passes: Any
    optimizer: Any


def export_onnx(
    path: PathLike,
    network: QuantizedNetwork | nn.Module,
    example: Tensor | tuple[Tensor, ...],
    storage: Storage = "auto",
    *,
    vnni: bool = False,
) -> int:
    """Write ``network`` as ONNX, input ``pixels`` and output ``logits``; returns the size in bytes.

    Args:
        path: the file, written whole or not at all.
        network: in evaluation mode; a plain module is written in its own type.
        example: an input of any batch size (b, ...); the file takes every batch size. Several inputs are
            a tuple, and have the names of the forward's parameters.
        storage: of codes with 4 bits and fewer: ``int4`` for a small file, ``int8`` for the integer
            operators of runtimes, which take no other; ``auto`` is ``int8`` where activations are rounded.
        vnni: whether the file is for processors that add products in 32 bits: x86 with VNNI, ARM.

    Raises:
        QuantizationError: onnx or onnxscript is missing, or the network cannot be exported; activations are
            rounded, ``vnni`` is false and weights have more than 7 bits.

    Examples:
        >>> import tempfile, onnxruntime, torch
        >>> from laq.quantization import Recipe, export_onnx, quantize
        >>> images = torch.rand(32, 3, 8, 8)
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
        >>> result = quantize(torch.nn.Sequential(*layers), images, Recipe(bits=7, activations=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_onnx(f"{folder}/small.onnx", result, images[:2])
        ...     session = onnxruntime.InferenceSession(f"{folder}/small.onnx")
        >>> session.run(["logits"], {"pixels": images.numpy()})[0].shape
        (32, 10)
    """
    tools = onnx_tools()
    result = network if isinstance(network, QuantizedNetwork) else None
    module = result.network if result else network
    assert isinstance(module, nn.Module)
    module = unwrapped(module)
    rounded = any(point.grid for point in points_of(module).values())
    layers = result.layers if result else ()
    if rounded and not vnni:
        _check_overflow(layers)
    least = _LEAST[storage_of(storage, rounded=rounded)]
    model = _trace(module, example if isinstance(example, tuple) else (example,))
    for layer in layers:
        _insert_codes(model.graph, layer, _names(module, layer.parameter), (tools.ir, least))
    content = _written(model, tools, rounded=rounded)
    write_whole(path, content)
    return len(content)


def _written(model: Any, tools: _Tools, *, rounded: bool) -> bytes:
    """The bytes of the model, with what does not depend on the inputs computed beforehand."""
    tools.optimizer.optimize_ir(model, should_fold=_may_fold)
    tools.passes.ClearMetadataAndDocStringPass()(model)
    if rounded:
        merge_pads(model.graph, tools.ir)
        round_biases(model.graph, tools.ir)
    content: bytes = tools.ir.to_proto(model).SerializeToString()
    return content


def storage_of(storage: Storage, *, rounded: bool) -> Storage:
    """How codes of few bits are stored: ``auto`` is ``int8`` where activations are ``rounded``."""
    return ("int8" if rounded else "int4") if storage == "auto" else storage


def multiplied_in_float(result: QuantizedNetwork, storage: Storage) -> list[str]:
    """The layers whose codes are not INT8 in a file of this storage: runtimes make floats of these."""
    least = _LEAST[storage_of(storage, rounded=result.recipe.activations is not None)]
    return [layer.name for layer in result.layers if _integer_bits(layer, least) != _LEAST["int8"]]


def onnx_tools() -> _Tools:
    """The packages that write ONNX files.

    Raises:
        QuantizationError: one of them is missing.
    """
    names = ("onnx_ir", "onnx_ir.passes.common", "onnxscript.optimizer")
    try:
        return _Tools(*(importlib.import_module(name) for name in names))
    except ImportError as error:
        raise QuantizationError("ONNX export needs onnx and onnxscript: `pip install 'laq[onnx]'`") from error


def _trace(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """The model as torch writes it, its weights under their names: optimized later."""
    if module.training:
        raise QuantizationError("ONNX export: the network is in training mode; call its eval() first")
    in_bfloat16 = any(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
    names = list(inspect.signature(module.forward).parameters)
    try:
        with in_files():
            program = torch.onnx.export(
                module,
                tuple(torch.cat([t[:1]] * 2) for t in example),  # a batch of one would be taken as fixed
                input_names=["pixels"] if len(example) == 1 else names[: len(example)],
                output_names=["logits"],
                opset_version=OPSET_OF_BFLOAT16 if in_bfloat16 else OPSET,
                dynamo=True,
                dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in example),
                verbose=False,
                optimize=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]  # torch wraps it in advice
        raise QuantizationError(f"ONNX export: torch cannot export the network ({reason})") from error
    assert program is not None
    return program.model


def _may_fold(node: Any) -> bool | None:
    """Not the codes into floats, which would undo the work; of the rest the optimizer decides."""
    return False if node.op_type == "DequantizeLinear" else None


def _names(module: nn.Module, parameter: str) -> list[str]:
    """All names of a parameter, of which torch's export takes one."""
    tensor = module.get_parameter(parameter)
    return [name for name, other in module.named_parameters(remove_duplicate=False) if other is tensor]


def most_bits(alphabet: AlphabetKind) -> int:
    """The most bits of weights with which sums of products overflow on no processor."""
    return _MOST_BITS - (alphabet == "midrise")  # whose integers count half steps


def _check_overflow(layers: Sequence[QuantizedLayer]) -> None:
    for layer in layers:
        if max(map(abs, _integers(layer))) > _LARGEST:
            raise QuantizationError(
                f"ONNX export: layer {layer.name} has {layer.bits} bits, with which sums of products "
                "overflow 16 bits on x86 processors without VNNI; quantize with at most "
                f"{_MOST_BITS + 1 - _halves(layer)} bits, or give vnni=True if the file is for others"
            )


def _integers(layer: QuantizedLayer) -> tuple[int, int]:
    """The least and the largest integer that a file may hold for a layer's codes."""
    halves = _halves(layer)
    return halves * layer.alphabet.low + (halves - 1), halves * layer.alphabet.high + (halves - 1)


def _halves(layer: QuantizedLayer) -> int:
    """How many of the steps that integers count make a step of the alphabet."""
    return 1 if layer.alphabet.offset == 0 else 2


def _insert_codes(graph: Any, layer: QuantizedLayer, names: list[str], how: tuple[Any, int]) -> None:
    """Put the layer's codes, and nodes that make floats of them, in place of its float weights."""
    ir, least = how
    weights = next((graph.initializers[name] for name in names if name in graph.initializers), None)
    if weights is None:
        raise QuantizationError(f"ONNX export: layer {layer.name} has no weights in torch's export")
    halves, bits = _halves(layer), _integer_bits(layer, least)
    if bits is None:
        return
    integers = (halves * layer.codes.cpu() + (halves - 1)).numpy().astype(f"int{max(bits, 8)}")
    steps = pack_steps(layer.alphabet.step, layer.codes.shape)
    # A division by 2 is exact.
    steps = (steps if steps.dtype == torch.float64 else steps.float()) / halves
    nodes = Nodes(graph, layer.name, ir)
    decode = _decode_along_axis if _axis(steps, layer.codes.shape) is not None else _decode_in_blocks
    floats = decode(nodes, integers, ir.DataType[f"INT{bits}"], steps)
    if floats.dtype != weights.dtype:
        floats = nodes.add("Cast", [floats], weights.dtype, {"to": weights.dtype})
    floats.shape = weights.shape
    graph.insert_before(graph[0], nodes.made)
    weights.replace_all_uses_with(floats)
    del graph.initializers[weights.name]


def _axis(steps: Tensor, shape: Size) -> int | None:
    """The one dimension that steps in float32 run along; 0 if there is one step for all."""
    if steps.dtype == torch.float64:
        return None  # no scale of a DequantizeLinear
    sizes = steps.shape if steps.ndim == len(shape) else (len(steps),)
    along = [d for d, size in enumerate(sizes) if size > 1] or [0]
    return along[0] if len(along) == 1 and sizes[along[0]] in {1, shape[along[0]]} else None


def _decode_along_axis(nodes: Nodes, integers: NDArray[Any], dtype: Any, steps: Tensor) -> Any:
    """Codes to float32 with a scale for each place along one dimension."""
    axis = _axis(steps, Size(integers.shape))
    assert axis is not None
    scale = steps.flatten().expand(integers.shape[axis])
    inputs = [
        nodes.constant("codes", integers, dtype),
        nodes.constant("step", np.ascontiguousarray(scale.numpy())),
    ]
    if dtype == nodes.ir.DataType.INT8:
        # It is 0 anyway, but onnxruntime computes a Gemm in integers only where it stands.
        inputs.append(nodes.constant("zero", np.zeros(len(scale), np.int8), dtype))
    return nodes.add("DequantizeLinear", inputs, nodes.ir.DataType.FLOAT, {"axis": axis})


def _decode_in_blocks(nodes: Nodes, integers: NDArray[Any], dtype: Any, steps: Tensor) -> Any:
    """Codes to floats, then times steps, each of which stands for a block of them, as ``pack_steps`` says."""
    sizes = [*steps.shape, *(1 for _ in integers.shape[steps.ndim :])]
    blocks = [part for k, n in zip(sizes, integers.shape, strict=True) for part in (k, n // k)]
    alone = [part for k in sizes for part in (k, 1)]
    one = nodes.constant("one", np.array(1, np.float32))
    codes = nodes.constant("codes", integers.reshape(blocks), dtype)
    floats = nodes.add("DequantizeLinear", [codes, one], nodes.ir.DataType.FLOAT)
    step = nodes.constant("step", steps.reshape(alone).numpy())
    if step.dtype != floats.dtype:
        floats = nodes.add("Cast", [floats], step.dtype, {"to": step.dtype})
    shape = nodes.constant("shape", np.array(integers.shape, np.int64))
    return nodes.add("Reshape", [nodes.add("Mul", [floats, step], step.dtype), shape], step.dtype)


def _integer_bits(layer: QuantizedLayer, least: int) -> int | None:
    """Of the smallest ONNX type of at ``least`` so many bits that holds the alphabet."""
    low, high = _integers(layer)
    return next(
        (bits for bits in _BITS if bits >= least and -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)),
        None,
    )
