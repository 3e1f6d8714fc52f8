"""The real thing, small: `dvc repro`, `dvc exp run`, `mlflow run` and kill -9, in a copy of the project."""

import gzip
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from threading import Event

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from laq.cli import main
from laq.dataset import read_images
from laq.files import read_json
from laq.network import Classifier, build, predict, read_design
from laq.params import load_params
from laq.quantization import load
from laq.track.deliver import deliver
from laq.track.deliver_live import Following, follow
from laq.track.store import Store
from tests.conftest import tiny_params, write_params
from tests.project import BITS, SUBSETS, environment, laq, run, stages_run

RUNS = 1 + SUBSETS * (1 + 2 * BITS)  # the study, its subsets, and two methods at each bit-width for each


@pytest.fixture(scope="module")
def own(clone: Path, new_store: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for what changes files or the store, with no runs in it yet."""
    target = tmp_path_factory.mktemp("own") / "copy"
    shutil.copytree(clone, target, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    new_store(target / "mlflow.db")
    return target


def runs_in(folder: Path, experiment: str = "laq-glyphs") -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], max_results=1000))


def report_of(folder: Path) -> str:
    """The report, with one space where its tables have several."""
    return re.sub(" +", " ", (folder / "data/report/report.md").read_text(encoding="utf-8"))


def test_the_pipeline_ends_with_a_report_of_every_cell(clone: Path) -> None:
    table = pd.read_csv(clone / "data/study/measurements.csv")
    # Per subset: two networks as they are, and both by both methods at each bit-width.
    assert len(table) == SUBSETS * 2 * (1 + 2 * BITS)
    assert set(table.dataset) == {"glyphs"}
    layers = pd.read_csv(clone / "data/study/layers.csv")
    assert set(layers.groupby("cell").size()) == {10}
    assert layers.levels.isin([7, 255]).all()
    found = read_json(clone / "data/report/metrics.json")
    mean = table[
        (table.variant == "quantized") & (table.method == "gpfq") & (table.bits == 3)
    ].top1_sub_percent.mean()
    assert found["top1"]["gpfq"] == pytest.approx(mean, abs=1e-3)
    assert "| original | rtn | 3 | 7 | 3 |" in report_of(clone)


def test_the_study_is_tracked_as_runs_of_subsets_and_below_them_of_cells(clone: Path) -> None:
    runs = runs_in(clone)
    levels = {
        name: [r for r in runs if r.data.tags["laq.level"] == name] for name in ("study", "subset", "cell")
    }
    assert [len(some) for some in levels.values()] == [1, SUBSETS, SUBSETS * 2 * BITS]
    (study,) = levels["study"]
    subsets = {r.info.run_id: r.data.params["subset"] for r in levels["subset"]}
    assert {r.data.tags["mlflow.parentRunId"] for r in levels["subset"]} == {study.info.run_id}
    assert all(subsets[r.data.tags["mlflow.parentRunId"]] == r.data.params["subset"] for r in levels["cell"])
    assert study.data.tags["laq.commit"] == run(clone, "git", "rev-parse", "HEAD").strip()
    assert read_json(clone / "data/tracked.json") == {"laq_key": study.data.tags["laq.key"][:12]}
    table = pd.read_csv(clone / "data/study/measurements.csv").set_index("cell")
    cell = cell_of(clone, "gpfq")
    for variant, name in (("quantized", "top1"), ("finetuned_quantized", "finetuned/top1")):
        expected = table.loc[f"random-1.{variant}.gpfq-3bit.subset-0", "top1_sub_percent"]
        assert cell.data.metrics[name] == pytest.approx(expected)
    (seconds,) = (clone / ".laq/seconds").iterdir()
    took = pd.read_csv(seconds).set_index("cell").seconds
    folder = Path(cell.info.artifact_uri.removeprefix("file://"))
    measured = {row["cell"]: row for row in read_json(folder / "measurements.json")}
    quantized = measured["random-1.quantized.gpfq-3bit.subset-0"]
    assert quantized["seconds"] == took[quantized["cell"]]
    assert {row["bits"] for row in read_json(folder / "layers.json")["quantized"]} == {3}


def cell_of(folder: Path, method: str) -> Run:
    """The run of a method at 3 bits for random-1."""
    wanted = {"subset": "random-1", "bits": "3", "method": method}
    (found,) = [r for r in runs_in(folder) if wanted.items() <= r.data.params.items()]
    return found


def test_a_model_of_the_study_is_the_measured_network_bit_for_bit(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, cell = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}"), cell_of(clone, "gpfq")
    models = [client.get_logged_model(output.model_id) for output in cell.outputs.model_outputs]
    assert {model.name for model in models} == {"quantized", "finetuned_quantized"}
    monkeypatch.chdir(clone)
    subset = next(s for s in read_json(Path("data/subsets.json")) if s["name"] == "random-1")
    images = read_images(Path("data/dataset"), "test").select(subset["classes"])
    pixels = [image.permute(1, 2, 0).numpy() for image in images.images]
    columns = sorted(subset["classes"])
    for model in models:
        weights = Path(f"data/study/networks/random-1.{model.name}.gpfq-3bit.subset-0/network.safetensors")
        measured = load(weights, build(read_design()))
        assert isinstance(measured, Classifier)
        expected = predict(measured, images)[:, columns].double().softmax(1)
        found = mlflow.pyfunc.load_model(model.artifact_location).predict(pd.DataFrame({"image": pixels}))
        names = [images.class_names[column] for column in columns]
        assert [[row[name] for name in names] for row in found["probabilities"]] == expected.tolist()
        assert list(found["class"]) == [names[at] for at in expected.argmax(1)]
        right = [images.class_names[label] for label in images.labels] == found["class"]
        row = pd.read_csv("data/study/measurements.csv").set_index("cell").loc[weights.parent.name]
        assert 100 * right.mean() == pytest.approx(row.top1_sub_percent)


def test_tracking_sends_what_a_store_lacks_and_nothing_twice(own: Path) -> None:
    assert f"Sent {RUNS} of {RUNS} runs to " in laq(own, "track")
    runs = runs_in(own)
    assert f"Sent 0 of {RUNS} runs to " in laq(own, "track")
    MlflowClient(f"sqlite:///{own / 'mlflow.db'}").set_terminated(runs[0].info.run_id, "RUNNING")
    assert f"Sent 1 of {RUNS} runs to " in laq(own, "track")
    assert {r.info.run_id for r in runs_in(own)} == {r.info.run_id for r in runs}


def test_runs_appear_while_the_study_is_measured_and_track_sends_the_rest(
    own: Path,
    clone: Path,
    new_store: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new_store(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(own)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    following = Following(load_params())
    hidden = {
        folder: tmp_path / folder.name
        for cell, folder in following.folders.items()
        if cell.subset.name == "random-1" and cell.recipe
    }
    for folder, away in hidden.items():
        shutil.move(folder, away)
    # Killed and begun again, it sends nothing twice.
    assert len(deliver(Store(), following.so_far()).sent) == (SUBSETS - 1) * 2 * BITS
    assert not deliver(Store(), Following(load_params()).so_far()).sent
    early = {r.data.tags["laq.key"]: r for r in runs_in(tmp_path) if r.info.status == "FINISHED"}
    assert len(early) == (SUBSETS - 1) * 2 * BITS
    (study,) = [r for r in runs_in(tmp_path) if r.data.tags.get("laq.level") == "study"]
    assert study.info.status == "RUNNING"
    measured = len(following.folders) - len(hidden)
    assert study.data.metrics == {"progress_percent": pytest.approx(100 * measured / len(following.folders))}
    for folder, away in hidden.items():
        shutil.move(away, folder)
    assert f"Sent {RUNS - len(early)} of {RUNS} runs" in laq(own, "track", MLFLOW_TRACKING_URI=uri)
    found = {r.data.tags["laq.key"]: r for r in runs_in(tmp_path)}
    assert len(found) == RUNS
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    assert found[study.data.tags["laq.key"]].data.metrics["progress_percent"] == 100
    # As though all had been sent at the end.
    late = {r.data.tags["laq.key"]: r.data for r in runs_in(clone)}
    for key, sent in early.items():
        assert found[key].info.run_id == sent.info.run_id
        assert (sent.data.metrics, sent.data.params) == (late[key].metrics, late[key].params)


def test_a_study_goes_on_where_the_store_is_away_and_says_so_once(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    over, told = Event(), list[str]()

    def tell(text: str) -> None:
        told.append(text)
        over.set()

    follow(load_params(), over, tell)
    (line,) = told
    assert line.startswith("the study goes on without MLflow: MLflow at http://127.0.0.1:9: ")


def test_a_second_repro_does_nothing_and_neither_is_a_change_to_git(clone: Path) -> None:
    output = run(clone, "dvc", "repro")
    assert stages_run(output) == []
    assert "up to date" in output
    assert run(clone, "git", "status", "--porcelain") == ""


def test_a_study_killed_in_the_middle_continues_with_the_same_table(own: Path) -> None:
    table, cells = own / "data/study/measurements.csv", own / ".laq/cells"
    before = table.read_bytes()
    shutil.rmtree(cells)
    two = environment() | {"LAQ_JOBS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "laq", "study"], cwd=own, env=two, stderr=subprocess.DEVNULL
    )
    while len(finished(cells)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = finished(cells)
    assert 3 <= len(kept) < SUBSETS * 2 * (1 + 2 * BITS)
    laq(own, "study")
    assert table.read_bytes() == before
    assert {name: made for name, made in finished(cells).items() if name in kept} == kept
    # Other seconds, and nothing else to what DVC has recorded.
    assert "up to date" in run(own, "dvc", "status")


def finished(cells: Path) -> dict[str, int]:
    """The cells that are done, with the time each was."""
    return {p.parent.name: p.stat().st_mtime_ns for p in cells.glob("[0-9a-f]*/inputs.json")}


def test_the_same_order_measured_anew_is_the_same_run_whatever_it_took(own: Path) -> None:
    order = ("quantize", "--subset", "random-1", "--bits", "8")
    assert "Sent 4 runs" in laq(own, *order)
    for path in (own / ".laq/cells").glob("*/seconds.json"):
        path.write_text("12.3", encoding="utf-8")
    assert "Sent 0 runs" in laq(own, *order)


@pytest.mark.skipif(shutil.which("pyenv") is None, reason="MLflow's default environment needs pyenv")
def test_mlflow_run_needs_no_flag(own: Path) -> None:
    run(own, "mlflow", "run", ".", "-e", "quantize", "-P", "bits=8")
    runs = runs_in(own, "Default")
    (parent,) = [r for r in runs if r.data.params.get("bits") == "8" and r.data.params.get("subset") == "all"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.data.tags["laq.level"] == "quantize"
    assert {r.data.params["subset"] for r in children} == {"similar-1", "dissimilar-1", "random-1"}


def test_results_of_another_study_are_not_sent_under_this_ones_name(own: Path) -> None:
    committed = (own / "params.yaml").read_bytes()
    try:
        params = tiny_params()
        params["glyphs"]["study"]["bits"] = [3, 5]
        write_params(own, params)
        told = (
            "laq: params.yaml: glyphs.study.bits is [3, 5], and was [3, 8] when the stage study ran; "
            "run `dvc repro`\n"
        )
        for command in (["track"], ["report"], ["report", "--publish", "out"]):
            assert laq(own, *command, code=2) == told
        state = laq(own, "status")
        assert re.search("^subsets +made$", state, re.MULTILINE)
        assert re.search(
            r"^study +stale +params.yaml: glyphs.study.bits is \[3, 5\], .*; 18 of 30 cells",
            state,
            re.MULTILINE,
        )
        assert re.search("^report +waits +for study, which it reads$", state, re.MULTILINE)
        assert "`dvc repro` runs study and what comes after it" in state
        write_params(own, params | {"study": "cifar100"})
        assert laq(own, "track", code=2).startswith(
            "laq: params.yaml: cifar100.dataset.name is 'cifar100', and was 'glyphs' when the stage dataset ran"
        )
    finally:
        (own / "params.yaml").write_bytes(committed)


def test_publishing_brings_the_provenance_and_deletes_nothing_else(own: Path) -> None:
    assert "holds something else" in laq(own, "report", "--publish", ".", code=2)
    assert "holds something else" in laq(own, "report", "--publish", "laq", code=2)
    for _ in range(2):
        laq(own, "report", "--publish", "out/glyphs")
    found = read_json(own / "out/glyphs/provenance.json")
    assert found["commit"] == run(own, "git", "rev-parse", "HEAD").strip()
    assert found["dirty"] is False
    assert found["uncommitted"] == []
    for name, record in found["stages"].items():
        assert record == read_json(own / f"data/provenance/{name}.json")
    published = gzip.decompress((own / "out/glyphs/measurements.csv.gz").read_bytes())
    assert published == (own / "data/report/measurements.csv").read_bytes()
    assert not (own / "out/glyphs/measurements.csv").exists()
    assert (own / "laq/cli.py").exists()


def test_an_unknown_subset_is_told_with_those_that_are_known(clone: Path) -> None:
    output = laq(clone, "quantize", "--subset", "mine", code=2)
    assert (
        "laq: --subset: found 'mine'; must be all or the name of a subset of the study, such as random-1"
        in output
    )
    assert "Traceback" not in output


def test_a_sample_is_a_test_image_of_the_subsets_classes(clone: Path, tmp_path: Path) -> None:
    told = laq(clone, "sample", "random-1", "--number", "3", "--out", str(tmp_path / "sample.png"))
    subset = next(s for s in read_json(clone / "data/subsets.json") if s["name"] == "random-1")
    images = read_images(clone / "data/dataset", "test").select(subset["classes"])
    assert told == (
        f"laq: test image 3 of random-1 is of the class {images.class_names[int(images.labels[3])]}\n"
    )
    with Image.open(tmp_path / "sample.png") as picture:
        assert (np.array(picture) == images.images[3].permute(1, 2, 0).numpy()).all()
    with chdir(clone):
        piped = CliRunner().invoke(main, ["sample", "random-1", "--number", "3"])
    assert piped.stdout_bytes == (tmp_path / "sample.png").read_bytes()
    assert laq(clone, "sample", "random-1", "--number", "6", code=2) == (
        "laq: --number: found 6; must be below 6, the number of random-1's test images\n"
    )
    assert "SUBSET: found 'random'; must be" in laq(clone, "sample", "random", code=2)


def test_an_unreachable_store_is_told_in_a_line_and_loses_nothing(own: Path) -> None:
    output = laq(own, "track", code=2, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert [line for line in output.splitlines() if line.startswith("laq: MLflow at http://127.0.0.1:9")]
    assert "Traceback" not in output


def test_an_experiment_of_other_bits_reruns_study_report_and_track_alone_and_is_shown(own: Path) -> None:
    output = run(own, "dvc", "exp", "run", "-n", "by-layer", "-S", "glyphs.study.bits=[3,'auto:4']")
    assert stages_run(output) == ["study", "report", "track"]
    table = pd.read_csv(own / "data/study/measurements.csv")
    assert set(table.bits) == {"3", "auto:4", "32"}
    spent = table[(table.bits == "auto:4") & (table.method == "gpfq")].mean_bits
    assert spent.between(3.5, 4).all()
    layers = pd.read_csv(own / "data/study/layers.csv")
    spread = layers[layers.cell == "random-1.quantized.gpfq-auto_4.subset-0"].bits
    assert spread.min() < spread.max()
    assert "| original | gpfq | auto:4 | |" in report_of(own)
    shown = run(own, "dvc", "exp", "show", "--csv", "--only-changed")
    assert "by-layer" in shown
    assert "top1.gpfq" in shown
    runs = runs_in(own, "laq-glyphs")
    (study,) = [
        r.data.tags
        for r in runs
        if r.data.tags.get("laq.dvc_experiment") == "by-layer" and r.data.tags["laq.level"] == "study"
    ]
    assert (study["laq.dirty"], study["laq.uncommitted"]) == ("True", "params.yaml")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["network"], "data/dataset: not found; run `dvc repro`"),
        (["report"], "data/dataset: not found; run `dvc repro`"),
        (["report", "--publish", "out"], "data/dataset: not found; run `dvc repro`"),
        (["track"], "data/dataset: not found; run `dvc repro`"),
        (
            ["quantize", "--bits", "1"],
            "found '1'; must be a whole number from 2 to 24, or a text such as auto:3",
        ),
    ],
)
def test_missing_input_is_told_in_a_line_with_exit_code_2(
    project: Path, command: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert {path.name for path in project.iterdir()} == {"dvc.yaml", "params.yaml"}


def test_a_wrong_parameter_is_told_in_a_line_with_exit_code_2(project: Path) -> None:
    params = tiny_params()
    params["glyphs"]["study"]["bits"] = "three"
    write_params(project, params)
    result = CliRunner().invoke(main, ["study"])
    assert result.exit_code == 2
    assert result.stderr.startswith("laq: params.yaml: glyphs.study.bits: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_seed_of_a_process_does_not_matter(own: Path) -> None:
    torch.manual_seed(1)
    first = (own / "data/subsets.json").read_bytes()
    run(own, sys.executable, "-m", "laq", "subsets", PYTHONHASHSEED="7")
    assert (own / "data/subsets.json").read_bytes() == first
