"""How charts show a method: its colour and its shape, which are those of its entry in the registry."""

from collections.abc import Iterable
from typing import Any, Final

import altair as alt

from laq.quantization.methods.registry import METHODS, all_names, label_of, look_of, sort_methods

# Where the rows are not known yet, as in a template.
ALL: Final = tuple(all_names())


def colour(methods: Iterable[str] = ALL) -> alt.Color:
    """The colours of ``methods``, with a legend."""
    names = [name for name in sort_methods(methods) if name != "float"]
    scale = alt.Scale(domain=names, range=[look_of(name).colour for name in names])
    return alt.Color("method:N", scale=scale, legend=_legend(names))


def shape(methods: Iterable[str] = ALL) -> alt.Shape:
    """The shapes of ``methods``; their legend is that of the colours."""
    names = [name for name in sort_methods(methods) if name != "float"]
    scale = alt.Scale(domain=names, range=[look_of(name).shape for name in names])
    return alt.Shape("method:N", scale=scale, legend=_legend(names))


def _legend(names: list[str]) -> Any:
    labels = {name: label_of(name) for name in names}
    # A template's has the methods alone: tuned networks have their colours, and another shape.
    shown = list(METHODS) if tuple(names) == ALL else names
    return alt.Legend(title=None, values=shown, labelExpr=f"{labels}[datum.value] || datum.value")


def told_bits(bits: str) -> str:
    """The bits as titles tell them; those that differ from layer to layer are no number."""
    return f"{bits} bits" if bits.isdecimal() else bits
