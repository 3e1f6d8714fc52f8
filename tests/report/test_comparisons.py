"""The study's questions: planted effects are found, others are not, and every row is its pairs' own."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from laq.report.analysis import Analysis, analyse
from laq.report.answers import QUESTIONS, exploratory, sentences
from laq.report.comparisons import comparisons
from laq.report.dependence import INACCURACY, NEARNESS, dependence
from laq.report.divergences import divergences_in, members_of, subset_divergences
from laq.report.tables import with_drops
from laq.subsets.subset import Subset
from tests.studies import Planted, made_up_matrix, made_up_study, made_up_subsets, report_params

PARAMS = report_params()
MATRIX = made_up_matrix()
SUBSETS = made_up_subsets(30, MATRIX)


def asked(planted: Planted, subsets: Sequence[Subset] = SUBSETS, seed: int = 0) -> Analysis:
    table = made_up_study(subsets, planted, seed=seed)
    others = {"own": MATRIX, "other": made_up_matrix(seed=9)}
    return analyse(table, subset_divergences(others, subsets), PARAMS)


def rows(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    return table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]


def the(table: pd.DataFrame, **wanted: str) -> pd.Series:
    found = rows(table, **wanted)
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def planted() -> Analysis:
    return asked(Planted(distance=3, calibration=2, finetuning=1, gpfq=4, auto=3))


@pytest.fixture(scope="module")
def nothing() -> Analysis:
    return asked(Planted(), seed=1)


CELL = {"variant": "quantized", "method": "gpfq", "bits": "2", "calibration": "subset"}


def test_subsets_of_similar_classes_lose_more_where_that_is_planted(
    planted: Analysis, nothing: Analysis
) -> None:
    for score, sign in (("drop_sub_points", 1), ("errors_gained_log", 1)):
        row = the(planted.dependence, **CELL, score=score, variable=NEARNESS, beside="")
        assert 0 < sign * row.low < row.effect < row.high
        assert row.p_value < 0.05
        none = the(nothing.dependence, **CELL, score=score, variable=NEARNESS, beside=INACCURACY)
        assert none.low < 0 < none.high


def test_effects_are_the_least_squares_slopes_among_subsets_of_equal_size() -> None:
    subsets = made_up_subsets(30, MATRIX, (4, 6, 9))
    found = asked(Planted(distance=3), subsets)
    cells = rows(found.cells, **CELL).set_index("subset").loc[[s.name for s in subsets]]
    cells["near"] = -np.log2(cells.median_divergence_nats)
    cells["before"] = -(cells.top1_sub_percent + cells.drop_sub_points) / 10
    for variable, beside, name, formula in (
        (NEARNESS, "", "near", "drop_sub_points ~ near + C(subset_size_classes)"),
        (INACCURACY, "", "before", "drop_sub_points ~ before + C(subset_size_classes)"),
        (NEARNESS, INACCURACY, "near", "drop_sub_points ~ near + before + C(subset_size_classes)"),
        (INACCURACY, NEARNESS, "before", "drop_sub_points ~ near + before + C(subset_size_classes)"),
    ):
        row = the(found.dependence, **CELL, score="drop_sub_points", variable=variable, beside=beside)
        assert row.effect == pytest.approx(smf.ols(formula, cells).fit().params[name], abs=2e-5)
        assert row.n == 30


def test_errors_gained_are_the_logarithm_of_the_ratio_of_errors() -> None:
    table = with_drops(made_up_study(SUBSETS[:4], Planted()))
    row = table[table.method == "gpfq"].iloc[0]
    before = row.top1_sub_percent + row.drop_sub_points
    expected = np.log((100.05 - row.top1_sub_percent) / (100.05 - before))
    assert row.errors_gained_log == pytest.approx(expected, abs=1e-6)
    assert (table[table.method == "float"].errors_gained_log == 0).all()
    again = with_drops(table.assign(errors_gained_log=7.0))
    assert set(again.errors_gained_log) == {7.0}
    assert not again.columns.duplicated().any()


def test_r2_is_that_of_regressions_on_subsets_that_share_no_class() -> None:
    subsets = made_up_subsets(40, made_up_matrix(90), (4, 6))
    table = made_up_study(subsets, Planted(distance=3))
    found = analyse(table, subset_divergences({"own": made_up_matrix(90)}, subsets), PARAMS)
    cells = rows(found.cells, **CELL).set_index("subset").loc[[s.name for s in subsets]]
    x = np.column_stack([np.log2(cells.subset_size_classes), np.log2(cells.median_divergence_nats)])
    y, predicted = cells.drop_sub_points.to_numpy(), []
    for place, subset in enumerate(subsets):
        apart = [i for i, other in enumerate(subsets) if not set(subset.classes) & set(other.classes)]
        predicted.append(LinearRegression().fit(x[apart], y[apart]).predict(x[[place]])[0])
    row = the(found.prediction, **CELL, score="drop_sub_points", statistic="median")
    assert row.r2_divergence == pytest.approx(r2_score(y, predicted), abs=1e-5)
    assert row.r2_divergence > row.r2_size
    assert row.n == 40


def test_a_divergence_that_is_not_positive_has_no_effect() -> None:
    subsets = SUBSETS[:12]
    known = subset_divergences({"own": MATRIX - MATRIX.max() / 2}, subsets)
    assert (known.nats.iloc[:, 0] <= 0).any()
    found = analyse(made_up_study(subsets, Planted()), known, PARAMS)
    near = rows(found.dependence, score="drop_sub_points", variable=NEARNESS)
    assert near.effect.isna().all()
    assert rows(found.dependence, variable=INACCURACY, beside="").effect.notna().all()
    assert found.prediction.r2_divergence.isna().all()


def test_every_comparison_finds_what_is_planted(planted: Analysis) -> None:
    table = planted.comparisons
    plain = {"score": "top1_sub_percent", "bits": "2"}
    calibration = the(table, question="calibration", **plain, variant="quantized", method="gpfq")
    method = the(table, question="method", **plain, variant="quantized", calibration="subset")
    allocation = the(table, question="allocation", variant="quantized", method="gpfq", calibration="subset")
    tuned = rows(table, question="finetuning", score="top1_sub_percent")
    for row, effect in ((calibration, 2), (method, 6), (allocation, 3)):
        assert row.effect == pytest.approx(effect, abs=1)
        assert row.low < row.effect < row.high
        assert row.p_value < 0.05
    assert [(r["first"], r["second"]) for r in (calibration, method, allocation)] == [
        ("subset", "all"), ("gpfq", "rtn"), ("auto:2", "2"),
    ]  # fmt: skip
    assert allocation.size_ratio == 1
    assert set(tuned["second"]) == {"original", "quantized"}
    assert tuned[tuned.method == "gpfq"].effect.mean() == pytest.approx(1, abs=0.4)


def test_a_loss_is_the_mean_of_what_the_subsets_lose(planted: Analysis) -> None:
    for variant in ("quantized", "finetuned_quantized"):
        cell = CELL | {"variant": variant}
        row = the(planted.comparisons, **CELL | {"variant": ""}, question="loss", first=variant)
        expected = rows(planted.summary, **cell).iloc[0]
        assert row.effect == pytest.approx(expected.drop_sub_points_mean, abs=1e-4)
        assert row["second"] == ("original" if variant == "quantized" else "finetuned")
        assert row.size_ratio == pytest.approx(2 / 32)


def test_intervals_do_not_exclude_0_where_nothing_is_planted(nothing: Analysis) -> None:
    asked = nothing.comparisons[nothing.comparisons.question != "loss"]
    assert set(asked.question) == {"calibration", "finetuning", "method", "allocation"}
    assert (asked.p_value < 0.05).mean() < 0.15


def test_effects_are_those_of_the_pairs_with_the_same_seed() -> None:
    table = with_drops(made_up_study(SUBSETS[:6], Planted()))
    dropped = (table.calibration == "all") & (table.seed == 1) & (table.subset == SUBSETS[0].name)
    table = table[~dropped]
    found = comparisons(table, members_of(SUBSETS), PARAMS)
    row = the(found, question="calibration", variant="quantized", method="gpfq", bits="4")
    wide = table[(table.variant == "quantized") & (table.method == "gpfq") & (table.bits == "4")].pivot_table(
        "top1_sub_percent", ["subset", "seed"], "calibration"
    )
    differences = (wide["subset"] - wide["all"]).dropna().groupby("subset").mean()
    assert row.n == len(differences) == 6
    assert row.effect == pytest.approx(differences.mean(), abs=1e-6)
    assert row.seeds == 1  # the other seed lacks a subset, so its network is not scored on all of them


def test_a_network_for_all_subsets_brings_its_seeds_into_the_interval() -> None:
    """Half the width squared is that of the subsets' means and that of the seeds', by Student's t."""
    table = made_up_study(SUBSETS[:12], Planted())
    shared = (table.calibration == "all") & (table.seed == 1)
    table.loc[shared, "top1_sub_percent"] -= 5
    loss = {"question": "loss", "first": "quantized", "bits": "4", "method": "gpfq"}
    own, every = (
        the(comparisons(with_drops(table), members_of(SUBSETS), PARAMS), **loss, calibration=used)
        for used in ("subset", "all")
    )
    assert (own.seeds, every.seeds) == (1, 2)
    assert own.high - own.low < 5
    by_seed = rows(with_drops(table), variant="quantized", bits="4", method="gpfq", calibration="all")
    means = by_seed.groupby("seed").drop_sub_points.mean()
    half = stats.t.isf(0.025, 1) * means.std() / np.sqrt(2)
    assert half < (every.high - every.low) / 2 < 1.1 * half


