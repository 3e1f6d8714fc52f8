"""Networks out of the wrappers that compile them or spread them over devices."""

import copy

import torch
from torch import nn

from laq.quantization.options import QuantizationError


def unwrapped(network: nn.Module) -> nn.Module:
    """``network`` without the wrappers of torch.compile, DataParallel and DistributedDataParallel.

    They add to the names of its parameters. Where such wrappers are further inside, it is a copy; else it
    is the module that was wrapped, or ``network`` itself.

    Raises:
        QuantizationError: it is no module, or a scripted one, which hides its operations.
    """
    if not isinstance(network, nn.Module):
        raise QuantizationError(f"network: found {network!r:.80}; give a torch.nn.Module")
    network = _inner(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise QuantizationError(
            "network: found a ScriptModule, which hides its operations; give the module that it was made of"
        )
    if all(_inner(module) is module for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    _unwrap_children(network)
    return network


def _inner(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif "_orig_mod" in dict(module.named_children()):  # as torch.compile names it
            module = module.get_submodule("_orig_mod")
        else:
            return module


def _unwrap_children(module: nn.Module) -> None:
    for name, child in list(module._modules.items()):  # noqa: SLF001 (named_children leaves out repetitions)
        if child is not None:
            setattr(module, name, _inner(child))
            _unwrap_children(_inner(child))
