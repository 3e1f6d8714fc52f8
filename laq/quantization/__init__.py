"""Post-training quantization of Conv2d and Linear layers: GPFQ and its kin, GPTQ, Qronos, rounding.

Free of everything else in ``laq``: networks and tensors in, networks and codes out::

    from laq.quantization import Recipe, quantize

    result = quantize(network, images, Recipe(bits=3))
    result.network, result.layers[0].relative_error
"""

from laq.quantization.alphabet import Alphabet, AlphabetSpec, make_alphabet
from laq.quantization.bits.allocate import choose_bits, choose_bits_each
from laq.quantization.bits.spec import parse_bits
from laq.quantization.engine import layer_names, quantize, quantize_each
from laq.quantization.files.header import Cut
from laq.quantization.files.onnx import export_onnx
from laq.quantization.files.packing import (
    float32_bytes,
    keep_rows,
    load,
    load_quantized,
    read_metadata,
    save,
)
from laq.quantization.recipe import (
    METHODS,
    Method,
    QuantizationError,
    QuantizedLayer,
    QuantizedNetwork,
    Recipe,
)

__all__ = [
    "METHODS",
    "Alphabet",
    "AlphabetSpec",
    "Cut",
    "Method",
    "QuantizationError",
    "QuantizedLayer",
    "QuantizedNetwork",
    "Recipe",
    "choose_bits",
    "choose_bits_each",
    "export_onnx",
    "float32_bytes",
    "keep_rows",
    "layer_names",
    "load",
    "load_quantized",
    "make_alphabet",
    "parse_bits",
    "quantize",
    "quantize_each",
    "read_metadata",
    "save",
]
