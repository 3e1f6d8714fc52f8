"""Post-training quantization of Conv2d and Linear layers: round-to-nearest and GPFQ.

Free of everything else in ``laq``: networks and tensors in, networks and codes out::

    from laq.quantization import Recipe, quantize

    result = quantize(network, images, Recipe(bits=3))
    result.network, result.layers[0].relative_error
"""

from laq.quantization.alphabet import Alphabet, make_alphabet
from laq.quantization.gpfq import gpfq
from laq.quantization.lockstep import (
    QuantizationError,
    QuantizedLayer,
    QuantizedNetwork,
    Recipe,
    layer_names,
    quantize,
)
from laq.quantization.storage import restore, to_tensors

__all__ = [
    "Alphabet",
    "QuantizationError",
    "QuantizedLayer",
    "QuantizedNetwork",
    "Recipe",
    "gpfq",
    "layer_names",
    "make_alphabet",
    "quantize",
    "restore",
    "to_tensors",
]
