"""Exported programs, which ``torch.export.save`` writes as files ``.pt2``.

A program is code, as a Python function is: one from elsewhere may do anything when it runs. What it holds of
pickles builds tensors alone, or the file is refused.
"""

import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import fx, nn

from laq.architectures.hub_errors import first_line
from laq.architectures.registry import NetworkRequest, Usual
from laq.errors import LaqError

_WEIGHTS_ALONE: Final = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# What holds objects of any class, which torch.export unpickles by other means than torch.load.
_OBJECTS: Final = ("custom_obj_", "opaque_obj_")


def make(request: NetworkRequest) -> nn.Module:
    """Load the program as a module whose last matrix product, where it is the output, is a ``nn.Linear``.

    Raises:
        LaqError: the file is missing, damaged, of another torch, or holds more than a program and tensors.
    """
    path = request.file(request.name)
    try:
        _refuse_objects(path)
        with _weights_alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            module = program.module(check_guards=False)
    except LaqError:
        raise
    except Exception as error:  # torch.export raises whatever it stumbles upon
        raise LaqError(f"{request.name}: {_reason(path, error)}") from error
    # Without the hooks and the refusal of train() and eval() that an exported module has.
    network = fx.GraphModule(module, module.graph)
    _make_head(network)
    return network


def usual(request: NetworkRequest) -> Usual:  # noqa: ARG001 (the registry's call)
    """Nothing: a program does not tell."""
    return Usual()


@contextmanager
def _weights_alone() -> Iterator[None]:
    """Inside the block torch.load builds tensors alone, also where its caller asks for more."""
    before = os.environ.get(_WEIGHTS_ALONE)
    os.environ[_WEIGHTS_ALONE] = "1"
    try:
        yield
    finally:
        del os.environ[_WEIGHTS_ALONE]
        if before is not None:
            os.environ[_WEIGHTS_ALONE] = before


def _refuse_objects(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.rpartition("/")[2].startswith(_OBJECTS):
                raise LaqError(
                    f"{path.name}: holds objects beside tensors, which may run code; nothing was run"
                )


def _reason(path: Path, error: Exception) -> str:
    """Why a program cannot be loaded; a file of another torch says of which."""
    if "weights_only" in str(error).lower() or "Weights only load" in str(error):
        return "holds pickles of more than tensors, which may run code; nothing was run"
    other = _torch_of(path)
    if other and other.partition("+")[0] != torch.__version__.partition("+")[0]:
        return (
            f"was exported by torch {other}, this is torch {torch.__version__}, which cannot read it "
            f"({first_line(error)}); export it again with this one"
        )
    return f"not a whole exported program ({first_line(error)}); write it with torch.export.save"


def _torch_of(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            (name, *_) = [n for n in archive.namelist() if "models/" in n and n.endswith(".json")]
            return str(json.loads(archive.read(name))["torch_version"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return ""


def _make_head(network: fx.GraphModule) -> None:
    """Make a module of the matrix product that ends the program: heads are modules elsewhere."""
    nodes = list(network.graph.nodes)
    last = nodes[-1].args[0]
    while isinstance(last, list | tuple) and len(last) == 1:
        last = last[0]
    if not (isinstance(last, fx.Node) and last.target is torch.ops.aten.linear.default):
        return
    _, weight, *bias = last.args
    names = [str(node.target) for node in (weight, *bias) if isinstance(node, fx.Node)]
    place = names[0].rpartition(".")[0]
    if not place or names not in ([f"{place}.weight"], [f"{place}.weight", f"{place}.bias"]):
        return
    values = [network.get_parameter(name) for name in names]
    outputs, inputs = values[0].shape
    head = nn.Linear(inputs, outputs, bias=len(values) > 1)
    for name, value in zip(("weight", "bias"), values, strict=False):
        setattr(head, name, value)
    with network.graph.inserting_before(last):
        call = network.graph.call_module(place, (last.args[0],))
    network.set_submodule(place, head)
    last.replace_all_uses_with(call)
    network.graph.erase_node(last)
    network.graph.eliminate_dead_code()
    network.recompile()
