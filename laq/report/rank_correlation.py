"""Spearman's rank correlations, plain and partial, for many pairs of variables at once.

Each has an interval (bootstrap) and a p-value (permutation). A bootstrap sample is given as weights, the
number of times that each subset was drawn. The ranks of all samples then follow from one matrix product
without sorting.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from laq.sections.report import Report

Floats = NDArray[np.float64]
_CHUNK: Final = 500  # resamples or permutations per batch; it limits memory and changes no result
_NOTHING: Final = 1e-9  # residuals of ranks below this are rounding error
_FREEDOM: Final = 3  # the fewest subsets for a correlation without covariates


@dataclass(frozen=True)
class Variables:
    """The variables ``x`` (p, n) and ``y`` (q, n) over n subsets; each x is correlated with each y.

    Partial correlations hold ``covariates`` (c, n) fixed; c = 0 stands for plain ones.
    """

    x: Floats
    y: Floats
    covariates: Floats

    @property
    def n(self) -> int:
        """The number of subsets."""
        return int(self.x.shape[1])

    @property
    def few(self) -> bool:
        """Whether there are too few subsets for a correlation."""
        return self.n < _FREEDOM + (len(self.covariates) + 1 if len(self.covariates) else 0)


def correlate(variables: Variables, weights: Floats | None = None) -> Floats:
    """Spearman's rho (b, p, q), where subset i counts ``weights[:, i]`` times; by default each counts once.

    With covariates it is the partial correlation: the ranks of both variables are replaced by their residuals
    from a linear regression on the ranks of the covariates (Conover, Practical Nonparametric Statistics,
    5.4). It is NaN if a variable is constant or fully explained by the covariates.
    """
    weights = np.ones((1, variables.n)) if weights is None else weights
    if variables.few:
        return np.full((len(weights), len(variables.x), len(variables.y)), np.nan)
    x, y = _residuals(variables, weights)
    return np.asarray(x.transpose(1, 0, 2) @ y.transpose(1, 2, 0))


def bootstrap_samples(variables: Variables, params: Report) -> Floats:
    """Correlations (b, p, q) in bootstrap samples of the subsets, which are the same for all pairs."""
    rng = np.random.default_rng(params.seed)
    shares = np.full(variables.n, 1 / variables.n)
    counts = [rng.multinomial(variables.n, shares, size) for size in _chunks(params.bootstrap_samples)]
    return np.concatenate([correlate(variables, drawn.astype(np.float64)) for drawn in counts])


def interval(samples: Floats, params: Report) -> tuple[Floats, Floats]:
    """The percentile interval of bootstrap samples (b, …); samples that are NaN are left out."""
    tail = (1 - params.confidence) / 2
    flat = samples.reshape(len(samples), -1)
    low, high = np.full((2, flat.shape[1]), np.nan)
    for place, column in enumerate(flat.T):
        if (defined := column[~np.isnan(column)]).size:
            low[place], high[place] = np.quantile(defined, [tail, 1 - tail])
    return low.reshape(samples.shape[1:]), high.reshape(samples.shape[1:])


def permutation_p_values(variables: Variables, params: Report) -> Floats:
    """Two-sided p-values (p, q) by permutation of the subsets.

    By Freedman and Lane's method (1983) the residuals of y, given the covariates, are shuffled over the
    subsets, added back and regressed on the covariates again. Without covariates this is the ordinary
    permutation test of Spearman's rho.
    """
    observed: Floats = correlate(variables)[0]
    if variables.few:
        return observed
    x, y = (ranks[:, 0] for ranks in _residuals(variables, np.ones((1, variables.n))))
    basis = _basis(variables.covariates, np.ones((1, variables.n)))[:, 0]
    rng, extreme = np.random.default_rng(params.seed), np.zeros(observed.shape)
    for size in _chunks(params.permutations):
        # Shuffling x and the covariates by a permutation equals shuffling y by its inverse, and copies less.
        order = rng.permuted(np.broadcast_to(np.arange(variables.n), (size, variables.n)), axis=1)
        left = np.sqrt(1 - (np.tensordot(basis[:, order], y, (2, 1)) ** 2).sum(0).clip(max=1))
        shuffled = np.abs(np.tensordot(x[:, order], y, (2, 1)))
        extreme += (shuffled >= (np.abs(observed)[:, None] - _NOTHING) * left).sum(1)
    return np.where(np.isnan(observed), np.nan, (1 + extreme) / (1 + params.permutations))


def relabelling_p_values(variables: Variables, null: Floats) -> Floats:
    """Two-sided p-values (q,) of the first x against ``null`` (k, n), its values after permuting classes."""
    observed: Floats = correlate(variables)[0, 0]
    if variables.few:
        return observed
    once = np.ones((1, variables.n))
    y = _residuals(variables, once)[1][:, 0]
    ranks = stats.rankdata(null, axis=1) - (variables.n + 1) / 2
    found = np.abs(_normalised(_project_out(ranks, _basis(variables.covariates, once)[:, 0][:, None])) @ y.T)
    extreme = (found >= np.abs(observed) - _NOTHING).sum(0)  # a constant row has no rho and is not extreme
    return np.where(np.isnan(observed), np.nan, (1 + extreme) / (1 + len(null)))


def _residuals(variables: Variables, weights: Floats) -> tuple[Floats, Floats]:
    """The residuals of the ranks of x (p, b, n) and y (q, b, n), scaled to length 1: rho is their product."""
    basis = _basis(variables.covariates, weights)
    x, y = (
        _normalised(_project_out(_ranks(values, weights), basis)) for values in (variables.x, variables.y)
    )
    return x, y


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Centred mid-ranks (v, b, n) of ``values`` (v, n), times the square root of the weights."""
    below = values[:, :, None] < values[:, None, :]
    same = values[:, :, None] == values[:, None, :]
    return np.asarray(np.sqrt(weights) * (weights @ (below + same / 2) - values.shape[1] / 2))


def _basis(covariates: Floats, weights: Floats) -> Floats:
    """The covariates' ranks, made orthonormal (c, b, n) by the Gram-Schmidt process.

    A covariate that is constant or explained by the others becomes zeros.
    """
    found: list[Floats] = []
    for ranks in _ranks(covariates, weights) if len(covariates) else ():
        found.append(np.nan_to_num(_normalised(_project_out(ranks, np.array(found)))))
    return np.array(found) if found else np.zeros((0, *weights.shape))


def _project_out(ranks: Floats, basis: Floats) -> Floats:
    """``ranks`` (…, b, n) without their projections on ``basis`` (c, b, n)."""
    for direction in basis:
        ranks = ranks - (ranks * direction).sum(-1, keepdims=True) * direction
    return ranks


def _normalised(ranks: Floats) -> Floats:
    """The ranks scaled to length 1; NaN if their length is 0 up to rounding."""
    length = np.linalg.norm(ranks, axis=-1, keepdims=True)
    nothing = length <= _NOTHING * ranks.shape[-1] ** 1.5
    return np.where(nothing, np.nan, ranks / np.where(nothing, 1, length))


def _chunks(total: int) -> Iterator[int]:
    for begin in range(0, total, _CHUNK):
        yield min(_CHUNK, total - begin)
