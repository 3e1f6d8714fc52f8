"""The mean of paired differences in a mixed model with a random effect of every class.

Subsets share classes, so their differences are not independent: the interval and the p-value here also hold
for other classes than the study's.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize.elementwise import find_root

from laq.params import Report
from laq.report.paired_tests import varies

Floats = NDArray[np.float64]
_SHARES: Final = (np.arange(40) + 0.5) / 40  # of the variance that is the classes', all as likely beforehand


@dataclass(frozen=True)
class MixedModelEstimates:
    """Of q rows of differences: their mean's interval and p-value, each (q,); NaN where all are the same."""

    low: Floats
    high: Floats
    p_value: Floats

    def row(self, row: int) -> dict[str, float]:
        """What a table says of one row."""
        low, high, p_value = (values[row] for values in (self.low, self.high, self.p_value))
        return {"low_classes": low, "high_classes": high, "p_classes": p_value}


def mixed_model(differences: Floats, members: Floats, params: Report) -> MixedModelEstimates:
    """How sure the means of ``differences`` (q, n) are, of n subsets of the classes in ``members`` (n, C).

    Many subsets of few classes are not as many independent ones: if a class likes a method, all subsets
    that it is in do. The multiple-membership model (Browne, Goldstein and Rasbash 2001) says so: a
    difference is the mean, plus the mean of its classes' random effects, plus its own error. How much of
    the variance is the classes' is not known; the restricted likelihood of each share of it weighs the
    t-distribution, of n - 1 degrees, that the mean then has.
    """
    n = differences.shape[1]
    nothing = np.full(len(differences), np.nan)
    mean = differences.mean(1)
    if n < 2 or not (varied := varies(differences)).any():
        return MixedModelEstimates(nothing, nothing, nothing)
    errors, weights = _errors(differences[varied], _covariances(members))
    half, p_value = nothing.copy(), nothing.copy()
    half[varied] = _half_width(errors, weights, n, 1 - params.confidence)
    p_value[varied] = _tail(np.abs(mean[varied]), errors, weights, n)
    return MixedModelEstimates(mean - half, mean + half, p_value)


def _covariances(members: Floats) -> Floats:
    """Of the subsets' differences (k, n, n) by the classes' share of a mean variance of 1."""
    part = members / members.sum(1, keepdims=True)
    classes = part @ part.T
    classes /= np.diag(classes).mean()
    share = _SHARES[:, None, None]
    return np.asarray((1 - share) * np.eye(len(members)) + share * classes)


def _errors(differences: Floats, covariances: Floats) -> tuple[Floats, Floats]:
    """The mean's standard error and its weight (k, q), by share."""
    n = differences.shape[1]
    root = np.linalg.cholesky(covariances)
    ones, white = np.linalg.solve(root, np.ones((n, 1))), np.linalg.solve(root, differences.T)
    precision = (ones**2).sum((1, 2))[:, None]
    left = white - ones * ((ones * white).sum(1) / precision)[:, None]
    variance = (left**2).sum(1) / (n - 1)
    size = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)[:, None]
    likelihood = -size - np.log(precision) / 2 - (n - 1) / 2 * np.log(variance)
    weights = np.exp(likelihood - likelihood.max(0))
    return np.sqrt(variance * covariances.sum((1, 2))[:, None]) / n, weights / weights.sum(0)


def _tail(distance: Floats, errors: Floats, weights: Floats, n: int) -> Floats:
    """How likely a mean of nothing is as far from 0 as ``distance`` (q,), either way."""
    return np.asarray((weights * 2 * stats.t.sf(distance / errors, n - 1)).sum(0))


def _half_width(errors: Floats, weights: Floats, n: int, alpha: float) -> Floats:
    """The distance (q,) that the tail is ``alpha`` of: there is no closed form of a mixture's quantile."""

    def excess(distance: Floats, row: NDArray[np.intp]) -> Floats:
        return _tail(distance, errors[:, row], weights[:, row], n) - alpha

    widest = errors.max(0) * stats.t.isf(alpha / 2, n - 1)
    found = find_root(excess, (np.zeros_like(widest), 2 * widest), args=(np.arange(len(widest)),))
    return np.asarray(found.x)
