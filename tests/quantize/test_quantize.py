"""The command `quantize`: what it takes and what it prints."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from laq import cli, quantize, track
from laq.cli import main
from laq.track.specs_of_results import subset_runs
from tests.conftest import ROOT
from tests.trees import mixed_results


def test_the_lines_of_results_stand_below_each_other(weights: Path) -> None:
    lines = quantize.describe(mixed_results(weights)).splitlines()[1:]
    assert lines[1].startswith("  quantized            gpfq_l0 auto:3 bits")
    assert len({line.index("top-1") for line in lines if "top-1" in line}) == 1


def test_bits_that_differ_by_layer_are_told_layer_by_layer(weights: Path) -> None:
    results = mixed_results(weights)
    layers = [
        {"cell": "quantized", "layer": name, "bits": bits, "levels": 7, "weights": 9, "sparsity_percent": 0.0,
         "relative_error": 0.1}
        for name, bits in (("stem", 4), ("body", 2), ("head", 4))
    ]  # fmt: skip
    told = quantize.describe(replace(results, layers=layers)).splitlines()[-1]
    assert told == "  bits by layer, quantized gpfq_l0 (2.90 on average): 2 in body; 4 in stem, head"
    alike = [{**row, "bits": "3"} for row in results.rows]
    assert "by layer" not in quantize.describe(replace(results, rows=alike, layers=layers))


@pytest.mark.parametrize(("text", "bits"), [("4", 4), ("auto:3", "auto:3"), ("3 last:8", "3 last:8")])
def test_the_command_takes_what_params_yaml_takes(
    monkeypatch: pytest.MonkeyPatch, text: str, bits: int | str
) -> None:
    requests: list[quantize.Request] = []

    def run(_: object, request: quantize.Request, workers: object) -> str:
        requests.append(request)
        return "the outcome"

    monkeypatch.setattr(quantize, "run", run)
    monkeypatch.setattr(cli, "find_stale", lambda *_: None)
    monkeypatch.setattr(track, "send_waiting", lambda: "what was sent")
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, ["quantize", "--bits", text])
    assert (result.exit_code, result.output) == (0, "the outcome\nwhat was sent\n")
    assert [request.bits for request in requests] == [bits]


def test_what_is_not_quantized_is_told_once_and_in_the_run(weights: Path) -> None:
    results = mixed_results(weights)
    assert "not quantized" not in quantize.describe(results)
    kept = "body.fc (640 weights): ignore names it"
    rows = [{**row, "not_quantized": kept} if row["method"] != "float" else row for row in results.rows]
    lines = quantize.describe(replace(results, rows=[*rows, rows[-1]])).splitlines()
    assert [line for line in lines if "not quantized" in line] == [f"  not quantized: {kept}"]
    for some, told in ((results.rows, None), (rows, kept)):
        cell = list(subset_runs(replace(results, rows=some)))[-1]
        assert cell.params.get("not_quantized") == told
