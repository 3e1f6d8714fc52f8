"""Effects in subsets that share classes: against statsmodels, scipy and closed forms, and on simulated data."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

from laq.report.mixed_model import SHARES, MixedModel, Models
from tests.studies import report_params

PARAMS = report_params(draws=1999)


def drawn(subsets: int, classes: int, sizes: tuple[int, ...] = (5, 10, 20), seed: int = 0) -> np.ndarray:
    """Members (subsets, classes) of random subsets of ``sizes`` in turn."""
    rng, members = np.random.default_rng(seed), np.zeros((subsets, classes))
    for place, row in enumerate(members):
        row[rng.choice(classes, sizes[place % len(sizes)], replace=False)] = 1
    return members


def simulated(members: np.ndarray, share: float, count: int, seed: int = 1) -> np.ndarray:
    """Outcomes (count, subsets) about 0, of variance 1 on average, ``share`` of it the classes'."""
    rng, part = np.random.default_rng(seed), members / members.sum(1, keepdims=True)
    classes = rng.normal(size=(count, members.shape[1])) @ part.T / np.sqrt((part**2).sum(1).mean())
    own = rng.normal(size=(count, len(members)))
    return np.asarray(np.sqrt(share) * classes + np.sqrt(1 - share) * own)


def mean(members: np.ndarray) -> MixedModel:
    return MixedModel(np.ones((len(members), 1)), members, PARAMS)


def sloped(members: np.ndarray, seed: int = 3) -> MixedModel:
    """The model of the effect of a variable that goes with classes, where sizes are held fixed."""
    rng, sizes = np.random.default_rng(seed), members.sum(1)
    variable = members @ rng.normal(size=members.shape[1]) / sizes + 0.2 * rng.normal(size=len(members))
    return MixedModel(np.column_stack([variable, *(sizes == s for s in set(sizes))]), members, PARAMS)


def test_the_share_of_the_classes_is_that_of_statsmodels() -> None:
    """REML of the same model: crossed random effects whose design is the membership."""
    members = drawn(40, 30, (4, 8))
    model = sloped(members)
    part = members / members.sum(1, keepdims=True)
    scale = (part**2).sum(1).mean()
    for outcome in simulated(members, 0.6, 3):
        classes_of = VCSpec(["class"], [["class"]], [[part]])
        theirs = MixedLM(outcome, model.design, np.ones(40), exog_vc=classes_of).fit(reml=True)
        classes = float(theirs.vcomp[0]) * scale
        expected = classes / (classes + theirs.scale)
        found = model.estimate(outcome[None])
        assert found.class_share[0] == pytest.approx(expected, abs=np.diff(SHARES).max())
        ols = np.linalg.lstsq(model.design, outcome, rcond=None)[0]
        assert found.effect[0] == pytest.approx(ols[0])


def test_subsets_that_share_nothing_have_the_t_test() -> None:
    members = np.kron(np.eye(8), np.ones(3))
    outcomes = 0.4 + np.random.default_rng(0).normal(size=(5, 8))
    found = MixedModel(np.ones((8, 1)), members, report_params(draws=19_999)).estimate(outcomes)
    oracle = stats.ttest_1samp(outcomes, 0, axis=1)
    np.testing.assert_allclose(found.p_value, oracle.pvalue, atol=0.02)
    np.testing.assert_allclose([found.low, found.high], oracle.confidence_interval(0.95), atol=0.04)


def test_a_slope_where_subsets_share_nothing_is_the_least_squares_line() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = 0.5 * x + rng.normal(size=12)
    model = MixedModel(np.column_stack([x, np.ones(12)]), np.eye(12), report_params(draws=19_999))
    oracle, found = stats.linregress(x, y), model.estimate(y[None])
    assert found.effect[0] == pytest.approx(oracle.slope)
    assert found.p_value[0] == pytest.approx(oracle.pvalue, abs=0.02)
    half = oracle.stderr * stats.t.isf(0.025, 10)
    assert found.high[0] - found.effect[0] == pytest.approx(half, rel=0.03)


