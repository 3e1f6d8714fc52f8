"""What integer runtimes want of an ONNX graph, beside integers at its points: biases in INT32."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laq.quantization.files.onnx_nodes import Nodes

_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm")
_MOST: Final = 2**31 - 1


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
        nodes = Nodes(graph, bias.name, ir)
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
