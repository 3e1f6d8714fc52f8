"""Statistics against scipy, planted effects and none, and numbers that agree with each other."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from laq.params import METHODS, Report
from laq.report import headline, metrics
from laq.report.figures import draw_against_bits, draw_against_divergence
from laq.report.statistics import correlate, log_curve, rank_correlation, summarise, with_drops
from laq.report.text import findings, markdown

PARAMS = Report(bootstrap_samples=500, confidence=0.95, seed=0)


def study(subsets: int = 6) -> pd.DataFrame:
    """A small table in the study's form, with a drop that grows as the divergence falls."""
    rows = []
    for s in range(subsets):
        shared = {"subset": f"random-{s}", "kind": "random", "median_divergence_nats": 1.0 + s}
        for variant, method, bits, top1 in [
            ("original", "float", 32, 90.0),
            ("finetuned", "float", 32, 95.0),
            ("quantized", "gpfq", 3, 80.0 + s),
            ("finetuned_quantized", "gpfq", 3, 95.0),
        ]:
            scores = {f"top{k}_{side}_percent": top1 - k for k in (1, 5) for side in ("all", "sub")}
            extra = {
                "levels": 7,
                "sparsity_percent": 1.0,
                "relative_error_mean": 0.1,
                "relative_error_logits": 0.2,
            }
            key = {"variant": variant, "method": method, "bits": str(bits), "mean_bits": float(bits)}
            rows.append({**shared, **key, **scores, **extra})
    return pd.DataFrame(rows)


def test_drops_are_taken_from_the_same_networks_own_accuracy() -> None:
    table = with_drops(study())
    drops = table.groupby(["variant", "subset"]).drop_sub_points.first()
    assert drops["quantized"].tolist() == [10, 9, 8, 7, 6, 5]
    assert drops["finetuned_quantized"].tolist() == [0] * 6
    assert drops["original"].tolist() == [0] * 6


def test_summary_has_mean_deviation_and_n() -> None:
    summary = summarise(with_drops(study())).set_index(["variant", "method", "bits"])
    row = summary.loc["quantized", "gpfq", "3"]
    accuracies = 79.0 + np.arange(6)
    assert row["n"] == 6
    assert row["top1_sub_percent_mean"] == pytest.approx(accuracies.mean())
    assert row["top1_sub_percent_std"] == pytest.approx(accuracies.std(ddof=1), abs=1e-4)


def test_rho_is_scipys_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    found, expected = rank_correlation(x, y, PARAMS), stats.spearmanr(x, y)
    assert found.rho == pytest.approx(expected.statistic, abs=1e-4)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.rho < found.high
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.002)
    assert found == rank_correlation(x, y, PARAMS)


def test_the_false_alarm_rate_is_right_where_nothing_is_planted() -> None:
    rng = np.random.default_rng(1)
    trials = 200
    p_values = [
        rank_correlation(rng.normal(size=12), rng.normal(size=12), PARAMS).p_value for _ in range(trials)
    ]
    alarms = sum(p is not None and p <= 0.05 for p in p_values)
    low, high = stats.binom.interval(0.999, trials, 0.05)
    assert low <= alarms <= high


def test_ties_and_constants_are_handled() -> None:
    x, ties = np.arange(6.0), np.array([1.0, 1, 2, 2, 3, 3])
    assert rank_correlation(x, ties, PARAMS).rho == pytest.approx(
        stats.spearmanr(x, ties).statistic, abs=1e-4
    )
    nothing = rank_correlation(x, np.zeros(6), PARAMS)
    assert (nothing.n, nothing.rho, nothing.p_value, nothing.low) == (6, None, None, None)
    assert rank_correlation(x[:2], x[:2], PARAMS).rho is None


def test_the_fitted_curve_is_found_again() -> None:
    x = np.array([0.5, 1, 2, 4, 8])
    assert log_curve(x, 3 * np.log(2 * x) + 1) == pytest.approx((3, 1 + 3 * np.log(2)))


