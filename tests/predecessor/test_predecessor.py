"""The predecessor's logs: its numbers reproduced, its claim asked, and broken logs told in a line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from laq import predecessor
from laq.cli import main
from laq.errors import LaqError
from laq.predecessor import describe, read_log
from laq.predecessor.logs import log_table, read_rows
from laq.report.dependence import INACCURACY
from tests.conftest import PREDECESSOR, needs
from tests.studies import report_params

PARAMS = report_params(draws=499)
LOGS = PREDECESSOR / "logs"
# Means of all rows as logged: original all / sub, quantized all / sub, fine-tuned sub, both sub, rho(drop, all).
THEIRS = {
    "3bit": (83.7, 94.1, 66.1, 66.2, 94.2, 62.6, -0.91),
    "4bit": (83.9, 94.1, 82.0, 82.1, 94.2, 79.8, -0.93),
    "8bit": (83.7, 94.1, 86.2, 86.4, 94.2, 85.6, -0.845),
    "16bit": (83.7, 94.1, 86.9, 87.1, 94.2, 85.5, -0.85),
    "32bit": (83.7, 94.1, 86.5, 86.7, 94.2, 85.1, -0.85),
    "mp4bit": (83.7, 94.1, 83.2, 83.3, 94.2, 82.2, -0.92),
    "mpasc4bit": (83.7, 94.1, 68.8, 68.8, 94.2, 63.4, -0.93),
}


def logged(subsets: int = 8, bits: int = 3, lost: float = 0.2, **changes: Any) -> pd.DataFrame:
    """A log as the predecessor writes it; the last subset is there twice, its classes in another order."""
    rows = []
    for number in [*range(subsets), subsets - 1]:
        classes = [f"{name}-{number}" for name in ("class", "apple", "bear")]
        far = 1.0 + number
        before = 0.8 + 0.1 * number / subsets
        scores = {"Original": before, "Quantized": before - lost / far}
        scores |= {"Fine-Tuned": 0.9, "Quant+FT": 0.7 - lost / far}
        row: dict[str, Any] = {"Model Name": "resnet50", "Dataset": "CIFAR100", "Bits": bits}
        row["Subset_Classes"] = str(classes if len(rows) < subsets else classes[::-1])
        row |= {"Max_KL": far + 1, "Min_KL": far / 2, "Avg_KL": far, "Median_KL": far}
        for name, score in scores.items():
            row |= {f"{name} Top{k} Accuracy{end}": score for k in (1, 5) for end in ("", " (Pick Sub)")}
            row[f"{name} Sparsity"] = 0.25
        rows.append({**row, **changes})
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, name: str = "log.csv") -> Path:
    path = Path(name)
    table.to_csv(path, index=False)
    return path


def test_a_log_becomes_a_table_of_ours(project: Path) -> None:
    table = log_table(read_rows(write(logged())))
    assert table.subset.nunique() == 8
    assert set(table.variant) == {"original", "quantized", "finetuned", "finetuned_quantized"}
    quantized = table[table.variant == "quantized"]
    assert len(quantized) == 9
    assert quantized.seed.tolist() == [0] * 8 + [1]
    assert set(quantized.subset_size_classes) == {3}
    assert (set(quantized.levels), set(quantized.bits), set(quantized.method)) == ({9}, {"3"}, {"gpfq"})
    assert quantized.top1_sub_percent.iloc[0] == pytest.approx(60)
    assert quantized.sparsity_percent.iloc[0] == 25
    floats = table[table.method == "float"]
    assert len(floats) == 16
    assert floats.seed.isna().all()


def test_a_log_that_numpy_2_wrote_is_read_with_the_same_values(project: Path) -> None:
    plain = logged()
    written = plain.map(lambda cell: repr(np.float64(cell)) if isinstance(cell, float) else cell)
    written["Bits"] = [repr(np.int64(3)), *["3"] * (len(plain) - 1)]  # some rows by an older NumPy
    written["Subset_Classes"] = [str([np.str_(name) for name in eval(c)]) for c in plain.Subset_Classes]  # noqa: S307
    assert written.Subset_Classes[0] == "[np.str_('class-0'), np.str_('apple-0'), np.str_('bear-0')]"
    assert written.Median_KL[1] == "np.float64(2.0)"
    expected = read_rows(write(plain))
    found = read_rows(write(written, "new.csv")).astype({"Bits": int})
    pd.testing.assert_frame_equal(found, expected.assign(Subset_Classes=written.Subset_Classes))
    pd.testing.assert_frame_equal(log_table(found), log_table(expected))


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"Stochastic Quantization": True}, "sgpfq"),
        ({"Regularizer": "L0"}, "gpfq_l0"),
        ({"Regularizer": "L1"}, "gpfq_l1"),
        ({"Regularizer": None, "Stochastic Quantization": False}, "gpfq"),
    ],
)
def test_the_method_is_the_logs(project: Path, changes: dict[str, Any], method: str) -> None:
    table = log_table(read_rows(write(logged(**changes))))
    assert set(table.method) == {"float", method}


def test_logs_without_fine_tuned_networks_are_asked_the_rest(project: Path) -> None:
    table = logged()
    kept = [c for c in table if not str(c).startswith(("Fine-Tuned", "Quant+FT"))]
    found = read_log(write(table[kept]), PARAMS)
    assert set(found.analysis.comparisons.question) == {"loss"}
    assert set(found.analysis.dependence.variant) == {"quantized"}
    assert "| log | 3 | 9 |" in re.sub(" +", " ", describe([found], PARAMS))


def test_what_is_lost_at_many_bits_is_not_laid_on_rounding(project: Path) -> None:
    logs = [
        read_log(write(logged(lost=lost, bits=bits), f"{bits}bit.csv"), PARAMS)
        for bits, lost in ((3, 0.4), (16, 0.2))
    ]
    text = describe(logs, PARAMS)
    assert "At 16 bits" in text
    assert "this is clipping" in text
    expected = 100 * np.mean([0.2 / (1 + n) for n in range(8)])
    assert f"3bit loses {expected:.1f} (" in text
    nothing = read_log(write(logged(lost=0.0, bits=16), "fine.csv"), PARAMS)
    assert "clipping" not in describe([nothing], PARAMS)
    assert "nan" not in describe([nothing], PARAMS)
    assert "No log has 16 bits" in describe(logs[:1], PARAMS)


def test_the_claim_stands_beside_the_effect_with_its_interval(project: Path) -> None:
    log = read_log(write(logged(30)), PARAMS)
    effect = log.found("drop_all_points")
    assert effect["low"] < effect["effect"] < effect["high"]
    text = describe([log], PARAMS)
    assert f"rho is {log.rho('all'):+.2f} among all classes" in text
    told = f"{effect['effect']:+.1f} ({effect['low']:+.1f} to {effect['high']:+.1f}) points among all classes"
    assert f"Halving the divergence costs {told}" in text


def test_the_command_prints_what_it_writes(project: Path) -> None:
    paths = [write(logged(bits=bits), f"log-{bits}.csv") for bits in (3, 16)]
    arguments = ["predecessor", *map(str, paths)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.output == (predecessor.FOLDER / "report.md").read_text()
    for path in paths:
        folder = predecessor.FOLDER / path.stem
        assert {f.name for f in folder.iterdir()} == {
            "report.md", "measurements.csv", "summary.csv", "by_size.csv", "dependence.csv", "prediction.csv",
            "divergences.csv", "comparisons.csv", "outcomes.csv", "fewest_bits.csv",
        }  # fmt: skip
        assert (
            f"# {path.stem}: resnet50 on CIFAR100: 8 subsets of 3 classes"
            in (folder / "report.md").read_text()
        )
    first = {f: f.read_bytes() for f in predecessor.FOLDER.rglob("*") if f.is_file()}
    CliRunner().invoke(main, arguments)
    assert first == {f: f.read_bytes() for f in first}
    alone = CliRunner().invoke(main, ["predecessor"])
    assert alone.exit_code == 2
    assert "Missing argument 'LOG.csv...'" in alone.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "log.csv: not found; give a CSV log of the predecessor's"),
        ("", "log.csv: not a CSV table"),
        ("a,b\n1,2\n", "log.csv: has no column Model Name"),
        (logged()[:0].to_csv(index=False), "log.csv: has no rows"),
        (logged(Subset_Classes="apple").to_csv(index=False), "Subset_Classes: found 'apple'; must be a list"),
        (logged(Subset_Classes="7").to_csv(index=False), "Subset_Classes: found 7; must be a list"),
        (
            logged(**{"Quantized Top1 Accuracy": 75.2}).to_csv(index=False),
            "Quantized Top1 Accuracy: found 75.2; must be a number from 0 to 1",
        ),
        (logged(Median_KL="far").to_csv(index=False), "Median_KL: found 'far'; must be a number"),
        (logged(Median_KL=None).to_csv(index=False), "Median_KL: found nan; must be a number of at least 0"),
        (
            pd.concat([logged(), logged(bits=4)]).to_csv(index=False),
            r"Bits: found \[3, 4\]; give a log for each",
        ),
    ],
)
def test_a_broken_log_is_told_in_a_line(project: Path, text: str | None, message: str) -> None:
    if text is not None:
        Path("log.csv").write_text(text)
    with pytest.raises(
        LaqError, match=f"log.csv: {message}" if "log.csv" not in message else message
    ) as caught:
        read_log(Path("log.csv"), PARAMS)
    assert "\n" not in str(caught.value)


def test_a_log_is_given_once(project: Path) -> None:
    path = write(logged())
    with pytest.raises(LaqError, match="log is given more than once"):
        predecessor.run([path, path], PARAMS)


@needs(LOGS)
@pytest.mark.parametrize("run", THEIRS)
def test_the_predecessors_numbers_are_reproduced(run: str) -> None:
    log = read_log(LOGS / f"Quantization_Log_resnet50_{run}.csv", PARAMS)
    *expected, rho = THEIRS[run]
    wanted = [
        ("original", "all"), ("original", "sub"), ("quantized", "all"), ("quantized", "sub"),
        ("finetuned", "sub"), ("finetuned_quantized", "sub"),
    ]  # fmt: skip
    assert [log.accuracy(*which) for which in wanted] == pytest.approx(expected, abs=0.06)
    assert log.rho("all") == pytest.approx(rho, abs=0.006)
    # One subset was logged twice in every log, and counts once.
    restricted = log.found("drop_sub_points")
    assert restricted["n"] == len(log.rows) - 1
    assert restricted["low"] > 0
    assert log.found("drop_sub_points", INACCURACY)["low"] > 0


@needs(LOGS)
def test_the_predecessor_loses_as_much_where_rounding_costs_nothing() -> None:
    logs = [
        read_log(LOGS / f"Quantization_Log_resnet50_{run}.csv", PARAMS) for run in ("8bit", "16bit", "32bit")
    ]
    assert [log.drops("sub").mean() for log in logs] == pytest.approx([7.7, 7.0, 7.4], abs=0.06)
    text = describe(logs, PARAMS)
    assert text.count("this is clipping") == 2
    assert "16bit, quantization gains 3.2 points among all classes" in text
