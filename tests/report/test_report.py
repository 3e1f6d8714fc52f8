"""Drops, means over seeds and subsets, and texts, tables and pictures that agree with each other."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from laq import report
from laq.dataset.layout import Description, write_manifest, write_split
from laq.divergence import ALTERNATIVES
from laq.errors import LaqError
from laq.files import read_json, write_json
from laq.paths import DATASET, DIVERGENCE, STUDY, SUBSETS
from laq.pictures import Preprocessing
from laq.quantization import METHODS
from laq.report import metrics, read_summary
from laq.report.analysis import Analysis, analyse
from laq.report.divergences import divergences_in
from laq.report.markdown import accuracies, answers_text, findings, markdown
from laq.report.tables import main_rows, over_seeds, summarise, with_drops
from tests.snapshots import check_snapshot
from tests.studies import Planted, made_up_matrix, made_up_study, made_up_subsets, report_params

PARAMS = report_params()


def study(subsets: int = 6) -> pd.DataFrame:
    """A small table in the study's form, with a drop that grows as the divergence falls."""
    rows = []
    for s in range(subsets):
        shared = {"subset": f"random-{s}", "kind": "random", "dataset": "glyphs", "network": "resnet20"}
        shared |= {"median_divergence_nats": 1.0 + s, "mean_divergence_nats": 2.0 + s}
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
                "size_bytes": 1000.0 * bits,
                "subset_size_classes": 10,
            }
            key = {"variant": variant, "method": method, "bits": str(bits), "mean_bits": float(bits)}
            images = {"calibration": "none" if method == "float" else "subset", "seed": 0}
            rows.append({**shared, **key, **images, **scores, **extra})
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


def test_balanced_accuracies_stand_beside_the_others_where_the_table_has_them() -> None:
    table = with_drops(study())
    assert "balanced" not in accuracies(summarise(table))
    unbalanced = table.assign(balanced_top1_sub_percent=71.5, balanced_top1_all_percent=60.5)
    text = accuracies(summarise(unbalanced))
    heads = [
        head.strip()
        for head in next(line for line in text.splitlines() if line.startswith("| network")).split("|")
    ]
    assert heads[7:11] == ["subset", "subset, balanced", "all", "all, balanced"]
    assert "| 71.5 ± 0.0 " in text
    assert "means over classes, each counting the same" in text


def analysed(table: pd.DataFrame) -> Analysis:
    return analyse(table, divergences_in(table), PARAMS)


def told(table: pd.DataFrame) -> str:
    """The report, the columns of its tables not padded."""
    found = analysed(table)
    return re.sub(" +", " ", markdown(found, answers_text(found, PARAMS)))


def test_seeds_are_averaged_before_subsets_are() -> None:
    measured = made_up_study(made_up_subsets(5, made_up_matrix()), Planted())
    table = with_drops(measured)
    cells = over_seeds(table)
    keys = ["variant", "method", "bits", "calibration"]
    repeated = cells[cells.calibration == "subset"]
    assert set(repeated.seeds) == {2}
    assert set(cells[cells.calibration == "none"].seeds) == {1}
    one = repeated.iloc[3]
    both = table[(table[["subset", *keys]] == one[["subset", *keys]]).all(axis=1)].top1_sub_percent
    assert len(both) == 2
    assert one.top1_sub_percent == pytest.approx(both.mean())
    assert one.top1_sub_seed_sd == pytest.approx(both.std())
    summary = summarise(table)
    assert set(summary.n) == {5}
    row = summary.set_index(keys).loc[tuple(one[keys])]
    of_its_kind = repeated[(repeated[keys] == one[keys]).all(axis=1)]
    assert row.top1_sub_percent_std == pytest.approx(of_its_kind.top1_sub_percent.std(), abs=1e-4)
    assert row.top1_sub_seed_sd == pytest.approx(of_its_kind.top1_sub_seed_sd.mean(), abs=1e-4)
    assert f"| {row.top1_sub_seed_sd:.2f} |" in told(measured)


def test_sizes_are_told_apart() -> None:
    table = with_drops(made_up_study(made_up_subsets(6, made_up_matrix(), (4, 6, 8)), Planted()))
    found = summarise(table, ("subset_size_classes",))
    whole = summarise(table)
    assert len(found) == 3 * len(whole)
    assert set(found.n) == {2}
    four = found[found.subset_size_classes == 4].iloc[0]
    expected = table[
        (table.subset_size_classes == 4) & (table.variant == four.variant) & (table.method == "float")
    ]
    assert four.top1_sub_percent_mean == pytest.approx(expected.top1_sub_percent.mean(), abs=1e-4)


