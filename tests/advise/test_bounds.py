"""Bounds of paired losses and of accuracies: by closed forms, by counting all samples, and how they shrink."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from laq.advise.bounds import Flips, accuracy, images_for_accuracy, images_for_loss, interval, most_lost


def test_without_any_flip_the_bound_is_the_exact_one_of_no_event() -> None:
    for n, alpha in ((50, 0.05), (1000, 0.025), (1000, 0.008)):
        exact, score = 1 - alpha ** (1 / n), norm.isf(alpha) ** 2 / (n + norm.isf(alpha) ** 2)
        assert most_lost(Flips(0, 0, n), alpha) == pytest.approx(max(exact, score))


def test_with_many_flips_the_bound_is_that_of_a_mean() -> None:
    lost, gained, n = 400, 300, 10_000
    mean, error = (lost - gained) / n, np.sqrt((lost + gained) / n - ((lost - gained) / n) ** 2) / np.sqrt(n)
    assert most_lost(Flips(lost, gained, n), 0.05) == pytest.approx(mean + norm.isf(0.05) * error, rel=0.01)
    low, high = interval(Flips(lost, gained, n), 0.025)
    assert (low, high) == pytest.approx(
        (mean - norm.isf(0.025) * error, mean + norm.isf(0.025) * error), rel=0.02
    )


def test_the_score_interval_is_tangos() -> None:
    flips = Flips(7, 2, 40)
    high = interval(flips, 0.025)[1]
    # At the bound the score statistic is the quantile, whose variance has the restricted likelihood's maximum.
    q = np.linspace(1e-6, 0.5, 200_001)
    likelihood = 7 * np.log(q + high) + 2 * np.log(q) + 31 * np.log(np.maximum(1 - 2 * q - high, 1e-300))
    best = q[likelihood.argmax()]
    statistic = (7 - 2 - 40 * high) / np.sqrt(40 * (2 * best + high * (1 - high)))
    assert statistic == pytest.approx(-norm.isf(0.025), abs=1e-3)


@pytest.mark.parametrize("lost", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("gained", [0.0, 0.02])
def test_bounds_shrink_with_more_images_and_with_less_confidence(lost: float, gained: float) -> None:
    found = [most_lost(Flips(lost * n, gained * n, n), 0.05) for n in (100, 200, 500, 2000, 10_000)]
    assert found == sorted(found, reverse=True)
    assert found[-1] > lost - gained
    assert most_lost(Flips(lost * 500, gained * 500, 500), 0.2) < found[2]


@pytest.mark.parametrize("n", [150, 500])
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_of_all_samples_few_have_a_bound_below_the_true_loss(n: int, alpha: float) -> None:
    most = 45
    bounds = np.array([[most_lost(Flips(b, c, n), alpha) for c in range(most)] for b in range(most)])
    for loss, gained in ((0.01, 0), (0.01, 0.01), (0.005, 0.002), (0.03, 0.02)):
        lost, counts = loss + gained, np.arange(most)
        first = binom.pmf(counts, n, lost)[:, None]
        second = np.array([binom.pmf(counts, n - b, gained / (1 - lost)) for b in range(most)])
        broken = (first * second)[bounds < loss - 1e-12].sum()
        assert broken <= 1.05 * alpha


def test_accuracies_have_the_exact_interval_of_scipy() -> None:
    for correct, n in ((0, 20), (17, 20), (20, 20), (423, 500)):
        exact = binomtest(correct, n).proportion_ci(0.9, method="exact")
        assert accuracy(correct, n, 0.05) == pytest.approx((exact.low, exact.high))


def test_the_images_that_are_needed_are_as_many_as_make_the_bound_hold() -> None:
    needed = images_for_loss(Flips(3, 1, 200), 0.05, 0.015)
    assert needed
    assert most_lost(Flips(0.015 * needed, 0.005 * needed, needed), 0.05) <= 0.015
    assert most_lost(Flips(0.015 * 0.9 * needed, 0.005 * 0.9 * needed, 0.9 * needed), 0.05) > 0.015
    assert images_for_loss(Flips(3, 1, 200), 0.05, 0.01) is None
    assert images_for_loss(Flips(0, 0, 200), 0.05, 0.0) is None
    needed = images_for_accuracy(180, 200, 0.05, 0.88)
    assert needed
    assert accuracy(0.9 * needed, needed, 0.05)[0] >= 0.88 > accuracy(0.81 * needed, 0.9 * needed, 0.05)[0]
    assert images_for_accuracy(180, 200, 0.05, 0.9) is None
