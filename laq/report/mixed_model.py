"""Effects in subsets that share classes: a linear mixed model with a random effect of every class.

This is the multiple-membership model of Browne, Goldstein and Rasbash (2001): an outcome of a subset is a
linear function of its design, plus the mean of the random effects of its classes, plus an error. Intervals
and p-values hold for subsets of other classes, too. How often they are wrong is in ``results/inference.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from laq.sections.report import Report

Floats = NDArray[np.float64]
SHARES: Final = np.array([*np.arange(0, 1, 0.04), 0.98, 0.995])  # of the variance that may be the classes'
_NEAR: Final = (
    0.15  # shares whose restricted log-likelihood is so near the largest count as likely as the best one
)
_NOTHING: Final = 1e-9  # standard deviations below this are rounding error


@dataclass(frozen=True)
class Estimates:
    """Effects for q outcomes, (q,) each; ``class_share`` is the classes' estimated share of the variance."""

    effect: Floats
    low: Floats
    high: Floats
    p_value: Floats
    class_share: Floats

    def row(self, place: int) -> dict[str, float]:
        """The estimates of one outcome, by the columns of the tables."""
        return {field.name: getattr(self, field.name)[place] for field in fields(self)}


@dataclass(frozen=True)
class MixedModel:
    """The effect of one variable on outcomes of n subsets.

    Attributes:
        design: (n, p); the effect is the coefficient of its first column. A column of ones alone asks for the
            mean.
        members: (n, C), 1 for the classes that a subset has and else 0.
        params: the number of draws, the confidence and the seed.
    """

    design: Floats
    members: Floats
    params: Report

    @property
    def freedom(self) -> int:
        """The degrees of freedom that are left for the variance."""
        return len(self.design) - int(np.linalg.matrix_rank(self.design))

    @property
    def estimable(self) -> bool:
        """Whether the effect can be told from the other columns', with two subsets more than columns."""
        if not np.isfinite(self.design).all() or self.freedom < 2:
            return False
        first, others = self.design[:, 0], self.design[:, 1:]
        left = first - others @ (np.linalg.pinv(others, rcond=_NOTHING) @ first) if others.size else first
        return bool(np.abs(left).max() > _NOTHING * (1 + np.abs(first).max()))

    @cached_property
    def weights(self) -> Floats:
        """The weights (n,) of the least-squares estimate, which is their product with an outcome."""
        return np.asarray(np.linalg.pinv(self.design, rcond=_NOTHING)[0])

    @cached_property
    def covariance(self) -> Floats:
        """The covariance (n, n) of outcomes that classes alone make, of variance 1 on average."""
        part = self.members / self.members.sum(1, keepdims=True)
        classes = part @ part.T
        return np.asarray(classes / np.diag(classes).mean())

    @cached_property
    def contrasts(self) -> tuple[Floats, Floats]:
        """Contrasts (n, m) free of the design, uncorrelated for any share, and classes' variances (m,)."""
        free = np.linalg.svd(self.design)[0][:, -self.freedom :]
        variances, turned = np.linalg.eigh(free.T @ self.covariance @ free)
        return free @ turned, variances.clip(min=0)

    @cached_property
    def _variances(self) -> Floats:
        """The variances (k, m) of the contrasts for each share."""
        return (1 - SHARES[:, None]) + SHARES[:, None] * self.contrasts[1]

    @cached_property
    def effect_variances(self) -> Floats:
        """The variance (k,) of the least-squares estimate for each share, where outcomes have variance 1."""
        a = self.weights
        return np.asarray((1 - SHARES) * (a @ a) + SHARES * (a @ self.covariance @ a))

    def fit(self, squares: Floats) -> tuple[Floats, Floats]:
        """The standard error (q,) at the most likely share, and how unlikely each share (k, q) is.

        ``squares`` (m, q) are squared contrasts. The restricted log-likelihood of a share is, but for a
        constant,
        -m / 2 times the logarithm of the estimated variance and of the geometric mean of ``_variances``.
        """
        variance = (1 / self._variances) @ squares / self.freedom
        unlikely = variance * np.exp(np.log(self._variances).mean(1))[:, None]
        best, every = unlikely.argmin(0), np.arange(squares.shape[1])
        return np.sqrt(variance[best, every] * self.effect_variances[best]), unlikely

    @cached_property
    def null(self) -> Floats:
        """For each share the sorted ratios (k, draws) of |effect| and standard error without an effect.

        They are simulated (a parametric bootstrap under the fitted null), and do not depend on the scale. The
        last row also bounds a share of 1, whose covariance may be singular.
        """
        contrasts, classes = self.contrasts
        rng = np.random.default_rng(self.params.seed)
        drawn = rng.normal(size=(self.freedom, self.params.draws))
        other, squares = rng.normal(size=self.params.draws), drawn**2
        toward = contrasts.T @ self.covariance @ self.weights
        rows = []
        for share in (*SHARES, 1.0):
            variances = 1 - share + share * classes
            slope = share * toward / np.sqrt(variances.clip(min=_NOTHING))
            whole = (1 - share) * (self.weights @ self.weights)
            whole += share * (self.weights @ self.covariance @ self.weights)
            effect = slope @ drawn + np.sqrt(max(whole - slope @ slope, 0)) * other
            rows.append(np.sort(np.abs(effect) / self.fit(variances[:, None] * squares)[0]))
        return np.array([*rows[:-2], np.maximum(rows[-2], rows[-1])])

    def estimate(self, outcomes: Floats, repeated: Sequence[Floats] = ()) -> Estimates:
        """The effects on ``outcomes`` (q, n), with two-sided p-values; NaN where nothing can be said.

        An effect is the least-squares estimate. Its standard error is that of the mixed model at the share of
        the classes that has the highest restricted likelihood (REML). Its ratio to the effect is compared
        with those that the model gives where there is no effect; of all shares that are about as likely, the
        one that gives the widest interval counts (in the manner of Berger and Boos 1994).

        Args:
            outcomes: means over seeds.
            repeated: for each outcome its values (s, n) by seed, where a seed stands for one network that all
                subsets share. What differs between these networks then widens the interval, halfway between
                Satterthwaite's (1946), which is too narrow for few seeds, and one whose half widths are added
                as squares (Zou and Donner 2008), which is too wide. Fewer than two seeds add nothing.
        """
        told = np.full((5, len(outcomes)), np.nan)
        if not self.estimable:
            return Estimates(*told)
        told[0] = outcomes @ self.weights
        squares = (self.contrasts[0].T @ outcomes.T) ** 2
        varied = np.flatnonzero(np.sqrt(squares.sum(0)) > _NOTHING * (1 + np.abs(outcomes).max(1)))
        errors, unlikely = self.fit(squares[:, varied])
        for place, error, shares in zip(varied, errors, unlikely.T, strict=True):
            likely = -self.freedom / 2 * np.log(shares / shares.min())
            widths = self._half_widths(error, likely, repeated[int(place)] if len(repeated) else None)
            half = widths[int((1 - self.params.confidence) * (len(widths) + 1)) - 1]
            p_value = (1 + (widths >= abs(told[0, place])).sum()) / (1 + len(widths))
            told[1:, place] = told[0, place] - half, told[0, place] + half, p_value, SHARES[likely.argmax()]
        return Estimates(*told)

    def _half_widths(self, error: float, likelihood: Floats, repeated: Floats | None) -> Floats:
        """Half the widths of intervals whose error rates are 1 / (1 + draws), 2 / (1 + draws) and so on.

        ``likelihood`` (k,) is the restricted log-likelihood of each share below the largest one.
        """
        near = self.null[likelihood >= -_NEAR].max(0)
        widths: Floats = error * near[::-1]
        if repeated is None or len(repeated) < 2:
            return widths
        seeds = (repeated @ self.weights).std(ddof=1) / np.sqrt(len(repeated))
        own, few = self.freedom, len(repeated) - 1
        freedom = float((error**2 + seeds**2) ** 2 / (error**4 / own + seeds**4 / few))
        narrow = widths * _quantiles(freedom, len(near)) / _quantiles(own, len(near))
        narrow *= np.hypot(error, seeds) / error
        wide = np.hypot(widths, seeds * _quantiles(few, len(near)))
        return np.asarray((narrow + wide) / 2)