def test_images_of_the_subset_are_told_first() -> None:
    measured = made_up_study(made_up_subsets(5, made_up_matrix()), Planted(calibration=3))
    table = with_drops(measured)
    assert set(main_rows(table).calibration) == {"none", "subset"}
    without = table[table.calibration != "subset"]
    assert set(main_rows(without).calibration) == {"none", "all"}
    rows = summarise(table)
    rows = rows[(rows.variant == "quantized") & (rows.method == "gpfq") & (rows.bits == "2")]
    found = dict(zip(rows.calibration, rows.top1_sub_percent_mean, strict=True))
    assert found["subset"] > found["all"] + 2
    analysis = analysed(measured)
    few = metrics(analysis.summary, analysis.dependence)
    assert few["top1"]["gpfq"] == found["subset"]
    assert set(few["top1"]) == {"float", "rtn", "gpfq"}
    assert set(few["lost_per_halving"]) == {"gpfq"}
    assert "with GPFQ calibrated on images of all classes" in findings(summarise(without))
    assert "images of all" not in findings(summarise(table))


def test_metrics_text_and_tables_say_the_same() -> None:
    found = analysed(study())
    table = with_drops(study())
    quantized = table[table.variant == "quantized"]
    slope = stats.linregress(-np.log2(quantized.median_divergence_nats), quantized.drop_sub_points).slope
    assert metrics(found.summary, found.dependence) == {
        "bits": "3",
        "top1": {"float": 89.0, "gpfq": 81.5},
        "lost_per_halving": {"gpfq": pytest.approx(slope, abs=1e-4)},
    }
    text = told(study())
    assert "| original | gpfq | 3 | 7 | 6 | subset | 81.5 ± 1.9 |" in text
    assert f"| original | gpfq | 3 | subset | 6 | {slope:+.2f} (" in text
    assert "| finetuned | gpfq | 3 | subset | 6 | undefined |" in text
    assert "The primary question has no answer here" in text  # it is about 2 bits
    assert "nan" not in text


def test_two_subsets_are_reported_without_an_effect() -> None:
    found = analysed(study(2))
    assert found.dependence.effect.isna().all()
    assert "| original | gpfq | 3 | subset | 2 | undefined |" in told(study(2))
    assert metrics(found.summary, found.dependence)["lost_per_halving"] == {}


def test_the_report_begins_with_the_sentences_and_says_what_is_exploratory() -> None:
    measured = made_up_study(made_up_subsets(12, made_up_matrix()), Planted(distance=3))
    text = told(measured)
    check_snapshot("report.txt", text)
    assert text.splitlines()[2].startswith("1. **Do subsets of similar classes lose more accuracy? ")
    assert text.index("**all else is exploratory**") < text.index("## Also asked") < text.index("## Tables")
    assert "of one draw of these images" not in text  # two seeds
    assert "of one draw of these images" in told(measured[measured.seed.isna() | (measured.seed == 0)])


def test_one_subset_is_told_without_a_deviation() -> None:
    text = told(study(1))
    assert "| original | gpfq | 3 | 7 | 1 | subset | 79.0 |" in text
    assert "nan" not in text


def test_an_experiment_is_summed_up_by_its_fewest_bits() -> None:
    more = study().assign(bits="4", mean_bits=4.0)
    more.loc[more.method != "float", "top1_sub_percent"] += 2
    found = analysed(pd.concat([study(), more[more.method != "float"]], ignore_index=True))
    assert metrics(found.summary, found.dependence)["top1"] == {"float": 89.0, "gpfq": 81.5}


def test_findings_name_the_best_method_beside_round_to_nearest() -> None:
    worse = study()[lambda t: t.method != "float"].assign(method="rtn")
    worse["top1_sub_percent"] -= 10
    text = findings(summarise(with_drops(pd.concat([study(), worse], ignore_index=True))))
    assert "- at 3 bits: 7.5 ± " in text
    assert text.endswith("points with round-to-nearest (n = 6)")
    assert "points with GPFQ, 17.5 ± " in text


def test_what_rounds_to_nothing_has_no_sign() -> None:
    table = study()
    table.loc[table.variant == "quantized", "top1_sub_percent"] = 89.004
    assert "- at 3 bits: 0.0 ± 0.0 points with GPFQ" in findings(summarise(with_drops(table)))
    assert "-0.0" not in told(table)


