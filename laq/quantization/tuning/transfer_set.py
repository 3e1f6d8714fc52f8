"""The transfer set of a tuning (Hinton et al. 2015): images, mixtures of these, and the float answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Final

import torch
from torch import Tensor, nn

from laq.quantization.calibration.batch import Batch
from laq.quantization.calibration.split import Split
from laq.quantization.execution.base import in_float32
from laq.quantization.execution.layerwise import run
from laq.quantization.execution.outputs import Output, logits_of
from laq.quantization.options import QuantizationError
from laq.quantization.recipe import Recipe
from laq.quantization.threads import Pool

CHUNK: Final = 16  # images that a core takes at once; changes memory and rounding, nothing else
_MIXTURES: Final = 4096  # at most: the float network answers to each of them once


@dataclass(frozen=True)
class TransferSet:
    """Images to learn from, each a mixture of two (Zhang et al. 2018), with the float network's logits.

    Attributes:
        split: the images themselves.
        first, second: int64 (m,), which of those that are learned from are mixed.
        share: float32 (m,), of the first; 1 where an image stands alone.
        logits: (m, classes), of the float network.
        held_back: (n, classes), its logits of those that are held back.
        output: which of the network's outputs are the logits.
    """

    split: Split
    first: Tensor
    second: Tensor
    share: Tensor
    logits: Tensor
    held_back: Tensor
    output: Output = None

    @property
    def count(self) -> int:
        """How many images and mixtures there are."""
        return len(self.first)

    def check(self, classes: Sequence[int] | None) -> None:
        """See that there are classes to compare, all of them (None) or some, and that the network has them.

        Raises:
            QuantizationError: there are none, or it has not.
        """
        if classes is not None and not classes:
            raise QuantizationError(
                "tune: found the loss subset without classes; name them, as in Tuning(classes=(3, 17)), or "
                "take the loss all"
            )
        outputs = self.logits.shape[1]
        if unknown := [number for number in classes or () if not 0 <= number < outputs]:
            raise QuantizationError(f"tune: found class {unknown[0]}; must be from 0 to {outputs - 1}")

    def batch(self, rows: Tensor) -> Batch:
        """The images and mixtures of these numbers."""
        return _mixed(self.split.learned, self.first[rows], self.second[rows], self.share[rows])


def transfer_set_of(
    network: nn.Module, split: Split, recipe: Recipe, output: Output, pool: Pool
) -> TransferSet:
    """Every image that is learned from, then mixtures, as many as the tuning has use for.

    Args:
        network: in floats and in evaluation mode.
        split: the images.
        recipe: whose seed draws the mixtures.
        output: as for ``quantize``.
        pool: does the work.

    Raises:
        QuantizationError: the network's outputs are not finite.
    """
    assert recipe.tune is not None
    count, generator = split.learned.count, torch.Generator().manual_seed(recipe.seed)
    mixed = min(_MIXTURES, max(0, recipe.tune.steps * recipe.tune.batch_size - count))
    # Pixels and other amounts can be mixed; numbers of words, say, can not.
    amounts = all(t.is_floating_point() or t.dtype == torch.uint8 for t in split.learned.values)
    if not (recipe.tune.mix and amounts):
        mixed = 0
    first, second = (
        torch.cat([torch.arange(count), torch.randint(count, (mixed,), generator=generator)]) for _ in "12"
    )
    share = torch.cat([torch.ones(count), torch.rand(mixed, generator=generator)])
    transfer = TransferSet(split, first, second, share, torch.empty(0), torch.empty(0), output)
    rows = torch.arange(transfer.count)
    parts = (transfer.batch(rows[start : start + CHUNK]) for start in range(0, transfer.count, CHUNK))
    logits = logits_of_all(network, parts, output, pool)
    held_back = logits_of_all(network, split.held_back.parts(CHUNK), output, pool)
    if not (logits.isfinite().all() and held_back.isfinite().all()):
        raise QuantizationError("tune: the float network's outputs are not finite; check weights and images")
    return replace(transfer, logits=logits, held_back=held_back)


def logits_of_all(network: nn.Module, batches: Iterable[Batch], output: Output, pool: Pool) -> Tensor:
    """The network's logits (n, classes), float32 or float64, of batches that a core takes one at a time."""

    def of_one(batch: Batch) -> Tensor:
        return in_float32(logits_of(run(network, batch), output))

    return torch.cat(list(pool.map(of_one, batches)))


def _mixed(images: Batch, first: Tensor, second: Tensor, share: Tensor) -> Batch:
    """``share`` of the first image and the rest of the second one, in the images' own type."""
    if bool((share == 1).all()):
        return images.map(itemgetter(first))

    def mix(values: Tensor) -> Tensor:
        part = share.to(values.device).view(-1, *(1 for _ in values.shape[1:]))
        both = part * values[first] + (1 - part) * values[second]
        return (both if values.is_floating_point() else both.round()).to(values.dtype)

    return images.map(mix)
