"""Methods that were tried for the report's intervals and p-values, and are not in it because they fail."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from laq.report.mixed_model import SHARES, MixedModel

Floats = NDArray[np.float64]
_RESAMPLES: Final = 400
_R2_DRAWS: Final = 200
_ALPHA: Final = 0.05


@dataclass(frozen=True)
class Simulated:
    """Simulated outcomes (studies, n) without an effect, and the model that the report has of them."""

    model: MixedModel
    outcomes: Floats
    about: pd.DataFrame
    question: str
    rng: np.random.Generator

    @property
    def effects(self) -> Floats:
        """The effects (studies,) in the outcomes."""
        return np.asarray(self.outcomes @ self.model.weights)

    @property
    def squares(self) -> Floats:
        """The squared contrasts (m, studies)."""
        return np.asarray((self.model.contrasts[0].T @ self.outcomes.T) ** 2)


def METHODS(simulated: Simulated) -> Iterator[tuple[str, NDArray[np.bool_]]]:  # noqa: N802
    """The methods' names, and in which of the studies each finds an effect where there is none."""
    yield "least squares, subsets independent (t-test)", _least_squares(simulated)
    yield "REML, t distribution of n - p degrees of freedom", _reml(simulated)
    yield "REML, parametric bootstrap at the likeliest share alone", _likeliest(simulated)
    yield "shares weighted by likelihood", _weighted(simulated)
    yield "smallest of 10 p-values with Holm's correction", _holm(simulated)
    if simulated.question == "mean difference":
        yield "percentile bootstrap over subsets", _bootstrap(simulated)
    if simulated.question == "divergence":
        yield "Spearman's rho, subsets permuted", _spearman(simulated, np.ones(len(simulated.about), bool))
        chosen = (simulated.about.kind == "random").to_numpy()
        yield "the same, random subsets alone", _spearman(simulated, chosen)


def _least_squares(simulated: Simulated) -> NDArray[np.bool_]:
    model = simulated.model
    variance = simulated.squares.sum(0) / model.freedom * (model.weights @ model.weights)
    return np.asarray(np.abs(simulated.effects) / np.sqrt(variance) > stats.t.isf(_ALPHA / 2, model.freedom))


def _reml(simulated: Simulated) -> NDArray[np.bool_]:
    errors, _ = simulated.model.fit(simulated.squares)
    return np.asarray(np.abs(simulated.effects) / errors > stats.t.isf(_ALPHA / 2, simulated.model.freedom))


def _likeliest(simulated: Simulated) -> NDArray[np.bool_]:
    errors, unlikely = simulated.model.fit(simulated.squares)
    bounds = np.quantile(simulated.model.null, 1 - _ALPHA, axis=1)[unlikely.argmin(0)]
    return np.asarray(np.abs(simulated.effects) / errors > bounds)


def _weighted(simulated: Simulated) -> NDArray[np.bool_]:
    """The former report's way: a t distribution for each share, weighted by its restricted likelihood."""
    model = simulated.model
    _, unlikely = model.fit(simulated.squares)
    variance = unlikely / unlikely.min(0)
    weights = variance ** (-model.freedom / 2) * np.gradient(SHARES)[:, None]
    each = np.array([_error_at(model, simulated.squares, place) for place in range(len(SHARES))])
    tails = 2 * stats.t.sf(np.abs(simulated.effects) / each, model.freedom)
    return np.asarray((weights * tails).sum(0) / weights.sum(0) <= _ALPHA)


def _error_at(model: MixedModel, squares: Floats, place: int) -> Floats:
    """The standard error (studies,) if the classes' share were that of ``SHARES[place]``."""
    variances = 1 - SHARES[place] + SHARES[place] * model.contrasts[1]
    return np.asarray(np.sqrt((1 / variances) @ squares / model.freedom * model.effect_variances[place]))


