"""Which test images choose a network, so that the others report how well the chosen one does."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

CHOOSING_SHARE: Final = 0.5  # of each class's test images, which rank a study's networks
CHOOSING_SEED: Final = 0


def choosing(
    labels: NDArray[np.int64], share: float = CHOOSING_SHARE, seed: int = CHOOSING_SEED
) -> NDArray[np.bool_]:
    """Which images (n,) of these ``labels`` choose: a share of each class's, drawn by the seed.

    Each class has images on both sides if it has two at least; the only one of a class reports. What is drawn
    of a class does not depend on the other classes that are there.
    """
    drawn = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        own = np.flatnonzero(labels == number)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        drawn[np.random.default_rng([seed, int(number)]).permutation(own)[:count]] = True
    return drawn
