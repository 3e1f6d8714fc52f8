"""One training loop, for networks from scratch and for fine-tuning."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from laq.architectures import seeded
from laq.dataset import ImageSet
from laq.errors import LaqError
from laq.files import replacing_file
from laq.params import Training
from laq.progress import progress


def fit(
    network: nn.Module, data: ImageSet, config: Training, title: str = "", checkpoint: Path | None = None
) -> None:
    """Train ``network`` in place by cross-entropy; leave it in evaluation mode.

    Every epoch draws its order and augmentation from ``(config.seed, epoch)``, so a run that was
    killed and continues from ``checkpoint`` ends with the weights of one that was not. The file is
    the caller's to remove, once the weights are safe. Without ``title`` no bar is shown. The network
    comes back from a GPU; on one, too, the same run twice gives the same weights, others than on a CPU.

    Raises:
        LaqError: a GPU is asked for that is not there, or mixed precision of a processor that lacks it.
    """
    device = training_device(config)
    _check(config, device)
    network.to(device)
    optimizer = _optimizer(network, config)
    steps = -(-len(data) // config.batch_size)
    schedule = _schedule(optimizer, config, steps)
    done = _resume(checkpoint, network, optimizer, schedule)
    total, before = config.epochs * steps, done * steps
    network.train()
    with progress(None, title, total=total, initial=before, unit="batch", disable=not title) as bar:
        for epoch in range(done, config.epochs):
            with seeded(_epoch_seed(config.seed, epoch)), _repeatable():
                batches = ((x.to(device), y.to(device)) for x, y in _batches(data, config, epoch))
                loss = _epoch(_logits(network, config), batches, optimizer, schedule, bar)
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}")
            _save(checkpoint, epoch + 1, network, optimizer, schedule)
    network.eval().cpu()


def training_device(config: Training) -> torch.device:
    """The device that the recipe trains on, here.

    Raises:
        LaqError: it asks for a GPU, and torch sees none.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise LaqError("device: found cuda, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def _repeatable() -> AbstractContextManager[None]:
    """Convolutions on a GPU the same every time, and float32 ones not in TF32, inside the block."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _check(config: Training, device: torch.device) -> None:
    if config.precision == "bfloat16" and device.type == "cpu" and not has_bfloat16():
        raise LaqError(
            "precision: found bfloat16, with which training takes many times longer on this CPU "
            "(it has no AVX-512); set it to float32"
        )


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are not slower than in float32: on x86, since AVX-512."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def _optimizer(network: nn.Module, config: Training) -> Optimizer:
    if config.optimizer == "adamw":
        return AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    return SGD(
        network.parameters(), config.learning_rate, 0.9, weight_decay=config.weight_decay, nesterov=True
    )


def _schedule(optimizer: Optimizer, config: Training, steps: int) -> LRScheduler:
    if config.schedule == "one_cycle":
        return OneCycleLR(optimizer, config.learning_rate, max(config.epochs * steps, 1))
    return ConstantLR(optimizer, factor=1.0)


def _logits(network: nn.Module, config: Training) -> Callable[[Tensor], Tensor]:
    """The network's forward pass in the recipe's precision; logits in float32."""

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits: Tensor = network(images)
        return logits.float()

    return forward


def _epoch(
    logits: Callable[[Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    bar: "tqdm[Any]",
) -> float:
    """One pass over the data; returns the mean loss of its last batch."""
    loss = torch.tensor(torch.nan)
    for images, labels in batches:
        loss = F.cross_entropy(logits(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        bar.update()
    return loss.item()


def _batches(data: ImageSet, config: Training, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(_epoch_seed(config.seed, epoch))
    order = torch.randperm(len(data), generator=generator)
    for rows in torch.split(order, config.batch_size):
        yield (
            augment(data.images[rows], config.crop, flip=config.flip, generator=generator),
            data.labels[rows],
        )


def augment(images: Tensor, crop: int, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image (b, 3, h, w) by up to ``crop`` pixels, zeros moving in; mirror half of them."""
    count, _, height, width = images.shape
    padded = F.pad(images, (crop,) * 4)
    top = torch.randint(2 * crop + 1, (count, 1, 1), generator=generator)
    left = torch.randint(2 * crop + 1, (count, 1, 1), generator=generator)
    columns = torch.arange(width).expand(count, 1, width)
    if flip:
        mirrored = torch.rand((count, 1, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows = torch.arange(height)[None, :, None] + top
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows, columns + left].permute(0, 3, 1, 2)


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch


def _save(
    path: Path | None, epoch: int, network: nn.Module, optimizer: Optimizer, schedule: LRScheduler
) -> None:
    if path is None:
        return
    state = {"epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing_file(path) as partial:
        torch.save({**state, "schedule": schedule.state_dict()}, partial)


def _resume(path: Path | None, network: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> int:
    """Load the last epoch's state; returns the number of epochs done."""
    if path is None or not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["epoch"])
