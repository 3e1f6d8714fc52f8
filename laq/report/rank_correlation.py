"""Rank correlations, plain and partial, of many pairs at once: how sure, and how likely by chance.

A resample is a weight for every subset, how often it was drawn; the ranks of all resamples are then one
matrix product, without sorting any of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from laq.params import Report

Floats = NDArray[np.float64]
_CHUNK: Final = 500  # resamples or permutations worked on at once: memory, not results
_NOTHING: Final = 1e-9  # what is left of a constant's ranks, or of ranks that others explain
_FREEDOM: Final = 3  # subsets that a correlation needs, and one more for everything held


@dataclass(frozen=True)
class Sides:
    """Over n subsets, each of ``x`` (p, n) is correlated with each of ``y`` (q, n), ``held`` (c, n) fixed."""

    x: Floats
    y: Floats
    held: Floats

    @property
    def n(self) -> int:
        """How many subsets."""
        return int(self.x.shape[1])

    @property
    def few(self) -> bool:
        """Whether there are too few subsets to say anything."""
        return self.n < _FREEDOM + (len(self.held) + 1 if len(self.held) else 0)


def correlate(sides: Sides, weights: Floats | None = None) -> Floats:
    """Spearman's rho (b, p, q) with every subset taken ``weights`` (b, n) times, by default once.

    Where something is held, the partial one: ranks of both sides are replaced by their residuals
    from a linear regression on the ranks of ``held`` (Conover, Practical Nonparametric Statistics,
    5.4). NaN where a side is constant, or is explained by what is held.
    """
    weights = np.ones((1, sides.n)) if weights is None else weights
    if sides.few:
        return np.full((len(weights), len(sides.x), len(sides.y)), np.nan)
    x, y = _residuals(sides, weights)
    return np.asarray(x.transpose(1, 0, 2) @ y.transpose(1, 2, 0))


def resampled(sides: Sides, params: Report) -> Floats:
    """``correlate`` of bootstrap samples of the subsets (b, p, q), the same ones for all pairs."""
    rng = np.random.default_rng(params.seed)
    shares = np.full(sides.n, 1 / sides.n)
    counts = [rng.multinomial(sides.n, shares, size) for size in _chunks(params.bootstrap_samples)]
    return np.concatenate([correlate(sides, drawn.astype(np.float64)) for drawn in counts])


def interval(samples: Floats, params: Report) -> tuple[Floats, Floats]:
    """The percentile interval of bootstrap samples (b, …); those that are undefined are left out."""
    tail = (1 - params.confidence) / 2
    flat = samples.reshape(len(samples), -1)
    low, high = np.full((2, flat.shape[1]), np.nan)
    for place, column in enumerate(flat.T):
        if (defined := column[~np.isnan(column)]).size:
            low[place], high[place] = np.quantile(defined, [tail, 1 - tail])
    return low.reshape(samples.shape[1:]), high.reshape(samples.shape[1:])


def p_values(sides: Sides, params: Report) -> Floats:
    """Two-sided p-values (p, q) by permutation.

    Freedman and Lane (1983): the residuals of y, given what is held, are shuffled over the subsets,
    added back and regressed on what is held once more. With nothing held this is the ordinary
    permutation test of Spearman's rho.
    """
    observed: Floats = correlate(sides)[0]
    if sides.few:
        return observed
    x, y = (side[:, 0] for side in _residuals(sides, np.ones((1, sides.n))))
    basis = _basis(sides.held, np.ones((1, sides.n)))[:, 0]
    rng, extreme = np.random.default_rng(params.seed), np.zeros(observed.shape)
    for size in _chunks(params.permutations):
        # Shuffling x and what is held alike is shuffling y the other way round: no copy for each y.
        order = rng.permuted(np.broadcast_to(np.arange(sides.n), (size, sides.n)), axis=1)
        left = np.sqrt(1 - (np.tensordot(basis[:, order], y, (2, 1)) ** 2).sum(0).clip(max=1))
        shuffled = np.abs(np.tensordot(x[:, order], y, (2, 1)))
        extreme += (shuffled >= (np.abs(observed)[:, None] - _NOTHING) * left).sum(1)
    return np.where(np.isnan(observed), np.nan, (1 + extreme) / (1 + params.permutations))


def p_against(sides: Sides, null: Floats) -> Floats:
    """Two-sided p-values (q,) of the first x, were it drawn from the rows of ``null`` (k, n)."""
    observed: Floats = correlate(sides)[0, 0]
    if sides.few:
        return observed
    once = np.ones((1, sides.n))
    y = _residuals(sides, once)[1][:, 0]
    ranks = stats.rankdata(null, axis=1) - (sides.n + 1) / 2
    found = np.abs(_unit(_without(ranks, _basis(sides.held, once)[:, 0][:, None])) @ y.T)
    extreme = (found >= np.abs(observed) - _NOTHING).sum(0)  # a constant row has no rho and is not extreme
    return np.where(np.isnan(observed), np.nan, (1 + extreme) / (1 + len(null)))


def _residuals(sides: Sides, weights: Floats) -> tuple[Floats, Floats]:
    """Both sides' ranks (p, b, n) and (q, b, n) without what is held, of length 1: rho is their product."""
    basis = _basis(sides.held, weights)
    x, y = (_unit(_without(_ranks(side, weights), basis)) for side in (sides.x, sides.y))
    return x, y


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Mid-ranks about their mean (v, b, n) of ``values`` (v, n), times the root of the weight."""
    below = values[:, :, None] < values[:, None, :]
    same = values[:, :, None] == values[:, None, :]
    return np.asarray(np.sqrt(weights) * (weights @ (below + same / 2) - values.shape[1] / 2))


def _basis(held: Floats, weights: Floats) -> Floats:
    """Orthonormal (c, b, n), by Gram and Schmidt; zeros where one is constant or explained by the others."""
    found: list[Floats] = []
    for ranks in _ranks(held, weights) if len(held) else ():
        found.append(np.nan_to_num(_unit(_without(ranks, np.array(found)))))
    return np.array(found) if found else np.zeros((0, *weights.shape))


def _without(ranks: Floats, basis: Floats) -> Floats:
    """What remains of ``ranks`` (…, b, n) once each of ``basis`` (c, b, n) is taken out."""
    for direction in basis:
        ranks = ranks - (ranks * direction).sum(-1, keepdims=True) * direction
    return ranks


def _unit(ranks: Floats) -> Floats:
    """Of length 1; NaN where nothing is left."""
    length = np.linalg.norm(ranks, axis=-1, keepdims=True)
    nothing = length <= _NOTHING * ranks.shape[-1] ** 1.5
    return np.where(nothing, np.nan, ranks / np.where(nothing, 1, length))


def _chunks(total: int) -> Iterator[int]:
    for begin in range(0, total, _CHUNK):
        yield min(_CHUNK, total - begin)
