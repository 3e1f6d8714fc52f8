"""New nodes of an ONNX graph."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


class Nodes:
    """Nodes for one layer or bias and the constants that they take, which go to the graph at once."""

    def __init__(self, graph: Any, name: str, ir: Any) -> None:
        self.graph, self.name, self.ir = graph, name, ir
        self.made: list[Any] = []

    def constant(self, name: str, content: NDArray[Any], dtype: Any = None) -> Any:
        """A new constant, of the array's own type if ``dtype`` is left out."""
        tensor = self.ir.tensor(content, dtype, f"{self.name}.{name}")
        type_ = self.ir.TensorType(tensor.dtype)
        value = self.ir.Value(name=tensor.name, shape=tensor.shape, type=type_, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def add(
        self, operator: str, inputs: list[Any], dtype: Any, attributes: Mapping[str, Any] | None = None
    ) -> Any:
        """The output, of type ``dtype``, of a new node."""
        name = f"{self.name}.{operator.lower()}"
        output = self.ir.Value(name=name, type=self.ir.TensorType(dtype))
        self.made.append(self.ir.node(operator, inputs, attributes, outputs=[output]))
        return output
