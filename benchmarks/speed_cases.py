"""The networks and images of the speed benchmark, which are made once and kept in ``.laq/``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
import torchvision
from speed_plan import CASES, ROOT, Case
from torch import Tensor, nn

from laq.architectures import seeded
from laq.architectures.resnet import CifarResNet
from laq.cache import cached
from laq.dataset.cifar100 import write_cifar100
from laq.dataset.images import read_images
from laq.dataset.layout import write_manifest
from laq.files import md5
from laq.network import load_tensors, save_tensors
from laq.network.checkpoints import load_matching
from laq.network.weights import read_foreign_weights
from laq.paths import CIFAR100_COPY

_SHARED: Final = ROOT.parent / "shared"
_WEIGHTS: Final = ROOT / "weights" / "resnet20_cifar100.safetensors"
_CIFAR100: Final = _SHARED / "cifar100" / "cifar-100-python.tar.xz"
_MEAN, _STD = (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)  # CIFAR-100's
_MOST_IMAGES: Final = 512
_SETTLING_BATCHES: Final = 3
_SETTLING_IMAGES: Final = 16


def load(name: str, images: int) -> tuple[nn.Module, Tensor]:
    """The case's network, in evaluation mode, and its calibration images (b, 3, size, size)."""
    case = CASES[name]
    return _network(case), _images(case)[:images].clone()


def probe(size: int) -> nn.Module:
    """A network of one layer of each kind, to warm up on: images (b, 3, size, size) → (b, 5)."""
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(size // 16),
            nn.Flatten(),
            nn.Linear(8 * (size // 16) ** 2, 5),
        ).eval()


def _network(case: Case) -> nn.Module:
    network = _build(case.architecture)
    if case.architecture == "resnet20":
        load_matching(network, read_foreign_weights(str(_WEIGHTS), None)[0], str(_WEIGHTS))
        return network.eval()
    inputs = {"cases": md5(Path(__file__)), "architecture": case.architecture, "size": case.size}
    folder = cached("bench", inputs, partial(_write_settled, case))
    network.load_state_dict(load_tensors(folder / "network.safetensors"))
    return network.eval()


def _build(architecture: str) -> nn.Module:
    with seeded(0):
        if architecture == "resnet20":
            return CifarResNet(20, 100)
        network: nn.Module = torchvision.models.get_model(architecture, weights=None)
        return network


@torch.no_grad()
def _write_settled(case: Case, folder: Path) -> None:
    """Write random weights with matching batch-norm statistics, which keep activations in scale."""
    network = _build(case.architecture).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None  # the mean over all batches
    for images in low_pass_noise(_SETTLING_BATCHES * _SETTLING_IMAGES, case.size, 1).split(_SETTLING_IMAGES):
        network(images)
    save_tensors(folder / "network.safetensors", network.state_dict())


def _images(case: Case) -> Tensor:
    if case.architecture == "resnet20" and _CIFAR100.is_file():
        folder = cached("bench", {"cases": md5(Path(__file__)), "images": "cifar100"}, _write_cifar100)
        pixels = load_tensors(folder / "images.safetensors")["images"]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        return (pixels.float() / 255 - mean) / std
    return low_pass_noise(_MOST_IMAGES if case.images > 64 else 64, case.size, 0)


def _write_cifar100(folder: Path) -> None:
    """Write a random sample of the training images."""
    with TemporaryDirectory() as scratch, _local_copy(_CIFAR100):
        dataset = Path(scratch)
        write_manifest(dataset, "cifar100", write_cifar100(dataset))
        sample = read_images(dataset, "train").sample(_MOST_IMAGES, torch.Generator().manual_seed(0))
    save_tensors(folder / "images.safetensors", {"images": sample.images})


@contextmanager
def _local_copy(archive: Path) -> Iterator[None]:
    before = os.environ.get(CIFAR100_COPY)
    os.environ[CIFAR100_COPY] = before or str(archive)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CIFAR100_COPY]


def low_pass_noise(count: int, size: int, seed: int) -> Tensor:
    """Images (count, 3, size, size) with the spectrum of natural ones; each has mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    side = 2
    while side <= size:
        noise = torch.randn(count, 3, side, side, generator=generator)
        images += F.interpolate(noise, (size, size), mode="bilinear") / side
        side *= 2
    flat = images.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(images)
