"""Reliability of outcomes: of what is planted, and of noise alone; the fewest bits that suffice."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest

from laq.report.outcomes import fewest_bits, outcomes_text, reliabilities
from laq.study.outcomes import OUTCOMES

GROUP = {"variant": "quantized", "method": "gpfq", "calibration": "subset"}


def cells(
    signal: float, noise: float, subsets: int = 4000, bits: str = "3", outcomes: Iterable[str] = ("kl_nats",)
) -> pd.DataFrame:
    """Outcomes of subsets that truly differ by ``signal``, seen through noise (standard deviations)."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"subset": [f"random-{i}" for i in range(subsets)], **GROUP, "bits": bits})
    for name in outcomes:
        table[name] = 2 + signal * rng.normal(size=subsets) + noise * rng.normal(size=subsets)
        table[f"{name}_se"] = noise
    return table


@pytest.mark.parametrize(("signal", "noise", "expected"), [(2, 1, 0.8), (1, 1, 0.5), (0, 1, 0), (1, 0, 1)])
def test_reliability_is_the_share_of_variance_that_is_no_noise(
    signal: float, noise: float, expected: float
) -> None:
    (row,) = reliabilities(cells(signal, noise), 0.95).to_dict("records")
    assert row["reliability"] == pytest.approx(expected, abs=0.05)
    assert (row["outcome"], row["n"]) == ("kl_nats", 4000)
    assert row["low"] <= row["reliability"] <= row["high"]


def test_the_interval_holds_the_true_reliability_as_often_as_it_says() -> None:
    whole = cells(1, 1)
    parts = [reliabilities(whole[i : i + 20], 0.9) for i in range(0, 4000, 20)]
    held = [p.low.item() < 0.5 < p.high.item() for p in parts]
    assert np.mean(held) == pytest.approx(0.9, abs=0.05)


def test_float_networks_have_no_reliability_and_tables_without_noise_no_text() -> None:
    table = cells(1, 1, 5)
    floats = table.assign(method="float", variant="original", bits="32", calibration="none")
    assert set(reliabilities(pd.concat([table, floats]), 0.95).method) == {"gpfq"}
    older = table.drop(columns=[name for name in table if str(name).endswith("_se")])
    assert outcomes_text(reliabilities(older, 0.95)) == ""


def test_the_fewest_bits_are_the_first_that_lose_less_than_a_point() -> None:
    lost = {
        "a": {"2": 3.0, "3": 0.9, "4": 0.1, "auto:2": 0.0},
        "b": {"2": 1.0, "3": 2.0, "4": 1.5},
        "c": {"10": 0.0, "9": 5},
    }
    rows = [
        {"subset": subset, **GROUP, "bits": bits, "drop_sub_points": value, "drop_sub_points_se": 0.0}
        for subset, some in lost.items()
        for bits, value in some.items()
    ]  # fmt: skip
    found = fewest_bits(pd.DataFrame(rows)).set_index("subset")
    assert found.fewest_bits["a"] == 3
    assert pd.isna(found.fewest_bits["b"])
    assert found.fewest_bits["c"] == 10
    assert (found.fewest_bits_se == 0).all()


def test_noise_moves_the_fewest_bits_of_what_is_near_the_limit_alone() -> None:
    rows = [
        {"subset": subset, **GROUP, "bits": bits, "drop_sub_points": lost, "drop_sub_points_se": 0.5}
        for subset, few in (("near", 1.0), ("far", 9.0))
        for bits, lost in (("2", few), ("4", -9.0))
    ]
    found = fewest_bits(pd.DataFrame(rows)).set_index("subset").fewest_bits_se
    # Two bits in half of the repetitions, four in the others.
    assert found["near"] == pytest.approx(1, abs=0.05)
    assert found["far"] == 0


def test_the_text_has_a_row_for_each_method_and_bits_and_says_what_outcomes_are() -> None:
    table = pd.concat([cells(2, 1, 50, bits, OUTCOMES) for bits in ("2", "4")])
    text = outcomes_text(reliabilities(table, 0.95))
    for outcome in OUTCOMES.values():
        assert outcome.description in text
        assert f" {outcome.label} " in text
    rows = [line.split() for line in text.splitlines() if line.startswith("| GPFQ")]
    assert [row[1:6:2] for row in rows] == [["GPFQ", "2", "50"], ["GPFQ", "4", "50"]]
