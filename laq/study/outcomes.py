"""The registry of outcomes: what a study measures of a quantized network against its float network.

An outcome is a number of one cell, made of both networks' outputs for the same test images, with the standard
error that it has because the test images are a sample. A new outcome is a function and an entry in this file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import log, sqrt
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Wholes = NDArray[np.int64]
# What is kept of each test image of a cell's subset: its class and the predicted one (as places among the
# subset's classes in the order of their numbers), the logit of its class minus the largest other one, the
# probability of the predicted class, and KL(float || quantized) in nats.
KEPT: Final = np.dtype(
    [("label", "<i2"), ("prediction", "<i2"), ("margin", "<f2"), ("confidence", "<f4"), ("kl", "<f4")]
)
BINS: Final = 15  # of equal width, of the probability of the predicted class
DRAWS: Final = 200  # of the bootstrap over test images, by seed 0
CORRECTION: Final = 0.5  # added to both numbers of errors, so that their ratio is finite
ERROR: Final = "_se"  # ends the name of the column with an outcome's standard error


class Estimate(NamedTuple):
    """A number, and its standard error from the sampling of test images."""

    value: float
    error: float


@dataclass(frozen=True)
class PairedOutputs:
    """The outputs of a float network and of the one that was quantized from it, for the same n images.

    Attributes:
        labels: the images' classes (n,), as places among the k classes of the subset.
        predicted: the classes that the float network predicts (n,), and the quantized one.
        log_probabilities: of the k classes (n, k), by the float network, and by the quantized one.
    """

    labels: Wholes
    predicted: tuple[Wholes, Wholes]
    log_probabilities: tuple[Floats, Floats]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    @cached_property
    def right(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which images (n,) the float network classifies correctly, and which the quantized one."""
        before, after = self.predicted
        return before == self.labels, after == self.labels

    @cached_property
    def lost(self) -> Wholes:
        """For each image (n,): 1 where a right answer became a wrong one, -1 for the reverse, else 0."""
        before, after = self.right
        return before.astype(np.int64) - after

    @cached_property
    def kl(self) -> Floats:
        """KL(float || quantized) of the classes' probabilities, of each image (n,) in nats."""
        before, after = self.log_probabilities
        divergence: Floats = (np.exp(before) * (before - after)).sum(1)
        return divergence

    @cached_property
    def confidence(self) -> Floats:
        """The probability (n,) that the quantized network gives to the class that it predicts."""
        confidence: Floats = np.exp(self.log_probabilities[1].max(1))
        return confidence

    def kept(self) -> NDArray[np.void]:
        """What is kept of the images (n,), of type ``KEPT``."""
        after, rows = self.log_probabilities[1], np.arange(len(self))
        others = after.copy()
        others[rows, self.labels] = -np.inf
        record = np.empty(len(self), KEPT)
        record["label"], record["prediction"] = self.labels, self.predicted[1]
        record["margin"] = after[rows, self.labels] - others.max(1)
        record["confidence"], record["kl"] = self.confidence, self.kl
        return record


@dataclass(frozen=True)
class CellOutcome:
    """An outcome's entry: the name of its column, what people call it, what it is, and how to measure it."""

    name: str
    label: str
    description: str
    measure: Callable[[PairedOutputs], Estimate]


def _mean(
    of_images: Callable[[PairedOutputs], NDArray[np.generic]], scale: float = 1
) -> Callable[..., Estimate]:
    """The mean over images of what ``of_images`` gives for each (n,), with the standard error of a mean."""

    def measure(outputs: PairedOutputs) -> Estimate:
        values = scale * of_images(outputs).astype(np.float64)
        return Estimate(float(values.mean()), float(values.std()) / sqrt(len(values)))

    return measure


def _bootstrap(statistic: Callable[[PairedOutputs, Floats], Floats]) -> Callable[..., Estimate]:
    """A ``statistic`` of images drawn so often (draws, n), with its deviation over bootstrap samples."""

    def measure(outputs: PairedOutputs) -> Estimate:
        n = len(outputs)
        value = statistic(outputs, np.ones((1, n)))
        return Estimate(float(value[0]), float(statistic(outputs, _draws(n)).std(ddof=1)))

    return measure