def test_one_subset_again_and_again_is_one_observation() -> None:
    """All of the same classes: what these have in common no number of subsets takes out."""
    members = np.repeat(np.eye(4), 10, axis=0)
    outcomes = np.repeat([1.0, 1.5, 0.5, 1.2], 10) + 0.1 * np.random.default_rng(0).normal(size=40)
    alone = mean(np.eye(40)).estimate(outcomes[None])
    together = mean(members).estimate(outcomes[None])
    assert together.high[0] - together.low[0] > 5 * (alone.high[0] - alone.low[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_false_alarms_and_coverage_are_near_their_rate(share: float) -> None:
    members, count = drawn(36, 60), 600
    for model in (mean(members), sloped(members)):
        noise = simulated(members, share, count)
        found = model.estimate(noise)
        alarms = int((found.p_value <= 0.05).sum())
        low, high = (stats.binom.ppf(q, count, rate) for q, rate in ((0.001, 0.025), (0.999, 0.07)))
        assert low <= alarms <= high
        np.testing.assert_array_equal(found.p_value <= 0.05, found.low * found.high > 0)
        planted = model.estimate(noise + 2 * model.design[:, 0])
        np.testing.assert_allclose(planted.low - 2, found.low, atol=1e-9)


def test_what_takes_subsets_for_independent_fails_where_classes_have_effects() -> None:
    """The reason for the model: the t-test of the same data is wrong many times as often."""
    alarms = stats.ttest_1samp(simulated(drawn(108, 100), 0.7, 500), 0, axis=1).pvalue < 0.05
    assert alarms.mean() > 0.3


def test_networks_that_all_subsets_share_widen_the_interval() -> None:
    members = drawn(36, 60)
    rng, seeds = np.random.default_rng(0), 3
    by_seed = simulated(members, 0.3, 400).reshape(400, 1, 36) + rng.normal(size=(400, seeds, 36)) * 0.1
    moved = by_seed + 0.8 * rng.normal(size=(400, seeds, 1))
    model = mean(members)
    for values in (by_seed, moved):
        found = model.estimate(values.mean(1), list(values))
        assert (found.p_value <= 0.05).mean() <= 0.09
    without = model.estimate(moved.mean(1))
    assert (without.p_value <= 0.05).mean() > 0.2
    one = model.estimate(moved[:, 0], list(moved[:, :1]))
    np.testing.assert_array_equal(one.low, model.estimate(moved[:, 0]).low)


def test_units_and_direction_do_not_matter() -> None:
    members = drawn(12, 30, (4,))
    outcomes = 0.3 + simulated(members, 0.5, 4)
    found, turned = (mean(members).estimate(sign * outcomes) for sign in (1, -20))
    np.testing.assert_allclose(turned.p_value, found.p_value)
    np.testing.assert_allclose(turned.low, -20 * found.high)


@pytest.mark.parametrize("outcomes", [np.full((1, 4), 2.0), np.array([[1.0]]), np.zeros((0, 5))])
def test_where_nothing_varies_nothing_is_said(outcomes: np.ndarray) -> None:
    found = mean(np.eye(outcomes.shape[1])).estimate(outcomes)
    assert np.isnan(found.p_value).all()
    assert np.isnan(found.low).all()
    assert len(found.p_value) == len(outcomes)


def test_a_variable_that_the_others_explain_has_no_effect() -> None:
    ones = np.ones((6, 1))
    for column in (ones, np.full((6, 1), np.nan)):
        model = MixedModel(np.column_stack([column, ones]), np.eye(6), PARAMS)
        assert np.isnan(model.estimate(np.random.default_rng(0).normal(size=(1, 6))).effect).all()


def test_models_are_made_once() -> None:
    members = pd.DataFrame(drawn(8, 20, (4,)), index=list("abcdefgh"))
    models = Models(members, PARAMS)
    some, x = pd.Index(list("abcdef")), np.arange(6.0)
    assert models.of(some) is models.of(some)
    assert models.of(some, x, np.ones(6)) is models.of(some, x, np.ones(6))
    assert models.of(some, x, np.ones(6)) is not models.of(some)
    np.testing.assert_array_equal(models.of(some[::-1]).members, members.loc[list("fedcba")])