def _holm(simulated: Simulated) -> NDArray[np.bool_]:
    """Whether any of 10 studies' p-values is below the level divided by 10; a study counts in one family."""
    p_values = simulated.model.estimate(simulated.outcomes).p_value
    families = p_values[: len(p_values) // 10 * 10].reshape(-1, 10).min(1) <= _ALPHA / 10
    return np.repeat(families, 10)


def _bootstrap(simulated: Simulated) -> NDArray[np.bool_]:
    n = simulated.outcomes.shape[1]
    drawn = simulated.rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES) / n
    low, high = np.quantile(drawn @ simulated.outcomes.T, (_ALPHA / 2, 1 - _ALPHA / 2), axis=0)
    return np.asarray((low > 0) | (high < 0))


def _spearman(simulated: Simulated, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    x = simulated.about.divergence.to_numpy()[chosen]
    ranks = stats.rankdata(simulated.outcomes[:, chosen], axis=1)
    rho = np.corrcoef(np.vstack([stats.rankdata(x), ranks]))[0, 1:]
    freedom = len(x) - 2
    return np.asarray(np.abs(rho) * np.sqrt(freedom / (1 - rho**2)) > stats.t.isf(_ALPHA / 2, freedom))


def r2_intervals(
    model: MixedModel, outcomes: Floats, sizes: Floats, rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Which intervals for R² over disjoint classes, by a parametric bootstrap, miss its expectation.

    ``outcomes`` (studies, n) are drawn from one truth, so that their mean R² is the expectation.
    """
    left = _prediction_errors(model, sizes)
    observed = _r2(outcomes, left)
    expected, missed = observed.mean(), np.empty((3, len(outcomes)), bool)
    slopes, part = np.linalg.pinv(model.design), model.members / model.members.sum(1, keepdims=True)
    part = part / np.sqrt((part**2).sum(1).mean())
    _, unlikely = model.fit((model.contrasts[0].T @ outcomes.T) ** 2)
    for place, outcome in enumerate(outcomes):
        best = int(unlikely[:, place].argmin())
        squares = (model.contrasts[0].T @ outcome) ** 2
        scale = np.sqrt((squares / (1 - SHARES[best] + SHARES[best] * model.contrasts[1])).mean())
        drawn = np.sqrt(SHARES[best]) * rng.normal(size=(_R2_DRAWS, part.shape[1])) @ part.T
        drawn += np.sqrt(1 - SHARES[best]) * rng.normal(size=(_R2_DRAWS, len(part)))
        samples = _r2(model.design @ (slopes @ outcome) + scale * drawn, left)
        low, high = np.quantile(samples, (_ALPHA / 2, 1 - _ALPHA / 2))
        reflected = (2 * observed[place] - high, 2 * observed[place] - low)
        missed[0, place] = not low <= expected <= high
        missed[1, place] = not reflected[0] <= expected <= reflected[1]
        missed[2, place] = abs(observed[place] - expected) > stats.norm.isf(_ALPHA / 2) * samples.std()
    for name, wrong in zip(("percentiles", "reflected percentiles", "normal"), missed, strict=True):
        yield f"R², {name} of a parametric bootstrap", wrong


def _prediction_errors(model: MixedModel, sizes: Floats) -> Floats:
    """The matrix (n, n) that turns outcomes into errors of predictions from subsets that share no class."""
    variables = np.column_stack([np.log2(sizes), model.design[:, 0]])
    disjoint = (model.members @ model.members.T) == 0
    predicting = np.zeros(disjoint.shape)
    for place, training in enumerate(disjoint):
        middle = variables[training].mean(0)
        slopes = np.linalg.pinv(variables[training] - middle, rcond=1e-10)
        centred = np.eye(training.sum()) - 1 / training.sum()
        predicting[place, training] = 1 / training.sum() + (variables[place] - middle) @ slopes @ centred
    return np.asarray(np.eye(len(disjoint)) - predicting)


def _r2(outcomes: Floats, left: Floats) -> Floats:
    """R² (studies,) of outcomes (studies, n)."""
    spread = ((outcomes - outcomes.mean(1, keepdims=True)) ** 2).sum(1)
    return np.asarray(1 - ((outcomes @ left.T) ** 2).sum(1) / spread)
