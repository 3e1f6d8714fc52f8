"""The one report on the delivered network, on images that did not choose it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laq.advise.bounds import Flips, accuracy, interval


@dataclass(frozen=True)
class Reported:
    """How well the delivered file does on n images that did not choose it, in percent and in points lost.

    The intervals have two sides; that of the points lost is paired by image with the original float network.
    """

    n: int
    top1_percent: float
    top1_low_percent: float
    top1_high_percent: float
    lost_points: float
    lost_low_points: float
    lost_high_points: float


def reported(before: NDArray[np.bool_], right: NDArray[np.bool_], confidence: float) -> Reported:
    """The report of a network that is ``right`` on these images (n,), as the original one was ``before``."""
    n, alpha = len(right), (1 - confidence) / 2
    flips = Flips(int((before & ~right).sum()), int((right & ~before).sum()), n)
    low, high = accuracy(int(right.sum()), n, alpha)
    least, most = interval(flips, alpha)
    lost = (flips.lost - flips.gained) / n
    return Reported(n, 100 * float(right.mean()), 100 * low, 100 * high, 100 * lost, 100 * least, 100 * most)
