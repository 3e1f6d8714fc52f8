"""Post-training quantization of Conv2d and Linear layers: GPFQ and its kin, GPTQ, Qronos, rounding.

Free of everything else in ``laq``: networks and tensors in, networks and codes out::

    from laq.quantization import Recipe, quantize

    result = quantize(network, images, Recipe(bits=3))
    result.network, result.layers[0].relative_error

Names are imported when they are first used (PEP 562): most need torch and numba, which take seconds, while
``laq.quantization.options`` and the registry of methods need neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from laq.quantization.alphabet import Alphabet, AlphabetSpec, make_alphabet
    from laq.quantization.bits.allocate import choose_activations, choose_bits, choose_bits_each
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
    from laq.quantization.methods.registry import METHODS, Method, register
    from laq.quantization.options import QuantizationError
    from laq.quantization.recipe import QuantizedLayer, QuantizedNetwork, Recipe
    from laq.quantization.tuning.settings import Tuning

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
    "Tuning",
    "choose_activations",
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
    "register",
    "save",
]

_MODULES: Final = {
    "alphabet": ("Alphabet", "AlphabetSpec", "make_alphabet"),
    "bits.allocate": ("choose_activations", "choose_bits", "choose_bits_each"),
    "bits.spec": ("parse_bits",),
    "engine": ("layer_names", "quantize", "quantize_each"),
    "files.header": ("Cut",),
    "files.onnx": ("export_onnx",),
    "files.packing": (
        "float32_bytes", "keep_rows", "load", "load_quantized", "read_metadata", "save",
    ),
    "methods.registry": ("METHODS", "Method", "register"),
    "options": ("QuantizationError",),
    "recipe": ("QuantizedLayer", "QuantizedNetwork", "Recipe"),
    "tuning.settings": ("Tuning",),
}  # fmt: skip
_WHERE: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
