"""Values in the predecessor's logs as Python writes them, or NumPy 2: ``[np.str_('apple'), np.int64(3)]``."""

import ast
from typing import Any, Final

_NAMES: Final = {"nan": float("nan"), "inf": float("inf"), "True_": True, "False_": False}


class _Plain(ast.NodeTransformer):
    """Puts the value in place of what NumPy 2 writes around it."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        return node.args[0] if _is_numpy(node.func) and len(node.args) == 1 else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Constant(_NAMES[node.attr]) if _is_numpy(node) and node.attr in _NAMES else node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node


def _is_numpy(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np"


def literal(text: str) -> Any:
    """The value that a text stands for.

    Raises:
        ValueError: it stands for none.
    """
    try:
        return ast.literal_eval(_Plain().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{error}") from error
