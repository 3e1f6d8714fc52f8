"""Quantized networks as ONNX files, with integer codes, that other runtimes run."""

import importlib
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laq.quantization.files.packing import PathLike, write_whole
from laq.quantization.recipe import QuantizationError, QuantizedLayer, QuantizedNetwork

# torch's default (20) is the last one whose DequantizeLinear takes neither INT4 nor INT16.
OPSET: Final = 21
_BITS: Final = (4, 8, 16)


class _Tools(NamedTuple):
    ir: Any
    passes: Any
    optimizer: Any


def export_onnx(path: PathLike, network: QuantizedNetwork | nn.Module, example: Tensor) -> int:
    """Write ``network`` as ONNX, input ``pixels`` and output ``logits``; returns the size in bytes.

    Quantized weights are INT4, INT8 or INT16, whatever holds the alphabet, and become floats by a
    DequantizeLinear with a scale per output channel; above 16 bits they are float32. In a mid-rise
    alphabet the integers are 2 c + 1, in half steps, which takes one bit more.

    Args:
        path: the file, written whole or not at all.
        network: in evaluation mode; a plain module is written in float32.
        example: an input of any batch size (b, ...); the file takes every batch size.

    Raises:
        QuantizationError: onnx or onnxscript is missing, or the network cannot be exported.
    """
    tools = _tools()
    result = network if isinstance(network, QuantizedNetwork) else None
    module = result.network if result else network
    assert isinstance(module, nn.Module)
    model = _trace(module, example)
    for layer in result.layers if result else ():
        _insert_codes(model.graph, layer, tools.ir)
    tools.optimizer.optimize_ir(model, should_fold=_may_fold)
    tools.passes.ClearMetadataAndDocStringPass()(model)
    content: bytes = tools.ir.to_proto(model).SerializeToString()
    write_whole(path, content)
    return len(content)


def _tools() -> _Tools:
    names = ("onnx_ir", "onnx_ir.passes.common", "onnxscript.optimizer")
    try:
        return _Tools(*(importlib.import_module(name) for name in names))
    except ImportError as error:
        raise QuantizationError("ONNX export needs onnx and onnxscript: `pip install 'laq[onnx]'`") from error


def _trace(module: nn.Module, example: Tensor) -> Any:
    """The model as torch writes it, its weights under their names: optimized later."""
    if module.training:
        raise QuantizationError("ONNX export: the network is in training mode; call its eval() first")
    try:
        program = torch.onnx.export(
            module,
            (torch.cat([example[:1]] * 2),),  # a batch of one would be taken as fixed
            input_names=["pixels"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
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


def _insert_codes(graph: Any, layer: QuantizedLayer, ir: Any) -> None:
    """Put the layer's codes and a DequantizeLinear in place of its float weights."""
    weights = graph.initializers.get(f"{layer.name}.weight")
    if weights is None:
        raise QuantizationError(f"ONNX export: layer {layer.name} has no weights in torch's export")
    halves = 1 if layer.alphabet.offset == 0 else 2
    bits = _integer_bits(layer, halves)
    if bits is None:
        return
    integers = (halves * layer.codes.cpu() + (halves - 1)).numpy().astype(f"int{max(bits, 8)}")
    inputs = [
        _initializer(graph, ir.tensor(integers, ir.DataType[f"INT{bits}"], f"{layer.name}.codes"), ir),
        _initializer(graph, ir.tensor(_scale(layer, halves), name=f"{layer.name}.step"), ir),
    ]
    floats = ir.Value(name=f"{layer.name}.decoded", shape=weights.shape, type=weights.type)
    graph.insert_before(graph[0], ir.node("DequantizeLinear", inputs, {"axis": 0}, outputs=[floats]))
    weights.replace_all_uses_with(floats)
    del graph.initializers[weights.name]


def _integer_bits(layer: QuantizedLayer, halves: int) -> int | None:
    """Of the smallest ONNX type that holds the alphabet."""
    low, high = (halves * code + (halves - 1) for code in (layer.alphabet.low, layer.alphabet.high))
    return next((bits for bits in _BITS if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)), None)


def _scale(layer: QuantizedLayer, halves: int) -> NDArray[np.float32]:
    """A step per neuron (N,), divided exactly."""
    neurons = len(layer.codes)
    steps: Tensor = layer.alphabet.step.flatten().expand(neurons).cpu() / halves
    return np.ascontiguousarray(steps.numpy())


def _initializer(graph: Any, tensor: Any, ir: Any) -> Any:
    value = ir.Value(
        name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
