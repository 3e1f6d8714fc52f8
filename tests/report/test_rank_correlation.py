"""Rank correlations and paired tests against scipy, closed forms, and studies with and without an effect."""

import numpy as np
import pytest
from scipy import stats

from laq.report.divergences import relabelled_medians
from laq.report.paired_tests import holm, paired_effects, sign_flip, with_holm
from laq.report.rank_correlation import (
    Variables,
    bootstrap_samples,
    correlate,
    interval,
    permutation_p_values,
    relabelling_p_values,
)
from laq.sections.report import Report
from tests.studies import made_up_matrix

PARAMS = Report(bootstrap_samples=500, permutations=999, confidence=0.95, seed=0)
NOTHING = np.zeros((0, 30))


def draws(n: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variables x (2, n) and y (3, n) with ties, and two columns that go with both."""
    rng = np.random.default_rng(seed)
    held = rng.normal(size=(2, n))
    x = rng.normal(size=(2, n)) + held
    return x, (rng.normal(size=(3, n)) + x[:1] + held[1]).round(1), held


def residuals(values: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Of ranks, regressed on the ranks of what is held by least squares."""
    design = np.vstack([np.ones(len(values)), stats.rankdata(held, axis=1)]).T
    ranks = stats.rankdata(values)
    return np.asarray(ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0])


def plain(x: np.ndarray, y: np.ndarray, held: np.ndarray | None = None) -> Variables:
    return Variables(np.atleast_2d(x), np.atleast_2d(y), np.zeros((0, x.shape[-1])) if held is None else held)


def inside(count: int, trials: int, rate: float) -> bool:
    """Whether so many of the trials are what the rate may give, 999 times in 1000."""
    low, high = stats.binom.interval(0.999, trials, rate)
    return bool(low <= count <= high)


def test_rho_is_scipys_for_every_pair() -> None:
    x, y, _ = draws()
    found = correlate(plain(x, y))[0]
    expected = [[stats.spearmanr(a, b).statistic for b in y] for a in x]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_partial_rho_of_one_held_is_the_closed_form() -> None:
    x, y, held = draws()
    found = correlate(plain(x, y, held[:1]))[0, 1, 2]
    xy, xz, yz = (
        stats.spearmanr(a, b).statistic for a, b in ((x[1], y[2]), (x[1], held[0]), (y[2], held[0]))
    )
    assert found == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))


def test_partial_rho_of_two_held_is_the_correlation_of_residuals() -> None:
    x, y, held = draws()
    found = correlate(plain(x, y, held))[0]
    expected = [[np.corrcoef(residuals(a, held), residuals(b, held))[0, 1] for b in y] for a in x]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(found - correlate(plain(x, y))[0]).max() > 0.1


def test_what_is_held_twice_is_held_once() -> None:
    x, y, held = draws()
    twice = np.vstack([held, held[:1], np.ones((1, 30))])
    np.testing.assert_allclose(correlate(plain(x, y, twice)), correlate(plain(x, y, held)), atol=1e-9)


@pytest.mark.parametrize("held", ["nothing", "two"])
def test_weights_are_resamples(held: str) -> None:
    x, y, z = draws()
    drawn = np.random.default_rng(3).integers(30, size=(5, 30))
    weights = np.array([np.bincount(row, minlength=30) for row in drawn], dtype=float)
    fixed = z if held == "two" else NOTHING
    found = correlate(Variables(x, y, fixed), weights)
    for sample, row in zip(found, drawn, strict=True):
        expected = correlate(Variables(x[:, row], y[:, row], fixed[:, row]))[0]
        np.testing.assert_allclose(sample, expected, atol=1e-9)
        if held == "nothing":
            assert sample[0, 0] == pytest.approx(stats.spearmanr(x[0, row], y[0, row]).statistic)


def test_nothing_is_said_of_constants_and_of_too_few() -> None:
    x, y, held = draws()
    constant = plain(x, np.vstack([np.zeros(30), y[:1]]))
    assert np.isnan(correlate(constant)[0]).tolist() == [[True, False], [True, False]]
    assert np.isnan(permutation_p_values(constant, PARAMS)).tolist() == [[True, False], [True, False]]
    explained = Variables(held[:1], y, held)
    assert np.isnan(correlate(explained)).all()
    assert np.isnan(permutation_p_values(explained, PARAMS)).all()
    few = Variables(x[:, :5], y[:, :5], held[:, :5])
    assert np.isnan(correlate(few)).all()
    assert np.isnan(permutation_p_values(few, PARAMS)).all()
    assert np.isnan(interval(bootstrap_samples(few, PARAMS), PARAMS)).all()
    assert not np.isnan(correlate(plain(x[:, :3], np.array([1.0, 2, 4])))).any()