def test_a_cell_that_some_subsets_lack_is_asked_of_the_others() -> None:
    table = with_drops(made_up_study(SUBSETS[:8], Planted()))
    lacking = table.subset.isin([s.name for s in SUBSETS[:3]]) & (table.bits == "4")
    table = table[~lacking | (table.method == "float")]
    found = comparisons(table, members_of(SUBSETS), PARAMS)
    assert set(rows(found, question="calibration", bits="4").n) == {5}
    assert set(rows(found, question="calibration", bits="2").n) == {8}
    told = dependence(table, divergences_in(table), PARAMS)
    assert set(rows(told, bits="4").n) == {5}
    assert set(rows(told, bits="2").n) == {8}


def test_questions_that_cannot_be_asked_are_left_out() -> None:
    table = made_up_study(SUBSETS[:9], Planted(), bits=("2", "4"))
    small = table[(table.calibration != "all") & (table.seed.isna() | (table.seed == 0))]
    found = analyse(small, divergences_in(small), PARAMS)
    assert set(found.comparisons.question) == {"loss", "finetuning", "method"}
    told = exploratory(found, PARAMS)
    assert QUESTIONS["calibration"] not in told
    assert QUESTIONS["method"] not in told  # what GPFQ gains on round-to-nearest is one of the sentences
    bare = small[(small.variant == "original") | ((small.variant == "quantized") & (small.method == "rtn"))]
    found = analyse(bare, divergences_in(bare), PARAMS)
    assert set(found.comparisons.question) == {"loss"}
    assert exploratory(found, PARAMS) == {}
    (told_first,) = sentences(found, PARAMS)
    assert told_first.startswith(
        "**The primary question has no answer here:** too few subsets were quantized by GPFQ"
    )


