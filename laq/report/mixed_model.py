"""The mean of paired differences in a mixed model with a random effect of every class.

Subsets share classes, so their differences are not independent. The interval and the p-value of this model
also hold for other classes than the study's.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize.elementwise import find_root

from laq.report.paired_tests import varies
from laq.sections.report import Report

Floats = NDArray[np.float64]
_SHARES: Final = (np.arange(40) + 0.5) / 40  # the classes' share of the variance, uniform a priori


@dataclass(frozen=True)
class MixedModelEstimates:
    """The interval and p-value of the mean of q rows of differences, (q,) each; NaN for constant rows."""

    low: Floats
    high: Floats
    p_value: Floats

    def row(self, row: int) -> dict[str, float]:
        """The estimates of one row, by the columns of the table."""
        low, high, p_value = (values[row] for values in (self.low, self.high, self.p_value))
        return {"low_classes": low, "high_classes": high, "p_classes": p_value}


def mixed_model(differences: Floats, members: Floats, params: Report) -> MixedModelEstimates:
    """Intervals and p-values for the means of ``differences`` (q, n) over n subsets.

    ``members`` (n, C) says which of C classes each subset has. Subsets that share classes are not
    independent: if a method suits a class, it suits all subsets with that class. The multiple-membership
    model (Browne, Goldstein and Rasbash 2001) describes this: a difference is the mean, plus the mean of
    the random effects of the subset's classes, plus an error. The classes' share of the variance is not
    known; for each share, the mean has a t-distribution of n - 1 degrees of freedom, and these are mixed
    with the restricted likelihood of the share as weight.
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
    """The covariances (k, n, n) of the differences for each share of the classes; the mean variance is 1."""
    part = members / members.sum(1, keepdims=True)
    classes = part @ part.T
    classes /= np.diag(classes).mean()
    share = _SHARES[:, None, None]
    return np.asarray((1 - share) * np.eye(len(members)) + share * classes)


def _errors(differences: Floats, covariances: Floats) -> tuple[Floats, Floats]:
    """The mean's standard error and its weight, (k, q) each, for each share."""
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
    """The two-sided probability (q,) of a mean beyond ``distance`` (q,) if the true mean is 0."""
    return np.asarray((weights * 2 * stats.t.sf(distance / errors, n - 1)).sum(0))


def _half_width(errors: Floats, weights: Floats, n: int, alpha: float) -> Floats:
    """The distance (q,) whose tail is ``alpha``, found numerically: mixtures have no closed-form quantile."""

    def excess(distance: Floats, row: NDArray[np.intp]) -> Floats:
        return _tail(distance, errors[:, row], weights[:, row], n) - alpha

    widest = errors.max(0) * stats.t.isf(alpha / 2, n - 1)
    found = find_root(excess, (np.zeros_like(widest), 2 * widest), args=(np.arange(len(widest)),))
    return np.asarray(found.x)
