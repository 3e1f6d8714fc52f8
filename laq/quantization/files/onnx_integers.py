"""What integer runtimes want of an ONNX graph, beside integers at its points: biases in INT32, no padding."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laq.quantization.files.onnx_nodes import Nodes

_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm")
_MOST: Final = 2**31 - 1
_ON_GRID: Final = ("QuantizeLinear", "DequantizeLinear")


def merge_pads(graph: Any, ir: Any) -> None:
    """Let convolutions pad themselves where zeros are padded before them, which runtimes would do on floats.

    That is the same: zero is on every grid.
    """
    for node in list(graph):
        if node.op_type != "Conv":
            continue
        between = list(_on_the_way(node.inputs[0]))
        pad = between[-1].producer()
        padding = _zeros_padded(pad)
        if padding is None or any(len(value.uses()) > 1 for value in between):
            continue
        own = node.attributes.get_ints("pads", [0] * len(padding))
        total = [a + b for a, b in zip(own, padding, strict=True)]
        node.attributes["pads"] = ir.AttrInt64s("pads", total)
        for value in between:
            value.shape = pad.inputs[0].shape
        between[-1].replace_all_uses_with(pad.inputs[0])
        graph.remove(pad, safe=True)


def _on_the_way(value: Any) -> Iterator[Any]:
    """The value and those that are the same but for rounding, back to what computes them."""
    yield value
    while (node := value.producer()) is not None and node.op_type in _ON_GRID:
        value = node.inputs[0]
        yield value


def _zeros_padded(node: Any) -> list[int] | None:
    """The zeros that a Pad puts before and behind each side of images; None if it does something else."""
    if node is None or node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return None
    given = [value for value in node.inputs[1:] if value is not None]
    if any(value.const_value is None for value in given) or len(given) > 2:
        return None
    widths, *filled = (value.const_value.numpy() for value in given)
    before, behind = widths.reshape(2, -1).tolist()
    images = not any(before[:2] + behind[:2]) and min(before + behind) >= 0
    return [*before[2:], *behind[2:]] if images and not any(map(np.any, filled)) else None


def round_biases(graph: Any, ir: Any) -> None:
    """Round each bias to whole multiples of its products' step: that of the inputs times that of the weights.

    A bias whose multiple no INT32 holds stays a float, and its operation is computed on floats.
    """
    for node in list(_products(graph)):
        inputs, weights, bias = node.inputs[:3]
        steps = _step(inputs) * _step(weights)
        values = bias.const_value.numpy()
        codes = np.rint(values / steps.astype(np.float64))
        if np.abs(codes).max(initial=0) > _MOST:
            continue
        scale = np.broadcast_to(steps, values.shape).astype(np.float32)
        # Of a layer that is called twice, each call has a bias of its own: the inputs' steps differ.
        name = bias.name if len(bias.uses()) == 1 else f"{node.outputs[0].name}.bias"
        nodes = Nodes(graph, name, ir)
        constants = [
            nodes.constant("codes", codes.astype(np.int32)),
            nodes.constant("step", np.ascontiguousarray(scale)),
        ]
        output = nodes.add("DequantizeLinear", constants, bias.dtype, {"axis": 0})
        output.shape = bias.shape
        graph.insert_before(node, nodes.made)
        node.replace_input_with(2, output)
        if not bias.uses():
            del graph.initializers[bias.name]


def _products(graph: Any) -> Iterator[Any]:
    """Operations of activations and weights that are both integers, and of a bias that is a constant."""
    for node in graph:
        whole = node.op_type in _PRODUCTS and len(node.inputs) > 2 and node.inputs[2] is not None
        if whole and node.inputs[2].const_value is not None and all(map(_is_decoded, node.inputs[:2])):
            yield node


def _is_decoded(value: Any) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _step(value: Any) -> NDArray[np.float32]:
    """The step of what a DequantizeLinear decodes: one, or one for each output."""
    step: NDArray[np.float32] = value.producer().inputs[1].const_value.numpy()
    return step
