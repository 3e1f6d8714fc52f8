"""Networks that a Python function builds: one of a package, or of a file beside the project."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from typing import Any

from torch import nn

from laq.architectures.hub_errors import first_line
from laq.architectures.registry import NetworkRequest, Usual, file_of
from laq.errors import LaqError
from laq.quantization.options import nearest_name


def make(request: NetworkRequest) -> nn.Module:
    """Call the function with ``arguments``, and with ``pretrained`` if it takes that.

    Raises:
        LaqError: there is no such function, or it raises, or it returns something else than a module.
    """
    function = _function(request)
    asked = dict(request.arguments)
    if "pretrained" in _parameters(function):
        asked.setdefault("pretrained", request.pretrained)
    try:
        network = function(**asked)
    except Exception as error:  # whatever the function raises
        raise LaqError(
            f"{request.architecture} raises {type(error).__name__}: {first_line(error)}; "
            "it is called with network.arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise LaqError(f"{request.architecture} returns {type(network).__name__}; must be a torch.nn.Module")
    return network


def usual(request: NetworkRequest) -> Usual:  # noqa: ARG001 (the registry's call)
    """Nothing: a function does not tell."""
    return Usual()


def _function(request: NetworkRequest) -> Callable[..., Any]:
    where, _, name = request.name.rpartition(":")
    module = _module(request, where)
    function = getattr(module, name, None)
    if not callable(function):
        hint = nearest_name(name, [key for key, value in vars(module).items() if callable(value)])
        raise LaqError(f"network.architecture: {where} has no function {name!r}{hint}")
    return function  # type: ignore[no-any-return]


def _module(request: NetworkRequest, where: str) -> Any:
    file = file_of(request.architecture)
    path = None if file is None else request.file(where)
    try:
        if path is None:
            return importlib.import_module(where)
        name = f"laq_network_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path, loader=_SourceAlone(name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where classes of the file are looked up, as dataclasses do
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the module raises
        raise LaqError(
            f"network.architecture: {where} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module


class _SourceAlone(SourceFileLoader):
    """Imports a file and writes no bytecode beside it: it may lie among results, which are hashed."""

    def set_data(self, *_: object, **__: object) -> None:
        """Write nothing."""


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of some that are no Python
        return []