def test_the_five_sentences_have_the_numbers_of_the_tables(planted: Analysis) -> None:
    told = sentences(planted, PARAMS)
    assert len(told) == 5
    row = the(planted.dependence, **CELL, score="drop_sub_points", variable=NEARNESS, beside="")
    assert "**Do subsets of similar classes lose more accuracy? Yes.**" in told[0]
    assert f"{row.effect:.2f} points more ({row.low:.2f} to {row.high:.2f}) for each halving" in told[0]
    errors = the(planted.dependence, **CELL, score="errors_gained_log", variable=NEARNESS, beside="")
    assert f"{np.exp(errors.effect):.2f} ({np.exp(errors.low):.2f} to {np.exp(errors.high):.2f})" in told[1]
    beside = the(planted.dependence, **CELL, score="drop_sub_points", variable=NEARNESS, beside=INACCURACY)
    assert f"{beside.effect:+.2f} points ({beside.low:+.2f} to {beside.high:+.2f})" in told[2]
    loss = the(planted.comparisons, **CELL | {"variant": ""}, question="loss", first="quantized")
    assert f"{loss.effect:.1f} points at 2 bits ({loss.low:.1f} to {loss.high:.1f})" in told[4]


def test_a_loss_that_is_smaller_is_told_as_less_with_its_interval_turned() -> None:
    found = asked(Planted(distance=-3), SUBSETS[:20], seed=1)
    row = the(found.dependence, **CELL, score="drop_sub_points", variable=NEARNESS, beside="")
    assert row.effect < 0
    told = sentences(found, PARAMS)[0]
    assert f"{-row.effect:.2f} points less ({-row.high:.2f} to {-row.low:.2f}) for each halving" in told


