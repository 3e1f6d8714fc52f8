"""Some calibration images are held back, so that what is learned from the others can be judged by them."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

import torch

from laq.quantization.calibration.batch import Batch
from laq.quantization.options import QuantizationError


@dataclass(frozen=True)
class Split:
    """Calibration images: those that methods and tuning learn from, and those that are held back."""

    learned: Batch
    held_back: Batch

    @classmethod
    def of(cls, batches: Iterable[Batch], share: float, seed: int) -> "Split":
        """Draw the images that are held back, by the seed; both parts keep the images' order.

        Raises:
            QuantizationError: there are fewer than two images, or they differ in shape.
        """
        found = list(batches)
        if any(batch.kind != found[0].kind for batch in found):
            raise QuantizationError("held_back: calibration images differ in shape or type; give them alike")
        whole = Batch.joined(found)
        if whole.count < 2:
            raise QuantizationError("held_back: found one calibration image; give two at least")
        order = torch.randperm(whole.count, generator=torch.Generator().manual_seed(seed))
        held = max(1, int(whole.count * share))
        return cls(
            whole.map(itemgetter(order[held:].sort().values)),
            whole.map(itemgetter(order[:held].sort().values)),
        )
