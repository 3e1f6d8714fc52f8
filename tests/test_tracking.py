"""What is told and tracked of an outcome, whatever its bits are."""

from typing import Any

import pytest
from click.testing import CliRunner

from laq import tracking
from laq.cli import main
from laq.params import load_params
from laq.subsets import Subset
from laq.tracking.records import Outcome, cell_record, describe
from tests.conftest import ROOT

SUBSET = Subset("random-1", "random", (1, 2), ("a", "b"), 2.0, 1.0, 1.5, 1.5)


def outcome() -> Outcome:
    """The rows of a subset at bits that differ by layer."""
    scores = {"top1_sub_percent": 90.0, "top1_all_percent": 80.0, "dataset": "glyphs", "network": "resnet20"}
    row: dict[str, Any] = {"variant": "original", "method": "float", "bits": 32, "mean_bits": 32.0}
    mixed = {"variant": "quantized", "method": "gpfq_l0", "bits": "auto:3", "mean_bits": 2.9}
    return Outcome(SUBSET, [{**r, **scores, "levels": None} for r in (row, mixed)], [], {})


def test_the_lines_of_an_outcome_stand_below_each_other() -> None:
    lines = describe(outcome()).splitlines()[1:]
    assert lines[1].startswith("  quantized            gpfq_l0 auto:3 bits")
    assert len({line.index("top-1") for line in lines}) == 1


def test_a_run_has_the_bits_that_were_asked_for_and_those_that_were_spent() -> None:
    record = cell_record(load_params(ROOT / "params.yaml"), outcome())
    assert record.name == "random-1, auto:3 bits"
    assert (record.params["bits"], record.params["levels"]) == ("auto:3", "")
    assert record.metrics["gpfq_l0/quantized/mean_bits"] == 2.9


@pytest.mark.parametrize(("text", "bits"), [("4", 4), ("auto:3", "auto:3"), ("3 last:8", "3 last:8")])
def test_the_command_takes_what_params_yaml_takes(
    monkeypatch: pytest.MonkeyPatch, text: str, bits: int | str
) -> None:
    orders: list[tracking.Order] = []
    monkeypatch.setattr(tracking, "quantize", lambda _, order: orders.append(order) or [])
    monkeypatch.chdir(ROOT)
    assert CliRunner().invoke(main, ["quantize", "--bits", text]).exit_code == 0
    assert [order.bits for order in orders] == [bits]