def test_permutation_p_values_are_scipys() -> None:
    x, y, held = draws(12)
    y = y + np.array([[0], [5], [0]]) * np.random.default_rng(5).normal(size=12)
    many = PARAMS.model_copy(update={"permutations": 19999})
    found = permutation_p_values(plain(x, y), many)
    expected = [[stats.spearmanr(a, b).pvalue for b in y] for a in x]
    np.testing.assert_allclose(found, expected, atol=0.015)
    # With z the two are no longer exact, and near the t test of the residuals.
    rho = correlate(Variables(x, y, held))[0]
    t = rho * np.sqrt((12 - 4) / (1 - rho**2))
    np.testing.assert_allclose(
        permutation_p_values(Variables(x, y, held), many), 2 * stats.t.sf(np.abs(t), 8), atol=0.03
    )


def test_freedman_and_lane_is_the_loop_written_out() -> None:
    x, y, held = draws(9, seed=4)
    few = PARAMS.model_copy(update={"permutations": 400})
    rng, extreme = np.random.default_rng(0), 0
    design = np.vstack([np.ones(9), stats.rankdata(held, axis=1)]).T
    project = design @ np.linalg.pinv(design)
    ex, ey = residuals(x[0], held), residuals(y[0], held)
    observed = abs(np.corrcoef(ex, ey)[0, 1])
    for order in rng.permuted(np.broadcast_to(np.arange(9), (400, 9)), axis=1):
        star = np.empty(9)
        star[order] = ey
        star = star + project @ stats.rankdata(y[0])
        extreme += abs(np.corrcoef(ex, star - project @ star)[0, 1]) >= observed - 1e-9
    assert permutation_p_values(Variables(x[:1], y[:1], held), few)[0, 0] == pytest.approx(
        (1 + extreme) / 401
    )
    assert 0.01 < extreme / 400 < 0.9


def test_intervals_cover_at_about_their_rate() -> None:
    rng, trials, n = np.random.default_rng(1), 300, 40
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's rho of a Gaussian pair with r = 0.6
    hits = 0
    for _ in range(trials):
        x = rng.normal(size=n)
        variables = plain(x, 0.6 * x + 0.8 * rng.normal(size=n))
        low, high = interval(
            bootstrap_samples(variables, PARAMS.model_copy(update={"bootstrap_samples": 200})), PARAMS
        )
        hits += bool(low[0, 0] <= truth <= high[0, 0])
    assert inside(hits, trials, 0.93)  # percentile intervals of 40 are a little narrow


@pytest.mark.parametrize("held", ["nothing", "two"])
def test_false_alarms_of_rho_come_at_their_rate(held: str) -> None:
    rng, trials, n = np.random.default_rng(2), 400, 25
    quick = PARAMS.model_copy(update={"permutations": 199})
    alarms = 0
    for _ in range(trials):
        z = rng.normal(size=(1, n))
        # What is held makes both: without holding it, every trial would raise an alarm.
        variables = Variables(2 * z + rng.normal(size=(1, n)), 2 * z + rng.normal(size=(1, n)), z)
        if held == "nothing":
            variables = plain(rng.normal(size=n), rng.normal(size=n))
        alarms += bool(permutation_p_values(variables, quick)[0, 0] <= 0.05)
    assert inside(alarms, trials, 0.05)


def test_sign_flips_are_scipys_permutation_test() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.4, 1, size=(3, 10))
    expected = [
        stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        for row in differences
    ]
    np.testing.assert_allclose(sign_flip(differences, PARAMS), expected, atol=1e-12)
    more = rng.normal(0.3, 1, size=(2, 40))
    many = PARAMS.model_copy(update={"permutations": 49999})
    expected = [stats.ttest_1samp(row, 0).pvalue for row in more]
    np.testing.assert_allclose(sign_flip(more, many), expected, rtol=0.15, atol=0.002)
    assert sign_flip(np.zeros((1, 40)), PARAMS).tolist() == [1]


