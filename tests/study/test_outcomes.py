"""Outcomes by hand, against closed forms and against resampling; which test images choose."""

from math import log

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import bootstrap

from laq.network.evaluation import score
from laq.study.outcomes import KEPT, OUTCOMES, PairedOutputs, measured_outcomes
from laq.study.results import judge
from laq.study.selection import choosing

CLASSES = (3, 7, 9)


def made_up(
    n: int = 400, noise: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels (n,) of the classes and others, and logits (n, 10) of a network, before and after noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=n)
    before = rng.normal(size=(n, 10)) + 2 * np.eye(10)[labels]
    after = before + noise * rng.normal(size=(n, 10))
    return torch.tensor(labels), torch.tensor(before).float(), torch.tensor(after).float()


def by_hand() -> PairedOutputs:
    """Six images of three classes: one is lost, one is gained, and one is wrong in two ways."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    before, after = np.array([0, 0, 1, 0, 0, 2]), np.array([0, 1, 1, 1, 1, 2])
    logits = tuple(log_softmax(5.0 * np.eye(3)[predicted], axis=1) for predicted in (before, after))
    return PairedOutputs(labels, (before, after), logits)


def test_outcomes_are_what_counting_gives() -> None:
    found = measured_outcomes(by_hand())
    assert set(found) == {*OUTCOMES, *(f"{name}_se" for name in OUTCOMES)}
    assert found["drop_sub_points"] == 0
    assert found["flips_lost_percent"] == found["flips_gained_percent"] == pytest.approx(100 / 6)
    assert found["changed_percent"] == pytest.approx(50)
    assert found["errors_gained_log"] == 0
    assert found["worst_class_lost_points"] == 50
    sure = np.exp(5) / (np.exp(5) + 2)
    assert found["calibration_error_points"] == pytest.approx(100 * abs(4 / 6 - sure))
    # Of the three images whose prediction changes, a probability of 0.985 goes from one class to another.
    assert found["kl_nats"] == pytest.approx((sure - (1 - sure) / 2) * 5 / 2)


def test_standard_errors_are_those_of_paired_proportions() -> None:
    found = measured_outcomes(by_hand())
    assert found["drop_sub_points_se"] == pytest.approx(100 * np.sqrt(2 / 6 / 6))
    assert found["flips_lost_percent_se"] == pytest.approx(100 * np.sqrt(1 / 6 * 5 / 6 / 6))
    assert found["errors_gained_log_se"] == pytest.approx(np.sqrt(2 / (2.5 * 2.5)))


def test_closed_forms_agree_with_resampling_of_images() -> None:
    labels, *logits = made_up(3000)
    rows = np.isin(labels.numpy(), CLASSES)
    among = np.searchsorted(CLASSES, labels.numpy()[rows])
    wrong = tuple(each.numpy()[rows][:, CLASSES].argmax(1) != among for each in logits)
    found = judge(CLASSES, labels, (logits[0], logits[1])).numbers
    ratio = bootstrap(
        wrong, lambda a, b: np.log((b.sum() + 0.5) / (a.sum() + 0.5)),
        paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=0,
    )  # fmt: skip
    assert found["errors_gained_log"] == pytest.approx(log((wrong[1].sum() + 0.5) / (wrong[0].sum() + 0.5)))
    assert found["errors_gained_log_se"] == pytest.approx(ratio.standard_error, rel=0.1)
    lost = bootstrap(
        (100.0 * (wrong[1].astype(int) - wrong[0]),), np.mean, n_resamples=1000, method="percentile", rng=0
    )
    assert found["drop_sub_points_se"] == pytest.approx(lost.standard_error, rel=0.1)


def test_a_network_that_is_not_quantized_loses_nothing() -> None:
    labels, before, _ = made_up()
    found = judge(CLASSES, labels, (before, before)).numbers
    nothing = [name for name in OUTCOMES if name != "calibration_error_points"]
    assert {found[name] for name in nothing} == {0}
    assert {found[f"{name}_se"] for name in nothing} == {0}


def test_what_is_kept_tells_the_scores_and_the_outcomes_again() -> None:
    labels, before, after = made_up()
    judged = judge(CLASSES, labels, (before, after))
    assert judged.kept.dtype == KEPT
    right = judged.kept["prediction"] == judged.kept["label"]
    scores = score(after, labels, CLASSES)
    assert judged.numbers["top1_sub_percent"] == scores.top1_sub == pytest.approx(100 * right.mean())
    assert ((judged.kept["margin"] > 0) == right).all()
    assert judged.kept["kl"].mean() == pytest.approx(judged.numbers["kl_nats"], rel=1e-5)
    # The margin is of logits, which probabilities keep.
    row = int(np.flatnonzero(np.isin(labels.numpy(), CLASSES))[0])
    own = CLASSES.index(int(labels[row]))
    logits = after[row, list(CLASSES)]
    margin = logits[own] - max(logits[i] for i in range(3) if i != own)
    assert judged.kept["margin"][0] == pytest.approx(float(margin), abs=1e-2)


def test_half_of_each_class_chooses_whatever_other_classes_are_there() -> None:
    labels = np.repeat([4, 8, 5, 6], [10, 3, 1, 2])
    drawn = choosing(labels)
    assert [int(drawn[labels == number].sum()) for number in (4, 8, 5, 6)] == [5, 2, 0, 1]
    alone = labels[labels == 4]
    assert (choosing(alone) == drawn[labels == 4]).all()
    assert (choosing(labels, seed=1) != drawn).any()
    assert choosing(labels, share=0.9)[labels == 4].sum() == 9


def test_halves_of_the_test_images_make_up_the_whole() -> None:
    labels, before, after = made_up()
    found = judge(CLASSES, labels, (before, after)).numbers
    own = labels[torch.isin(labels, torch.tensor(CLASSES))].numpy()
    share = choosing(own).mean()
    whole = share * found["top1_choosing_percent"] + (1 - share) * found["top1_reporting_percent"]
    assert whole == pytest.approx(found["top1_sub_percent"])
    assert found["top1_choosing_percent"] != found["top1_reporting_percent"]
