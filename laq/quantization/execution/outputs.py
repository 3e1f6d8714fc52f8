"""Which of a network's outputs are the logits."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from laq.quantization.recipe import QuantizationError

Output = int | str | None


def logits_of(outputs: Any, output: Output = None) -> Tensor:
    """The logits (n, classes) among what a network returns.

    A tensor is the logits itself. Of a mapping, or an object with named outputs, the logits are the entry
    ``logits``, else the first entry; of a tuple or a list they are the first entry. ``output`` names
    another entry, or gives its index; what stands there is looked into in the same way.

    Raises:
        QuantizationError: there is no such entry, or it holds no tensor.
    """
    if isinstance(outputs, Tensor) and output is None:
        return outputs
    entries = _entries(outputs)
    if output is None and entries:
        return logits_of(entries.get("logits", next(iter(entries.values()))))
    if output in entries:
        return logits_of(entries[output])
    found = ", ".join(map(repr, entries)) or f"a {type(outputs).__name__}"
    asked = "no logits among the network's outputs" if output is None else f"output: found {output!r}"
    raise QuantizationError(f"{asked}; the network returns {found}; name one of its entries by output=")


def _entries(outputs: Any) -> dict[int | str, Any]:
    """What the outputs hold, by name or index."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if is_dataclass(outputs):
        named = ((f.name, getattr(outputs, f.name)) for f in fields(outputs))
        return {name: value for name, value in named if value is not None}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    is_sequence = isinstance(outputs, Sequence) and not isinstance(outputs, str)
    return dict(enumerate(outputs)) if is_sequence else {}
