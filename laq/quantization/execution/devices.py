"""Where networks are quantized: on the CPU, or on a GPU where there is one and the work is worth it."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from laq.quantization.calibration.batch import Batch
from laq.quantization.calibration.trial import device_of
from laq.quantization.options import DEVICE, NO_GPU, DeviceChoice, QuantizationError, check
from laq.quantization.recipe import QuantizedNetwork

# Work from which ``auto`` takes a GPU: the network's parameters times the numbers that its images hold.
# Not yet measured on a GPU. It lies between a ResNet-20 with 64 pictures of 32 pixels (5e10), which took 16
# cores less time than an H100 without kernels of its own, and a ResNet-18 with 64 of 112 pixels (3e13).
_WORTH_A_GPU: Final = 1e12
_CPU: Final = torch.device("cpu")

Run = Callable[[nn.Module, Iterator[Batch]], list[QuantizedNetwork]]


def check_device(asked: DeviceChoice | None) -> None:
    """See that a device may be asked for, and that it is here.

    Raises:
        QuantizationError: it is no such word, or ``cuda`` where torch sees no GPU.
    """
    if asked is not None and check("device", asked, DEVICE) == "cuda" and not torch.cuda.is_available():
        raise QuantizationError(NO_GPU)


def chosen_device(asked: DeviceChoice | None, network: nn.Module, batches: Sequence[Batch]) -> torch.device:
    """The device to work on; None asks for the network's own, and ``auto`` goes by the size of the work."""
    home = device_of(network)
    if asked is None:
        return home
    numbers = sum(value.numel() for batch in batches for value in batch.values)
    worth = sum(weights.numel() for weights in network.parameters()) * numbers >= _WORTH_A_GPU
    if asked == "cpu" or not torch.cuda.is_available() or (asked == "auto" and not worth):
        return _CPU
    return home if home.type == "cuda" else torch.device("cuda")


def stays_on_cpu(asked: DeviceChoice | None, network: nn.Module) -> bool:
    """Whether a network is on the CPU and stays there, however large the work is."""
    gpu = torch.cuda.is_available() and asked in {"auto", "cuda"}
    return device_of(network).type == "cpu" and not gpu


def run_on_device(
    asked: DeviceChoice | None, network: nn.Module, batches: Iterator[Batch], run: Run
) -> list[QuantizedNetwork]:
    """Let ``run`` quantize a network on the chosen device; what it makes comes back to where the network was.

    Where a GPU runs out of memory, half of each batch is tried once: that changes rounding, nothing else.

    Raises:
        QuantizationError: its memory does not suffice for that either.
    """
    home, kept = device_of(network), [batch.map(Tensor.cpu) for batch in batches]
    device, largest = chosen_device(asked, network, kept), max((batch.count for batch in kept), default=1)
    with full_precision():
        for parts in (1, 2):
            try:
                results = run(_moved(copy.deepcopy(network), device), _given(kept, device, parts))
                return [_brought_back(result, device, home) for result in results]
            except torch.OutOfMemoryError:
                pass  # beyond this block the activations in the error's frames are gone
            torch.cuda.empty_cache()
            if parts == 1:
                less = f"batches of {largest} images; trying half of each"
                warnings.warn(
                    f"{device} has too little memory for {less}", stacklevel=4
                )  # who called quantize
    raise QuantizationError(
        f"device: {device} has too little memory for batches of {largest} images and for half of each; set "
        "batch_size lower, memory_gib to less than half of the GPU's memory, or device to cpu"
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 on GPUs with all of their bits, and sums always in the same order.

    By default torch rounds what convolutions multiply to 10 bits there (TF32). That changes the activations
    that a layer's codes are chosen for, and so the codes.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.fp32_precision = before


def _moved(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device; one that is there stays as it is, which may be on several."""
    return network if device_of(network) == device else network.to(device)


def _given(batches: Sequence[Batch], device: torch.device, parts: int) -> Iterator[Batch]:
    """The batches on a device, each in so many parts."""
    for batch in batches:
        for part in batch.parts(-(-batch.count // parts)):
            yield part.map(lambda value: value.to(device))


def _brought_back(result: QuantizedNetwork, device: torch.device, home: torch.device) -> QuantizedNetwork:
    """A result on the device that the network was on, with the name of the one that it was made on."""
    layers = (
        replace(
            layer,
            codes=layer.codes.to(home),
            alphabet=layer.alphabet.with_step(layer.alphabet.step.to(home)),
        )
        for layer in result.layers
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return replace(result, network=_moved(result.network, home), layers=tuple(layers), device=name)