@cache
def _draws(n: int) -> Floats:
    """How often each of n images is in each bootstrap sample (draws, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64)


def _errors_gained(outputs: PairedOutputs) -> Estimate:
    """The log ratio of two paired proportions with its standard error by the delta method.

    For counts a and b of errors, d of images on which just one network errs: var = d / (a b)
    (Nam and Blackwelder 2002, Statistics in Medicine 21, 689).
    """
    before, after = (float((~right).sum()) + CORRECTION for right in outputs.right)
    differing = float((outputs.lost != 0).sum())
    return Estimate(log(after / before), sqrt(differing / (before * after)))


def _worst_class(outputs: PairedOutputs, draws: Floats) -> Floats:
    """The most points that any class loses, for each draw; a class of which nothing is drawn is left out."""
    of_class = outputs.labels[:, None] == np.unique(outputs.labels)
    with np.errstate(invalid="ignore"):
        lost: Floats = 100 * (draws @ (of_class * outputs.lost[:, None])) / (draws @ of_class)
    worst: Floats = np.nanmax(lost, axis=1)
    return worst


def _calibration_error(outputs: PairedOutputs, draws: Floats) -> Floats:
    """The expected calibration error (Guo et al. 2017) in points, for each draw."""
    bins = np.minimum((outputs.confidence * BINS).astype(int), BINS - 1)
    gaps = (bins[:, None] == np.arange(BINS)) * (outputs.right[1] - outputs.confidence)[:, None]
    error: Floats = 100 * np.abs(draws @ gaps).sum(1) / draws.sum(1)
    return error


POINTS_LOST: Final = "drop_sub_points"
OUTCOMES: Final[Mapping[str, CellOutcome]] = {
    outcome.name: outcome
    for outcome in (
        CellOutcome(
            POINTS_LOST,
            "points lost",
            "restricted top-1 of the float network minus that of the quantized one, in points",
            _mean(lambda outputs: outputs.lost, 100),
        ),
        CellOutcome(
            "errors_gained_log",
            "errors gained (log)",
            "natural logarithm of the quantized network's errors divided by the float network's, "
            f"{CORRECTION:g} added to both numbers",
            _errors_gained,
        ),
        CellOutcome(
            "flips_lost_percent",
            "flips lost",
            "share of the test images that the float network classifies correctly, and the quantized one not",
            _mean(lambda outputs: outputs.lost == 1, 100),
        ),
        CellOutcome(
            "flips_gained_percent",
            "flips gained",
            "share of the test images of which the reverse holds",
            _mean(lambda outputs: outputs.lost == -1, 100),
        ),
        CellOutcome(
            "changed_percent",
            "changed predictions",
            "share of the test images for which the two networks predict different classes, right or wrong",
            _mean(lambda outputs: outputs.predicted[0] != outputs.predicted[1], 100),
        ),
        CellOutcome(
            "kl_nats",
            "KL",
            "mean over test images of KL(float ‖ quantized) of the probabilities among the subset's classes, "
            "in nats",
            _mean(lambda outputs: outputs.kl),
        ),
        CellOutcome(
            "worst_class_lost_points",
            "worst class",
            "most points of restricted top-1 that any class of the subset loses",
            _bootstrap(_worst_class),
        ),
        CellOutcome(
            "calibration_error_points",
            "calibration error",
            f"expected calibration error of the quantized network in points, with {BINS} bins of equal width "
            "of the predicted class's probability",
            _bootstrap(_calibration_error),
        ),
    )
}  # fmt: skip


def measured_outcomes(outputs: PairedOutputs) -> dict[str, float]:
    """Every outcome by the name of its column, and its standard error (``name_se``)."""
    found = {name: outcome.measure(outputs) for name, outcome in OUTCOMES.items()}
    errors = {f"{name}{ERROR}": estimate.error for name, estimate in found.items()}
    return {name: estimate.value for name, estimate in found.items()} | errors
