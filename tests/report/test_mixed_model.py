"""Means of differences between subsets that share classes: against closed forms, and on planted effects."""

import numpy as np
import pytest
from scipy import stats

from laq.report.mixed_model import mixed_model
from laq.report.paired_tests import paired_effects
from laq.sections.report import Report

PARAMS = Report(bootstrap_samples=200, permutations=199, confidence=0.95, seed=0)


def drawn(subsets: int, classes: int, sizes: tuple[int, ...] = (5, 10, 20), seed: int = 0) -> np.ndarray:
    """Members (subsets, classes) of random subsets of ``sizes`` in turn."""
    rng, members = np.random.default_rng(seed), np.zeros((subsets, classes))
    for place, row in enumerate(members):
        row[rng.choice(classes, sizes[place % len(sizes)], replace=False)] = 1
    return members


def simulated(members: np.ndarray, share: float, count: int, seed: int = 1) -> np.ndarray:
    """Differences (count, subsets) about 0, of variance 1 on average, ``share`` of it the classes'."""
    rng, part = np.random.default_rng(seed), members / members.sum(1, keepdims=True)
    classes = rng.normal(size=(count, members.shape[1])) @ part.T / np.sqrt((part**2).sum(1).mean())
    own = rng.normal(size=(count, len(members)))
    return np.asarray(np.sqrt(share) * classes + np.sqrt(1 - share) * own)


def test_subsets_that_share_nothing_have_the_t_test() -> None:
    members = np.kron(np.eye(8), np.ones(3))
    differences = 0.4 + np.random.default_rng(0).normal(size=(5, 8))
    found = mixed_model(differences, members, PARAMS)
    oracle = stats.ttest_1samp(differences, 0, axis=1)
    interval = oracle.confidence_interval(0.95)
    np.testing.assert_allclose(found.p_value, oracle.pvalue)
    np.testing.assert_allclose([found.low, found.high], interval)


def test_one_subset_again_and_again_is_one_observation() -> None:
    """All of the same classes: what these have in common no number of subsets takes out."""
    differences = 1 + 0.1 * np.random.default_rng(0).normal(size=(1, 50))
    alone = mixed_model(differences, np.eye(50), PARAMS)
    together = mixed_model(differences, np.ones((50, 1)), PARAMS)
    assert alone.p_value[0] < 1e-6
    assert together.high[0] - together.low[0] > 5 * (alone.high[0] - alone.low[0])


def test_false_alarms_where_classes_have_effects_and_where_they_have_none() -> None:
    members = drawn(108, 100)
    alarms, naive = {}, {}
    for share in (0.0, 0.3, 0.7):
        differences = simulated(members, share, 1000)
        found = mixed_model(differences, members, PARAMS)
        alarms[share] = (found.p_value < 0.05).mean()
        naive[share] = (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean()
        np.testing.assert_array_equal(found.p_value < 0.05, found.low * found.high > 0)
    assert max(alarms.values()) <= stats.binom.ppf(0.999, 1000, 0.06) / 1000
    assert naive[0.0] < 0.08
    assert naive[0.7] > 0.3


def test_planted_effects_are_found_and_covered() -> None:
    members = drawn(108, 100, seed=2)
    found = mixed_model(2.0 + simulated(members, 0.5, 500), members, PARAMS)
    assert ((found.low <= 2) & (found.high >= 2)).mean() >= 0.93
    assert (found.p_value < 0.05).mean() > 0.99


def test_units_and_direction_do_not_matter() -> None:
    members = drawn(12, 30, (4,))
    differences = 0.3 + simulated(members, 0.5, 4)
    found, turned = (mixed_model(sign * differences, members, PARAMS) for sign in (1, -20))
    np.testing.assert_allclose(turned.p_value, found.p_value)
    np.testing.assert_allclose(turned.low, -20 * found.high, rtol=1e-6)


@pytest.mark.parametrize("differences", [np.full((1, 4), 2.0), np.array([[1.0]]), np.zeros((0, 5))])
def test_where_nothing_varies_nothing_is_said(differences: np.ndarray) -> None:
    found = mixed_model(differences, np.eye(differences.shape[1]), PARAMS)
    assert np.isnan(found.p_value).all()
    assert np.isnan(found.low).all()
    assert len(found.p_value) == len(differences)


def test_the_mean_is_the_one_of_the_paired_effects() -> None:
    members = drawn(20, 40, (5,))
    differences = 1 + simulated(members, 0.4, 3)
    found, paired = mixed_model(differences, members, PARAMS), paired_effects(differences, PARAMS)
    np.testing.assert_allclose((found.low + found.high) / 2, paired.effect)
