"""The study's questions: planted effects are found, others are not, and every row is its pairs' own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from laq.report.analysis import Analysis, analyse
from laq.report.answers import QUESTIONS, answers
from laq.report.comparisons import comparisons
from laq.report.correlations import dependence
from laq.report.divergences import divergences_in, subset_divergences
from laq.report.tables import over_seeds, with_drops
from laq.sections.report import Report
from laq.subsets.subset import Subset
from tests.studies import Planted, made_up_matrix, made_up_study, made_up_subsets

PARAMS = Report(bootstrap_samples=400, permutations=999, confidence=0.95, seed=0)
MATRIX = made_up_matrix()
SUBSETS = made_up_subsets(30, MATRIX)


def asked(planted: Planted, subsets: Sequence[Subset] = SUBSETS, seed: int = 0) -> Analysis:
    table = made_up_study(subsets, planted, seed=seed)
    others = {"own": MATRIX, "other": made_up_matrix(seed=9)}
    return analyse(table, subset_divergences(others, subsets, seed=0), PARAMS)


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
DROP = {"question": "dependence", "score": "drop_sub_points"}


def test_the_drop_goes_with_the_divergence_where_that_is_planted(
    planted: Analysis, nothing: Analysis
) -> None:
    for measured in ("rho", "partial_rho"):
        row = the(planted.correlations, **CELL, **DROP, measure=measured)
        assert row.effect < -0.5
        assert row.low < row.effect < row.high < 0
        assert max(row.p_holm, row.p_classes_holm) < 0.05
        none = rows(nothing.correlations, **DROP, measure=measured)
        assert (none[["p_holm", "p_classes_holm"]] > 0.05).all(axis=None)
    cells = rows(planted.cells, **CELL).set_index("subset").loc[[s.name for s in SUBSETS]]
    expected = stats.spearmanr(cells.drop_sub_points, [s.median_divergence for s in SUBSETS])
    row = the(planted.correlations, **CELL, **DROP, measure="rho")
    assert row.effect == pytest.approx(expected.statistic, abs=1e-6)
    assert row.n == 30


def test_what_only_follows_the_accuracy_before_is_not_the_divergences() -> None:
    """Easy subsets are far apart and lose less: rho sees that, partial rho does not blame the divergence."""
    subsets = made_up_subsets(60, MATRIX, seed=3)
    rng, table = np.random.default_rng(0), with_drops(made_up_study(subsets, Planted(noise=0)))
    base = {s.name: 70 + 5 * s.median_divergence + rng.normal(scale=2) for s in subsets}
    lost = {name: 40 - 0.4 * score + rng.normal(scale=0.5) for name, score in base.items()}
    before = table.subset.map(base)
    table["drop_sub_points"] = np.where(table.method == "float", 0, table.subset.map(lost))
    table["top1_sub_percent"] = before - table.drop_sub_points
    found = dependence(over_seeds(table), divergences_in(table), PARAMS)
    rho, partial = (the(found, **CELL, **DROP, measure=name) for name in ("rho", "partial_rho"))
    assert rho.effect < -0.5
    assert rho.p_holm < 0.05
    assert abs(partial.effect) < 0.3
    assert partial.p_holm > 0.05


def test_the_divergence_that_made_the_drop_predicts_it_best(planted: Analysis) -> None:
    found = rows(planted.correlations, **CELL, question="predictor", measure="rho")
    assert sorted(found["rank"]) == [1, 2, 3, 4]
    first = found[found["rank"] == 1].iloc[0]
    assert first.divergence == "own"
    assert (first.gap, first.gap_low, first.gap_high) == (0, 0, 0)
    other = the(found, divergence="other", statistic="median")
    assert other.gap == pytest.approx(abs(first.effect) - abs(other.effect), abs=1e-5)
    assert 0 < other.gap_low < other.gap < other.gap_high
    assert found.p_classes.isna().all()


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
        assert row.p_holm < 0.05
        assert row.d_z > 0.5
    assert [(r["first"], r["second"]) for r in (calibration, method, allocation)] == [
        ("subset", "all"), ("gpfq", "rtn"), ("auto:2", "2"),
    ]  # fmt: skip
    assert allocation.size_ratio == 1
    assert set(tuned["second"]) == {"original", "quantized"}
    assert tuned[tuned.method == "gpfq"].effect.mean() == pytest.approx(1, abs=0.4)


def test_nothing_is_found_where_nothing_is_planted(nothing: Analysis) -> None:
    assert set(nothing.comparisons.question) == {"calibration", "finetuning", "method", "allocation"}
    assert (nothing.comparisons.p_holm > 0.05).all()
    assert (nothing.comparisons.p_value <= nothing.comparisons.p_holm + 1e-9).all()


def test_false_alarms_of_whole_families_are_rare() -> None:
    trials, alarms = 40, dict.fromkeys(("calibration", "method", "dependence"), 0)
    few = PARAMS.model_copy(update={"bootstrap_samples": 100, "permutations": 499})
    for trial in range(trials):
        table = with_drops(
            made_up_study(made_up_subsets(14, MATRIX, seed=trial), Planted(), ("2", "4"), trial)
        )
        told = [comparisons(table, None, few), dependence(over_seeds(table), divergences_in(table), few)]
        found = pd.concat(told).query("measure != 'partial_rho' and score != 'drop_all_points'")
        for question in alarms:
            alarms[question] += bool((rows(found, question=question).p_holm <= 0.05).any())
    # Rows of a family go together here, and Holm's correction is then on the safe side.
    assert max(alarms.values()) <= stats.binom.ppf(0.999, trials, 0.05)


def test_effects_are_those_of_the_pairs_with_the_same_seed() -> None:
    table = with_drops(made_up_study(SUBSETS[:6], Planted()))
    dropped = (table.calibration == "all") & (table.seed == 1) & (table.subset == SUBSETS[0].name)
    table = table[~dropped]
    row = the(
        comparisons(table, None, PARAMS), question="calibration", variant="quantized", method="gpfq", bits="4"
    )
    wide = table[(table.variant == "quantized") & (table.method == "gpfq") & (table.bits == "4")].pivot_table(
        "top1_sub_percent", ["subset", "seed"], "calibration"
    )
    differences = (wide["subset"] - wide["all"]).dropna().groupby("subset").mean()
    assert len(differences) == 6
    assert row.n == 6
    assert row.effect == pytest.approx(differences.mean(), abs=1e-6)
    assert row.d_z == pytest.approx(differences.mean() / differences.std(), abs=1e-6)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    extreme = np.abs(signs.T @ differences.to_numpy()) >= abs(differences.sum()) - 1e-9
    assert row.p_value == pytest.approx(extreme.mean(), abs=1e-6)


def test_a_cell_that_some_subsets_lack_is_asked_of_the_others() -> None:
    table = with_drops(made_up_study(SUBSETS[:8], Planted()))
    lacking = table.subset.isin([s.name for s in SUBSETS[:3]]) & (table.bits == "4")
    table = table[~lacking | (table.method == "float")]
    found = comparisons(table, None, PARAMS)
    assert set(rows(found, question="calibration", bits="4").n) == {5}
    assert set(rows(found, question="calibration", bits="2").n) == {8}
    told = dependence(over_seeds(table), divergences_in(table), PARAMS)
    assert set(rows(told, bits="4").n) == {5}
    assert set(rows(told, bits="2").n) == {8}


def test_questions_that_cannot_be_asked_are_left_out() -> None:
    table = made_up_study(SUBSETS[:9], Planted(), bits=("2", "4"))
    small = table[(table.calibration != "all") & (table.seed.isna() | (table.seed == 0))]
    found = analyse(small, divergences_in(small), PARAMS)
    assert set(found.comparisons.question) == {"finetuning", "method"}
    told = answers(found, PARAMS)
    assert QUESTIONS["calibration"] not in told
    assert QUESTIONS["dependence"] in told
    bare = small[(small.variant == "original") | ((small.variant == "quantized") & (small.method == "rtn"))]
    found = analyse(bare, divergences_in(bare), PARAMS)
    assert found.comparisons.empty
    assert {"question", "effect", "p_holm"} < set(found.comparisons)
    assert "round-to-nearest" in answers(found, PARAMS)[QUESTIONS["dependence"]]


def test_answers_say_what_the_tables_do(planted: Analysis, nothing: Analysis) -> None:
    told = answers(planted, PARAMS)
    assert set(told) == set(QUESTIONS.values())
    row = the(planted.comparisons, question="calibration", variant="quantized", method="gpfq", bits="2")
    interval = f"{row.low_classes:+.1f} to {row.high_classes:+.1f}"
    expected = f"GPFQ gains {row.effect:.1f} points at 2 bits ({interval}, p "
    assert expected in told[QUESTIONS["calibration"]]
    assert "Of all 6 rows, 6 gains and 0 losses are significant." in told[QUESTIONS["calibration"]]
    assert "GPFQ instead of round-to-nearest gains" in told[QUESTIONS["method"]]
    assert "with auto:2 instead of 2 bits" in told[QUESTIONS["allocation"]]
    assert "the median of own" in told[QUESTIONS["predictor"]]
    rho = the(planted.correlations, **CELL, **DROP, measure="partial_rho")
    assert f"{rho.effect:+.2f} at 2 bits" in told[QUESTIONS["dependence"]].split("held fixed")[1]
    negative = answers(nothing, PARAMS)
    assert "makes no significant difference at 2 bits" in negative[QUESTIONS["calibration"]]
    assert "Of all 6 rows, 0 gains and 0 losses are significant." in negative[QUESTIONS["calibration"]]
    assert (
        "0 positive correlations and 0 negative correlations are significant"
        in negative[QUESTIONS["dependence"]]
    )


def test_what_only_independent_subsets_would_show_is_not_certain(planted: Analysis) -> None:
    table = planted.comparisons
    shared = table.assign(p_classes_holm=table.p_classes_holm.where(table.question != "calibration", 0.2))
    told = answers(replace(planted, comparisons=shared), PARAMS)
    counted = (
        "Of all 6 rows, 0 gains and 0 losses are significant; "
        "for these classes alone, 6 more gains and 0 more losses are."
    )
    assert counted in told[QUESTIONS["calibration"]]
    assert "at 2 bits for these classes (" in told[QUESTIONS["calibration"]]
    assert "p of classes <" in told[QUESTIONS["method"]]
    unknown = table.assign(low_classes=np.nan, p_classes_holm=np.nan)
    told = answers(replace(planted, comparisons=unknown), PARAMS)
    assert "Of all 6 rows, 6 gains and 0 losses are significant." in told[QUESTIONS["calibration"]]
    row = the(table, question="calibration", variant="quantized", method="gpfq", bits="2")
    assert f"at 2 bits ({row.low:+.1f} to {row.high:+.1f}, p " in told[QUESTIONS["calibration"]]


def test_a_loss_is_called_a_loss() -> None:
    told = answers(asked(Planted(calibration=-3, finetuning=-3)), PARAMS)
    assert "GPFQ loses" in told[QUESTIONS["calibration"]]
    assert "0 gains and 6 losses" in told[QUESTIONS["calibration"]]
    assert "points more at 2 bits" in told[QUESTIONS["finetuning"]]


def test_what_is_asked_of_no_original_network_is_told_of_none() -> None:
    """Where its drops are constant nothing goes with them; the fine-tuned network's are counted alone."""
    table = made_up_study(SUBSETS, Planted(distance=3), seed=0)
    original = table[table.variant == "original"].set_index("subset")
    quantized = table.variant == "quantized"
    for score in ("top1_all_percent", "top1_sub_percent"):
        table.loc[quantized, score] = table[quantized].subset.map(original[score]) - 1
    analysis = analyse(
        table, subset_divergences({"own": MATRIX, "other": made_up_matrix(seed=9)}, SUBSETS, 0), PARAMS
    )
    told = answers(analysis, PARAMS)
    assert QUESTIONS["predictor"] not in told
    assert told[QUESTIONS["dependence"]].startswith("Of all ")
    assert "(n = " not in told[QUESTIONS["dependence"]]