@pytest.mark.parametrize(
    ("distance", "scale", "expected"),
    [
        (0, "points", "This study cannot tell."),
        (-3, "points", "No, they lose less."),
        (3, "log_error_ratio", "Yes."),
    ],
)
def test_the_primary_question_is_the_one_of_the_parameters(distance: int, scale: str, expected: str) -> None:
    primary = PARAMS.primary.model_copy(update={"scale": scale})
    params = PARAMS.model_copy(update={"primary": primary, "margin_points": 0.01})
    told = sentences(asked(Planted(distance=distance), SUBSETS[:20], seed=1), params)
    assert expected in told[0]


def test_what_is_within_the_margin_is_called_none(nothing: Analysis) -> None:
    wide = PARAMS.model_copy(update={"margin_points": 5.0})
    assert "none beyond 5.0" in exploratory(nothing, wide)[QUESTIONS["calibration"]]
    assert (
        "none beyond"
        not in exploratory(nothing, PARAMS.model_copy(update={"margin_points": 0.01}))[
            QUESTIONS["calibration"]
        ]
    )


def test_answers_to_what_else_is_asked_have_effects_and_intervals(planted: Analysis) -> None:
    told = exploratory(planted, PARAMS)
    assert set(told) == {text for name, text in QUESTIONS.items() if name not in {"method", "tuning"}}
    row = the(planted.comparisons, question="calibration", variant="quantized", method="gpfq", bits="2")
    expected = f"GPFQ {row.effect:+.1f} points at 2 bits ({row.low:+.1f} to {row.high:+.1f})"
    assert expected in told[QUESTIONS["calibration"]]
    assert "with auto:2 instead of 2 bits" in told[QUESTIONS["allocation"]]
    assert "of own" in told[QUESTIONS["predictor"]]


def test_tuned_networks_are_compared_with_those_that_are_not_and_with_those_tuned_to_all() -> None:
    table = made_up_study(SUBSETS[:12], Planted(), bits=("2",))
    untuned = table[(table.method == "gpfq") & (table.variant == "quantized")]
    rng, tuned = np.random.default_rng(0), []
    for ending, points in (("tuned", 3), ("tuned-all", 1)):
        gained = points + rng.normal(scale=0.05, size=len(untuned))
        accuracies = untuned.top1_sub_percent + gained
        tuned.append(untuned.assign(method=f"gpfq-{ending}", top1_sub_percent=accuracies))
    found = analyse(pd.concat([table, *tuned]), divergences_in(table), PARAMS)
    told = exploratory(found, PARAMS)
    assert "Tuned GPFQ against GPFQ tuned to all classes +2.0 points at 2 bits" in told[QUESTIONS["tuning"]]
    assert "tuned GPFQ against GPFQ +3.0 points at 2 bits" in told[QUESTIONS["method"]]
    assert "round-to-nearest" not in told[QUESTIONS["method"]]