def _quantiles(freedom: float, count: int) -> Floats:
    """Student's two-sided quantiles (count,) of error rates 1 / (1 + count), 2 / (1 + count) and so on.

    They are interpolated between 200 rates, as exact ones take a thousand times as long.
    """
    rates = np.arange(1, count + 1) / (1 + count)
    knots = np.geomspace(rates[0], rates[-1], 200)
    return np.interp(rates, knots, stats.t.isf(knots / 2, freedom))


class Models:
    """The models of a study, each made once: cells that were measured on the same subsets share theirs."""

    def __init__(self, members: pd.DataFrame, params: Report) -> None:
        """Take the subsets' classes (``divergences.SubsetDivergences``), and the parameters."""
        self._members, self._params = members, params
        self._made: dict[tuple[bytes, ...], MixedModel] = {}

    def of(self, subsets: "pd.Index[str]", *columns: Floats) -> MixedModel:
        """The model of the effect of the first of the ``columns`` (n,) on ``subsets``, or of the mean."""
        design = np.column_stack(columns or [np.ones(len(subsets))])
        key = (design.tobytes(), *(name.encode() for name in subsets))
        if key not in self._made:
            self._made[key] = MixedModel(design, self._members.loc[subsets].to_numpy(), self._params)
        return self._made[key]