def test_levels_are_told_only_where_all_subsets_have_them() -> None:
    table = study().astype({"levels": "Int64"})
    table.loc[(table.variant == "quantized") & (table.subset == "random-3"), "levels"] = pd.NA
    found = summarise(with_drops(table)).set_index("variant").levels
    assert pd.isna(found["quantized"])
    assert found["finetuned_quantized"] == 7


def test_patterns_are_no_markdown() -> None:
    text = told(study().replace({"bits": {"3": "a*=4 (b|c)*=3"}}))
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


def make_study(folder: Path) -> pd.DataFrame:
    """The files that the stage reads, of a made-up study with another divergence beside its own."""
    matrix = made_up_matrix()
    subsets = made_up_subsets(9, matrix)
    table = made_up_study(subsets, Planted(distance=1, calibration=3))
    (folder / STUDY).mkdir(parents=True)
    table.to_csv(folder / STUDY / "measurements.csv", index=False)
    (folder / DATASET).mkdir(parents=True)
    classes, images = range(len(matrix)), np.zeros((len(matrix), 3, 8, 8), np.uint8)
    for split in ("train", "test"):
        write_split(folder / DATASET, split, [images], classes)  # type: ignore[arg-type]
    told = Description([f"class-{c}" for c in classes], Preprocessing(8))
    write_manifest(folder / DATASET, "made up", told)
    layer = {
        "layer": "body.fc",
        "bits": 3,
        "weights": 9,
        "levels": 7,
        "sparsity_percent": 1.0,
        "relative_error": 0.1,
    }
    rows = [{"cell": cell, **layer} for cell in table.cell[table.method != "float"]]
    pd.DataFrame(rows).to_csv(folder / STUDY / "layers.csv", index=False)
    (folder / DIVERGENCE / ALTERNATIVES).mkdir(parents=True)
    np.save(folder / DIVERGENCE / "matrix.npy", matrix)
    np.save(folder / DIVERGENCE / "class_names.npy", [f"class-{c}" for c in range(len(matrix))])
    np.save(folder / DIVERGENCE / "plane.npy", np.ones((len(matrix), 5)))
    for name in ("umap-gaussian", "features-knn"):
        np.save(folder / DIVERGENCE / ALTERNATIVES / f"{name}.npy", made_up_matrix(seed=1))
    write_json(folder / DIVERGENCE / "divergence.json", {"name": "umap-gaussian"})
    write_json(folder / SUBSETS, [vars(subset) for subset in subsets])
    return table


def test_the_stage_writes_the_same_bytes_twice(project: Path) -> None:
    table = make_study(project)
    report.run(PARAMS)
    names = (
        "measurements.csv",
        "layers.csv",
        "summary.csv",
        "by_size.csv",
        "dependence.csv",
        "prediction.csv",
        "comparisons.csv",
    )
    first = {
        name: (report.FOLDER / name).read_bytes()
        for name in (*names, "report.md", "metrics.json", "page.html", "points_lost.png")
    }
    report.run(PARAMS)
    assert first == {name: (report.FOLDER / name).read_bytes() for name in first}
    assert len(pd.read_csv(report.FOLDER / "measurements.csv")) == len(table)
    asked = pd.read_csv(report.FOLDER / "dependence.csv")
    assert set(asked.divergence) == {"umap-gaussian"}
    # The study's own divergence is not asked twice.
    assert set(pd.read_csv(report.FOLDER / "prediction.csv").divergence) == {"umap-gaussian", "features-knn"}
    assert set(pd.read_csv(report.FOLDER / "comparisons.csv").question) == {
        "loss", "calibration", "finetuning", "method", "allocation",
    }  # fmt: skip
    assert set(read_summary().calibration) == {"none", "subset", "all"}
    plotted = pd.read_csv(report.FOLDER / "plotted.csv", dtype={"bits": str})
    assert not plotted.duplicated(["subset", "network", "method", "bits"]).any()
    assert set(plotted.calibration) == {"none", "subset"}
    assert set(read_json(report.FOLDER / "metrics.json")) == {"bits", "top1", "lost_per_halving"}


def test_a_report_needs_the_divergence(project: Path) -> None:
    make_study(project)
    (project / DIVERGENCE / "matrix.npy").unlink()
    with pytest.raises(LaqError, match="data/divergence/matrix.npy: not found; run `dvc repro`"):
        report.run(PARAMS)


def test_subsets_that_are_not_the_studys_are_told(project: Path) -> None:
    make_study(project)
    write_json(project / SUBSETS, read_json(project / SUBSETS)[:-1])
    with pytest.raises(LaqError, match="data/subsets.json: has no subset random-8, which the study measured"):
        report.run(PARAMS)