def test_effects_are_means_over_deviations() -> None:
    differences = np.random.default_rng(0).normal(1, 2, size=(2, 50))
    found = paired_effects(differences, PARAMS.model_copy(update={"bootstrap_samples": 5000}))
    assert found.effect == pytest.approx(differences.mean(1))
    assert found.d_z == pytest.approx(differences.mean(1) / differences.std(1, ddof=1))
    expected = [
        stats.bootstrap(
            (row,), np.mean, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        for row in differences
    ]
    assert np.column_stack([found.low, found.high]) == pytest.approx(np.array(expected), abs=0.06)
    same = paired_effects(np.full((1, 5), 2.0), PARAMS)
    assert (same.effect[0], same.low[0], same.high[0], same.p_value[0]) == (2, 2, 2, 2 / 32)
    assert np.isnan(same.d_z[0])
    alone = paired_effects(np.ones((1, 1)), PARAMS)
    assert alone.effect[0] == 1
    assert np.isnan([alone.low[0], alone.d_z[0], alone.p_value[0]]).all()


def test_paired_intervals_and_corrected_p_values_keep_their_rates() -> None:
    rng, trials, questions, n = np.random.default_rng(3), 300, 8, 30
    quick = PARAMS.model_copy(update={"permutations": 999, "bootstrap_samples": 400})
    hits, alarms = 0, 0
    for _ in range(trials):
        found = paired_effects(rng.normal(size=(questions, n)), quick)
        hits += bool(found.low[0] <= 0 <= found.high[0])
        alarms += bool((holm(found.p_value) <= 0.05).any())
    assert inside(hits, trials, 0.94)
    assert inside(alarms, trials, 0.05)


def test_a_planted_effect_is_found() -> None:
    rng = np.random.default_rng(4)
    p_value = [paired_effects(rng.normal(1, 1, size=(1, 30)), PARAMS).p_value[0] for _ in range(50)]
    assert np.mean(np.array(p_value) <= 0.05) > 0.95


def test_holm_is_the_worked_example() -> None:
    found = holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    assert found[[0, 1, 3, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(found[2])
    assert holm(np.array([0.6, 0.9])).tolist() == [1, 1]
    assert len(holm(np.array([]))) == 0


def test_families_are_corrected_apart() -> None:
    rows = [{"question": q, "p_value": p} for q, p in (("a", 0.01), ("a", 0.02), ("b", 0.03))]
    assert with_holm(rows, ["question"]).p_holm.tolist() == [0.02, 0.02, 0.03]
    assert with_holm([], ["question"]).empty


def test_relabelling_is_a_permutation_of_the_matrix() -> None:
    matrix = made_up_matrix(12)
    subsets = [[0, 1, 2, 3], [4, 5, 6], [2, 3, 7, 8], [3, 2, 1, 0]]
    found = relabelled_medians(matrix, subsets, 120, seed=5)
    rng = np.random.default_rng(5)
    first = rng.permuted(np.broadcast_to(np.arange(12), (50, 12)), axis=1)[7]
    moved = matrix[np.ix_(first, first)]
    expected = [np.median(moved[np.ix_(s, s)][np.triu_indices(len(s), 1)]) for s in subsets]
    assert found.shape == (120, 4)
    assert found[7] == pytest.approx(expected)
    assert (found[:, 0] == found[:, 3]).all()
    assert len(np.unique(found[:, 0])) > 50


def test_relabelled_classes_know_what_permuted_subsets_do_not() -> None:
    """Drops that come from the classes alone, whatever their divergence: subsets that share them are alike."""
    rng, trials, classes, n = np.random.default_rng(6), 150, 24, 60
    quick = PARAMS.model_copy(update={"permutations": 199})
    alarms = dict.fromkeys(("classes", "subsets"), 0)
    for trial in range(trials):
        matrix = made_up_matrix(classes, seed=trial)
        # Few classes and many subsets of them: what one has, many have.
        subsets = [rng.choice(classes, 4, replace=False).tolist() for _ in range(n)]
        hard = rng.normal(size=classes)
        y = np.array([hard[s].mean() for s in subsets])
        x = np.array([np.median(matrix[np.ix_(s, s)][np.triu_indices(4, 1)]) for s in subsets])
        variables = plain(x, y)
        null = relabelled_medians(matrix, subsets, 199, seed=trial)
        alarms["classes"] += bool(relabelling_p_values(variables, null)[0] <= 0.05)
        alarms["subsets"] += bool(permutation_p_values(variables, quick)[0, 0] <= 0.05)
    assert inside(alarms["classes"], trials, 0.05)
    assert alarms["subsets"] > 2 * alarms["classes"]


def test_p_against_holds_fixed_what_is_held() -> None:
    rng = np.random.default_rng(0)
    x, y, held = draws()
    null = rng.normal(size=(300, 30))
    observed = abs(correlate(Variables(x[:1], y, held))[0, 0])
    far = np.array([abs(correlate(Variables(row[None], y, held))[0, 0]) for row in null])
    expected = (1 + (far >= observed).sum(0)) / 301
    np.testing.assert_allclose(relabelling_p_values(Variables(x[:1], y, held), null), expected)
    constant = np.vstack([null, np.ones((1, 30))])
    assert relabelling_p_values(Variables(x[:1], y, held), constant) == pytest.approx(expected * 301 / 302)