def test_metrics_text_and_tables_say_the_same() -> None:
    table = with_drops(study())
    summary, correlations = summarise(table), correlate(table, PARAMS)
    found = metrics(summary, correlations)
    assert found == {"bits": "3", "top1": {"float": 89.0, "gpfq": 81.5}, "rho": {"gpfq": -1.0}}
    text = markdown(summary, correlations, "resnet20 on glyphs")
    assert "| original | gpfq | 3 | 7 | 6 | 81.5 ± 1.9 |" in text
    assert "| original | gpfq | 3 | 6 | -1.00 |" in text
    assert "| finetuned | gpfq | 3 | 6 | undefined |" in text


def test_two_subsets_are_reported_without_a_correlation() -> None:
    table = with_drops(study(2))
    correlations = correlate(table, PARAMS)
    assert correlations.rho.isna().all()
    assert "| original | gpfq | 3 | 2 | undefined |" in markdown(summarise(table), correlations, "title")
    assert metrics(summarise(table), correlations)["rho"] == {}


def test_an_experiment_is_summed_up_by_its_fewest_bits() -> None:
    more = study().assign(bits="4", mean_bits=4.0)
    more.loc[more.method != "float", "top1_sub_percent"] += 2
    table = with_drops(pd.concat([study(), more[more.method != "float"]], ignore_index=True))
    summary = summarise(table)
    assert headline(summary) == {"float": 89.0, "gpfq-3bit": 81.5, "gpfq-4bit": 83.5}
    assert metrics(summary, correlate(table, PARAMS))["top1"] == {"float": 89.0, "gpfq": 81.5}


def test_findings_name_the_best_method_beside_round_to_nearest() -> None:
    worse = study()[lambda t: t.method != "float"].assign(method="rtn")
    worse["top1_sub_percent"] -= 10
    text = findings(summarise(with_drops(pd.concat([study(), worse], ignore_index=True))))
    assert "- 3 bits: 7.5 ± " in text
    assert text.endswith("points lost by round-to-nearest (n = 6)")
    assert "points lost by GPFQ; 17.5 ± " in text


def test_levels_are_told_only_where_all_subsets_have_them() -> None:
    table = study().astype({"levels": "Int64"})
    table.loc[(table.variant == "quantized") & (table.subset == "random-3"), "levels"] = pd.NA
    found = summarise(with_drops(table)).set_index("variant").levels
    assert pd.isna(found["quantized"])
    assert found["finetuned_quantized"] == 7


def test_patterns_are_no_markdown() -> None:
    table = with_drops(study().replace({"bits": {"3": "a*=4 (b|c)*=3"}}))
    text = markdown(summarise(table), correlate(table, PARAMS), "title")
    assert r"| original | gpfq | a\*=4 (b\|c)\*=3 | 7 |" in text


def crowd() -> pd.DataFrame:
    """All methods, at bits that are not in the order of their names."""
    spent = {"3": 3.0, "auto:3": 2.9, "10": 10.0, "2": 2.0, "8," + "4," * 20 + "8": 4.2}
    base = study()
    quantized = base[base.method != "float"]
    parts = [
        quantized.assign(method=method, bits=bits, mean_bits=mean)
        for method in METHODS
        for bits, mean in spent.items()
    ]
    return pd.concat([base[base.method == "float"], *parts], ignore_index=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, instead of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_the_picture_of_bits_tells_every_line_from_the_others(drawn: list[Figure]) -> None:
    draw_against_bits(Path("none.png"), crowd(), "title")
    axes = drawn[0].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[:3] + labels[-1:] == ["2", "auto:3", "3", "10"]
    assert max(len(line) for label in labels for line in label.splitlines()) < 12
    lines = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), str(line._unscaled_dash_pattern), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 2 * len(METHODS)
    places = np.array([line.get_xdata() for line in lines], dtype=float)
    assert places.mean(0) == pytest.approx(np.arange(5))
    assert np.abs(places - np.arange(5)).max() < 0.5


def test_the_picture_of_divergences_has_a_panel_for_each_method_and_bits(drawn: list[Figure]) -> None:
    draw_against_divergence(Path("none.png"), crowd(), "title")
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(set(titles)) == len(METHODS) * 5
    assert titles[:3] == [f"round-to-nearest, {bits} bits" for bits in ("2", "auto:3", "3")]
