"""One training loop, for networks from scratch and for fine-tuning."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from laq.architectures import seeded
from laq.dataset.images import ImageSet
from laq.errors import LaqError
from laq.files import replacing_file
from laq.network.evaluation import batch_size
from laq.progress import progress
from laq.quantization.options import NO_GPU
from laq.sections.network import Training


def fit(
    network: nn.Module, data: ImageSet, config: Training, title: str = "", checkpoint: Path | None = None
) -> None:
    """Train ``network`` in place by cross-entropy; leave it in evaluation mode.

    Every epoch draws its order and augmentation from ``(config.seed, epoch)``, so a run that was
    killed and continues from ``checkpoint`` ends with the weights of one that was not. The file is
    the caller's to remove, once the weights are safe. Without ``title`` no bar is shown. The network
    comes back from a GPU; on one, too, the same run twice gives the same weights, others than on a CPU.

    Raises:
        LaqError: a GPU is asked for that is not there, or mixed precision of a processor that lacks it, or
            the loss is no longer finite. The key that the line begins with is one of ``config``.
    """
    _train(network, data, config, _Run(title, checkpoint))


def fit_best(
    network: nn.Module, data: ImageSet, validation: ImageSet, config: Training, checkpoint: Path | None = None
) -> "Best":
    """As ``fit``, but the network is left as it was after the epoch that did best on ``validation``.

    Raises:
        LaqError: as ``fit``.
    """
    best = _train(network, data, config, _Run("train", checkpoint, validation))
    network.load_state_dict(best.network)
    return best


@dataclass(frozen=True)
class _Run:
    """What surrounds a training: its bar's title, its checkpoint, the images that choose its best epoch."""

    title: str = ""
    checkpoint: Path | None = None
    validation: ImageSet | None = None


@dataclass
class Best:
    """The epoch, from 0 before the first one, that did best on validation images, and the weights then."""

    epoch: int = 0
    top1: float = -1.0
    network: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, network: nn.Module, epoch: int, validation: ImageSet | None) -> None:
        """Take the network as it is now, if it does better."""
        if validation is None:
            return
        training = network.training
        top1 = _top1(network.eval(), validation)
        network.train(training)
        if top1 > self.top1:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            self.epoch, self.top1, self.network = epoch, top1, weights


def _train(network: nn.Module, data: ImageSet, config: Training, run: _Run) -> Best:
    device = training_device(config)
    _check(config, device)
    network.to(device, memory_format=_memory_format(network))  # type: ignore[call-overload]
    steps = -(-len(data) // config.batch_size)
    state = _State.begin(network, config, steps)
    done = state.resume(run.checkpoint)
    if done == 0:
        state.best.offer(network, 0, run.validation)
    total, before = config.epochs * steps, done * steps
    network.train()
    with progress(None, run.title, total=total, initial=before, unit="batch", disable=not run.title) as bar:
        for epoch in range(done, config.epochs):
            with seeded(_epoch_seed(config.seed, epoch)), _repeatable():
                batches = ((x.to(device), y.to(device)) for x, y in _batches(data, config, epoch))
                loss = _epoch(state, config, batches, bar)
            _check_finite(network, data, loss, epoch + 1)
            state.best.offer(network, epoch + 1, run.validation)
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}")
            state.save(run.checkpoint, epoch + 1)
    network.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return state.best


def _check_finite(network: nn.Module, data: ImageSet, loss: float, epoch: int) -> None:
    """See that the network has learned, not diverged: what its last step did is in no loss yet."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        outputs = network.eval()(data.take(torch.arange(min(2, len(data)))).images.to(device))
    network.train()
    if not (isfinite(loss) and outputs.isfinite().all()):
        raise LaqError(f"learning_rate: the loss is not finite after epoch {epoch}; lower it")


def _top1(network: nn.Module, data: ImageSet) -> float:
    """Percentage of images whose class the network tells, wherever it is."""
    device, right = next(network.parameters()).device, 0
    labels = iter(torch.split(data.labels, size := batch_size(network, data)))
    with torch.inference_mode():
        for images in data.batches(size):
            right += int((network(images.to(device)).argmax(1).cpu() == next(labels)).sum())
    return 100 * right / len(data)


def trainer(config: Training) -> str:
    """What trains here; weights depend on it: another processor's differ in their last digits."""
    device = training_device(config)
    return (
        f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}"
    )


def training_device(config: Training) -> torch.device:
    """The device that the recipe trains on, here.

    Raises:
        LaqError: it asks for a GPU, and torch sees none.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise LaqError(NO_GPU)
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def _memory_format(network: nn.Module) -> torch.memory_format:
    """Depthwise convolutions train up to twice as fast on a CPU where channels lie last in memory."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    depthwise = any(1 < convolution.groups == convolution.in_channels for convolution in convolutions)
    return torch.channels_last if depthwise else torch.contiguous_format


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


@dataclass(frozen=True)
class _State:
    """What a training changes, and a checkpoint holds: the network, the optimizer and its schedule."""

    network: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    best: Best = field(default_factory=Best)

    @classmethod
    def begin(cls, network: nn.Module, config: Training, steps: int) -> Self:
        """The state before the first of the epochs, which have so many steps each."""
        weights, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
        optimizer: Optimizer
        schedule: LRScheduler
        if config.optimizer == "adamw":
            optimizer = AdamW(weights, rate, weight_decay=decay)
        else:
            optimizer = SGD(weights, rate, 0.9, weight_decay=decay, nesterov=True)
        if config.schedule == "one_cycle":
            schedule = OneCycleLR(optimizer, rate, max(config.epochs * steps, 1))
        else:
            schedule = ConstantLR(optimizer, factor=1.0)
        return cls(network, optimizer, schedule)

    def save(self, path: Path | None, epoch: int) -> None:
        """Write the state after ``epoch`` epochs; no path, no checkpoint."""
        if path is None:
            return
        state = {"epoch": epoch, "network": self.network.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        state["best"] = vars(self.best)
        content = io.BytesIO()  # torch.save's errors of a full disk are none of the system's
        torch.save(state, content)
        with replacing_file(path) as partial:
            partial.write_bytes(content.getbuffer())

    def resume(self, path: Path | None) -> int:
        """Load the state after the last epoch; returns the number of epochs done."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True) if path else None
        except FileNotFoundError:  # perhaps since now: another process has trained the same to its end
            state = None
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        vars(self.best).update(state["best"])
        return int(state["epoch"])


def _epoch(
    state: _State, config: Training, batches: Iterator[tuple[Tensor, Tensor]], bar: "tqdm[Any]"
) -> float:
    """One pass over the data in the recipe's precision; returns the mean loss of its last batch."""
    loss = torch.tensor(torch.nan)
    for images, labels in batches:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits: Tensor = state.network(images)
        loss = F.cross_entropy(logits.float(), labels)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.schedule.step()
        bar.update()
    return loss.item()


def _batches(data: ImageSet, config: Training, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(_epoch_seed(config.seed, epoch))
    order = torch.randperm(len(data), generator=generator)
    for rows in torch.split(order, config.batch_size):
        yield (
            augment(data.take(rows).images, config.crop, flip=config.flip, generator=generator),
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
