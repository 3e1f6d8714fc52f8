"""Operations that are quantized: what multiplies inputs with a weight that is a parameter.

Each is one file that says which functions of torch it stands for, what its weights and its inputs are as
matrices, and how results are written back; and one entry in ``OPERATIONS``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from laq.quantization.operations.base import Operation
from laq.quantization.operations.convolution import Convolution
from laq.quantization.operations.linear import Linear
from laq.quantization.operations.transposed import TransposedConvolution

__all__ = ["OPERATIONS", "Operation", "arguments_of", "operation_of"]

OPERATIONS: Final[tuple[type[Operation], ...]] = (Linear, Convolution, TransposedConvolution)
_BY_FUNCTION: Final = {function: kind for kind in OPERATIONS for function in kind.functions}


def operation_of(function: Any) -> type[Operation] | None:
    """The operation that a function of torch computes, if that is one of ``OPERATIONS``."""
    return _BY_FUNCTION.get(function) if isinstance(function, Callable) else None  # type: ignore[arg-type]


def arguments_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name; those left out have the values that torch gives them."""
    kind = _BY_FUNCTION[function]
    return {**kind.defaults, **dict(zip(kind.arguments, args, strict=False)), **kwargs}
