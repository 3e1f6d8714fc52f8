"""How well a network does: over all classes, and over those that matter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from laq.architectures import Classifier, classifier_head
from laq.dataset.images import ImageSet

BATCH: Final = 250
_PIXELS: Final = 2**20  # of all images that are run at once


@dataclass(frozen=True)
class Scores:
    """Accuracies in percent; ``sub`` ones choose among the logits of the subset's classes only.

    ``balanced`` ones are the mean of the classes' accuracies: of images of each class equally many.
    """

    top1_all: float
    top5_all: float
    top1_sub: float
    top5_sub: float
    balanced_top1_all: float
    balanced_top1_sub: float


def evaluate(network: nn.Module, data: ImageSet, classes: Sequence[int]) -> Scores:
    """Score ``network`` on the images of ``classes``, from one forward pass."""
    chosen = data.select(classes)
    return score(predict(network, chosen), chosen.labels, classes)


def score(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Scores:
    """The scores of the images of ``classes``, among others with these ``logits`` (n, c) and labels (n,)."""
    restricted, among = restrict(logits, labels, classes)
    rows = torch.isin(labels, torch.tensor(list(classes)))
    logits, labels = logits[rows], labels[rows]
    return Scores(
        top1_all=top_k(logits, labels, 1),
        top5_all=top_k(logits, labels, 5),
        top1_sub=top_k(restricted, among, 1),
        top5_sub=top_k(restricted, among, 5),
        balanced_top1_all=balanced_top_1(logits, labels),
        balanced_top1_sub=balanced_top_1(restricted, among),
    )


def restrict(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images of ``classes`` among others, with the logits (m, k) and the places (m,) of these classes.

    Classes stand in the order of their numbers.
    """
    columns = torch.tensor(sorted(classes))
    rows = torch.isin(labels, columns)
    return logits[rows][:, columns], torch.searchsorted(columns, labels[rows])


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Percentage of rows of ``logits`` (n, c) whose label is among their ``k`` largest."""
    best = logits.topk(min(k, logits.shape[1])).indices
    return 100 * int((best == labels[:, None]).any(1).sum()) / len(labels)


def balanced_top_1(logits: Tensor, labels: Tensor) -> float:
    """The mean over the classes in ``labels`` of each one's top-1 in percent."""
    right = (logits.topk(1).indices[:, 0] == labels).double()
    images = labels.bincount()
    shares = labels.bincount(right)[images > 0] / images[images > 0]
    return 100 * float(shares.mean())


def predict(network: nn.Module, data: ImageSet) -> Tensor:
    """Logits (n, classes) of every image."""
    with torch.inference_mode():
        return torch.cat([network(images) for images in data.batches(batch_size(network, data))])


def batch_size(network: nn.Module, data: ImageSet) -> int:
    """How many images to run at once: fewer of large ones, whose activations would fill the memory."""
    side = max(data.pixels.shape[-1], network.design.input_size if isinstance(network, Classifier) else 0)
    return min(BATCH, max(1, _PIXELS // side**2))


@contextmanager
def collecting_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the penultimate features (b, f) of every forward pass made inside the block."""
    features: list[Tensor] = []
    head = classifier_head(network)
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        yield features
    finally:
        hook.remove()
