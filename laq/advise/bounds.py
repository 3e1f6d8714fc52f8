"""Confidence bounds of the points that a network loses, and of its accuracy, from counts of images."""

from collections.abc import Callable
from math import ceil, sqrt
from typing import Final, NamedTuple

from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri

_MOST_IMAGES: Final = 10_000_000  # beyond which nobody is told how many images it takes


class Flips(NamedTuple):
    """Of n images, how many a network loses against another one, and how many it gains."""

    lost: float
    gained: float
    n: float


def most_lost(flips: Flips, alpha: float) -> float:
    """The upper confidence bound of the share of images lost, net of those gained, at the level 1 - alpha.

    It is the end of Tango's score interval of paired proportions (1998, Statistics in Medicine 17, 891), or
    if that is higher, the exact bound of images lost (Clopper and Pearson 1934) less the share gained: the
    score interval is too short where hardly anything changes. The true loss is above it in at most about
    ``alpha`` of all samples: 5.2 % for an ``alpha`` of 5 %, of 100 to 1000 images.
    """
    lost, gained, n = flips
    score = -float(ndtri(alpha))

    def excess(share: float) -> float:
        # 2 n q^2 + linear q + constant = 0 gives the share q that is gained, by maximum likelihood.
        linear = (2 * n - lost + gained) * share - lost - gained
        constant = -gained * share * (1 - share)
        q = (sqrt(max(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
        return float(lost - gained - n * share + score * sqrt(max(n * (2 * q + share * (1 - share)), 0)))

    estimate = (lost - gained) / n
    tango = 1.0 if estimate >= 1 else float(brentq(excess, estimate + 1e-12, 1))
    exact = 1.0 if lost >= n else float(betaincinv(lost + 1, n - lost, 1 - alpha))
    return min(1.0, max(tango, exact - gained / n))


def interval(flips: Flips, alpha: float) -> tuple[float, float]:
    """The bounds on both sides of the share lost, each at the level 1 - alpha."""
    return -most_lost(Flips(flips.gained, flips.lost, flips.n), alpha), most_lost(flips, alpha)


def accuracy(correct: float, n: float, alpha: float) -> tuple[float, float]:
    """The exact bounds (Clopper and Pearson 1934) of a share of images, each at the level 1 - alpha."""
    low = float(betaincinv(correct, n - correct + 1, alpha)) if correct > 0 else 0.0
    high = float(betaincinv(correct + 1, n - correct, 1 - alpha)) if correct < n else 1.0
    return low, high


def images_for_loss(flips: Flips, alpha: float, most: float) -> int | None:
    """About how many images it takes until the bound of the loss is ``most``, at the same shares.

    None if no number of images does, because the estimate itself is not below ``most``, or far too many.
    """
    lost, gained, n = (count / flips.n for count in flips)
    if lost - gained >= most:
        return None
    return _fewest(lambda images: most_lost(Flips(lost * images, gained * images, n * images), alpha) <= most)


def images_for_accuracy(correct: float, n: float, alpha: float, least: float) -> int | None:
    """About how many images it takes until the bound of the accuracy is ``least``, at the same share."""
    share = correct / n
    if share <= least:
        return None
    return _fewest(lambda images: accuracy(share * images, images, alpha)[0] >= least)


def _fewest(suffices: Callable[[float], bool]) -> int | None:
    """About the fewest images that suffice, to two digits."""
    enough = 1.0
    while not suffices(enough):
        enough *= 2
        if enough > _MOST_IMAGES:
            return None
    few = enough / 2
    while enough / few > 1.01:
        middle = sqrt(few * enough)
        few, enough = (few, middle) if suffices(middle) else (middle, enough)
    unit = int(10 ** max(len(str(int(enough))) - 2, 0))
    return ceil(enough / unit) * unit
