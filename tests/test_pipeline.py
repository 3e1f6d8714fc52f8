"""The real thing, small: `dvc repro`, `dvc exp run`, `mlflow run` and kill -9, in a copy of the project."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

from laq.cli import main
from laq.files import read_json
from tests.conftest import ROOT, tiny_params, write_params

BINARIES = Path(sys.executable).parent
SUBSETS, BITS = 3, 2  # of the tiny study


def environment() -> dict[str, str]:
    """The user's environment with the project's activated, and nothing of MLflow's or DVC's in it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "LAQ_"))}
    return clean | {"PATH": os.pathsep.join([str(BINARIES), os.environ["PATH"]])}


def run(folder: Path, *command: str, code: int = 0, **variables: str) -> str:
    """What ``command`` prints, run in ``folder``; it must end with ``code``."""
    done = subprocess.run(
        command, cwd=folder, env=environment() | variables, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the project's files and tiny parameters, its pipeline run once."""
    folder = tmp_path_factory.mktemp("clone")
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    write_params(folder, tiny_params())
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@t commit -qm start"):
        run(folder, "git", *command.split())
    first = run(folder, "dvc", "repro")
    assert stages_run(first) == list(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"])
    return folder


def test_the_pipeline_ends_with_a_report_of_every_cell(clone: Path) -> None:
    table = pd.read_csv(clone / "data/study/measurements.csv")
    # Per subset: two networks as they are, and both by both methods at each bit-width.
    assert len(table) == SUBSETS * 2 * (1 + 2 * BITS)
    assert set(table.dataset) == {"glyphs"}
    layers = pd.read_csv(clone / "data/study/layers.csv")
    assert set(layers.groupby("cell").size()) == {22}
    assert layers.levels.isin([7, 255]).all()
    found = read_json(clone / "data/report/metrics.json")
    mean = table[
        (table.variant == "quantized") & (table.method == "gpfq") & (table.bits == 3)
    ].top1_sub_percent.mean()
    assert found["top1"]["gpfq-3bit"] == pytest.approx(mean, abs=1e-3)
    assert "| original | rtn | 3 | 7 | 3 |" in (clone / "data/report/report.md").read_text()
    inputs = read_json(clone / "data/study/inputs.json")
    assert inputs["dataset_md5"] == read_json(clone / "data/dataset/manifest.json")["md5"]


def test_the_study_is_tracked_as_a_parent_with_a_child_per_subset_and_bits(clone: Path) -> None:
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "laq-glyphs"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(parents) == 1
    assert len(children) == SUBSETS * BITS
    assert parents[0].data.tags["mlflow.note.content"].startswith("# resnet20 on glyphs")
    assert parents[0].data.tags["laq.commit"] == run(clone, "git", "rev-parse", "HEAD").strip()
    child = next(
        r for r in children if r.data.params["subset"] == "random-1" and r.data.params["bits"] == "3"
    )
    table = pd.read_csv(clone / "data/study/measurements.csv").set_index("cell")
    for method in ("rtn", "gpfq"):
        expected = table.loc[f"random-1.quantized.{method}-3bit", "top1_sub_percent"]
        assert child.data.metrics[f"{method}/quantized/top1_sub_percent"] == pytest.approx(expected)
    folder = Path(client.download_artifacts(child.info.run_id, ""))
    assert {row["bits"] for row in read_json(folder / "layers.json")["gpfq/quantized"]} == {3}
    assert len(list(folder.glob("networks/*/network.safetensors"))) == 4


def test_tracking_twice_sends_nothing_twice_and_finishes_what_was_left(clone: Path) -> None:
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "laq-glyphs"]
    runs = client.search_runs([experiment.experiment_id])
    assert "0 of 7 runs sent" in run(clone, "laq", "track")
    client.set_terminated(runs[0].info.run_id, "RUNNING")
    assert "1 of 7 runs sent" in run(clone, "laq", "track")
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)


def test_a_second_repro_does_nothing(clone: Path) -> None:
    output = run(clone, "dvc", "repro")
    assert stages_run(output) == []
    assert "up to date" in output


def test_a_study_killed_in_the_middle_continues_with_the_same_table(clone: Path) -> None:
    table, cells = clone / "data/study/measurements.csv", clone / ".laq/cells"
    before = table.read_bytes()
    shutil.rmtree(cells)
    process = subprocess.Popen(
        [sys.executable, "-m", "laq", "study"], cwd=clone, env=environment(), stderr=subprocess.DEVNULL
    )
    while len(finished(cells)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = finished(cells)
    assert 3 <= len(kept) < SUBSETS * 2 * (1 + 2 * BITS)
    run(clone, sys.executable, "-m", "laq", "study")
    assert table.read_bytes() == before
    assert {name: made for name, made in finished(cells).items() if name in kept} == kept


def finished(cells: Path) -> dict[str, int]:
    """The cells that are done, with the time each was."""
    return {p.parent.name: p.stat().st_mtime_ns for p in cells.glob("[0-9a-f]*/inputs.json")}


def test_mlflow_run_logs_a_run_with_the_quantized_network(clone: Path) -> None:
    output = run(
        clone,
        "mlflow",
        "run",
        ".",
        "-e",
        "quantize",
        "--env-manager",
        "local",
        "-P",
        "bits=3",
        "-P",
        "subset=random-1",
    )
    assert "random-1:" in output
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    (logged,) = client.search_runs(["0"])
    assert logged.info.status == "FINISHED"
    assert (logged.data.params["bits"], logged.data.params["subset"]) == ("3", "random-1")
    table = pd.read_csv(clone / "data/study/measurements.csv").set_index("cell")
    for variant in ("quantized", "finetuned_quantized"):
        expected = table.loc[f"random-1.{variant}.gpfq-3bit", "top1_sub_percent"]
        assert logged.data.metrics[f"gpfq/{variant}/top1_sub_percent"] == pytest.approx(expected)
    assert model_scores(clone, logged.info.run_id) == pytest.approx(
        table.loc["random-1.quantized.gpfq-3bit", "top1_all_percent"]
    )


def model_scores(clone: Path, run_id: str) -> float:
    """Top-1 of the logged model on its subset's test images, in a process of its own."""
    program = f"""
import json, mlflow, torch
from laq.dataset import read_images
from laq.network import evaluate
mlflow.set_tracking_uri("sqlite:///mlflow.db")
classes = json.loads(mlflow.artifacts.load_text("runs:/{run_id}/subset.json"))["classes"]
network = mlflow.pytorch.load_model("runs:/{run_id}/network")
class Floats(torch.nn.Module):
    def forward(self, pixels): return network(pixels.float())
print("score", evaluate(Floats(), read_images(__import__("pathlib").Path("data/dataset"), "test"), classes).top1_all)
"""
    return float(run(clone, sys.executable, "-c", program).rpartition("score ")[2])


@pytest.mark.skipif(shutil.which("pyenv") is None, reason="MLflow's default environment needs pyenv")
def test_mlflow_run_needs_no_flag(clone: Path) -> None:
    run(clone, "mlflow", "run", ".", "-e", "quantize", "-P", "bits=8")
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    runs = client.search_runs(["0"], "params.bits = '8'")
    parents = [r for r in runs if r.data.params["subset"] == "all"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(parents) == 1
    assert len(children) == SUBSETS


def test_results_of_another_study_are_not_sent_under_this_ones_name(clone: Path) -> None:
    committed = (clone / "params.yaml").read_bytes()
    try:
        params = tiny_params()
        params["glyphs"]["study"]["bits"] = [5]
        write_params(clone, params)
        assert "made with other parameters than params.yaml" in run(clone, "laq", "track", code=2)
        assert "made by other code or parameters" in run(clone, "laq", "report", "--publish", "out", code=2)
        write_params(clone, params | {"study": "cifar100"})
        assert "data/dataset: holds glyphs, the study cifar100" in run(clone, "laq", "quantize", code=2)
    finally:
        (clone / "params.yaml").write_bytes(committed)


def test_publishing_brings_the_provenance_and_deletes_nothing_else(clone: Path) -> None:
    assert "holds something else" in run(clone, "laq", "report", "--publish", ".", code=2)
    assert "holds something else" in run(clone, "laq", "report", "--publish", "laq", code=2)
    for _ in range(2):
        run(clone, "laq", "report", "--publish", "out/glyphs")
    found = read_json(clone / "out/glyphs/provenance.json")
    assert found["commit"] == run(clone, "git", "rev-parse", "HEAD").strip()
    assert found["dirty"] is False
    assert found["inputs"]["dataset_md5"] == read_json(clone / "data/dataset/manifest.json")["md5"]
    assert (clone / "laq/cli.py").exists()


def test_an_unreachable_store_is_told_in_a_line_and_loses_nothing(clone: Path) -> None:
    output = run(clone, "laq", "track", code=2, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert [line for line in output.splitlines() if line.startswith("laq: MLflow at http://127.0.0.1:9")]
    assert "Traceback" not in output


def test_changing_only_the_bits_reruns_only_study_and_report(clone: Path) -> None:
    params = tiny_params()
    params["glyphs"]["study"]["bits"] = [3, "auto:4"]
    write_params(clone, params)
    assert stages_run(run(clone, "dvc", "repro")) == ["study", "report", "track"]
    table = pd.read_csv(clone / "data/study/measurements.csv")
    assert set(table.bits) == {"3", "auto:4", "32"}
    spent = table[(table.bits == "auto:4") & (table.method == "gpfq")].mean_bits
    assert spent.between(3.5, 4).all()
    layers = pd.read_csv(clone / "data/study/layers.csv")
    spread = layers[layers.cell == "random-1.quantized.gpfq-auto_4"].bits
    assert spread.min() < spread.max()
    assert "| original | gpfq | auto:4 |  |" in (clone / "data/report/report.md").read_text()


def test_an_experiment_changes_a_key_and_is_shown(clone: Path) -> None:
    output = run(clone, "dvc", "exp", "run", "-n", "two-bits", "-S", "glyphs.study.bits=[2]")
    assert stages_run(output) == ["study", "report", "track"]
    shown = run(clone, "dvc", "exp", "show", "--csv", "--only-changed")
    assert "two-bits" in shown
    assert "top1.gpfq-2bit" in shown


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["network"], "data/dataset/train: not found; run `dvc repro`"),
        (["report"], "data/study/measurements.csv: not found; run `dvc repro`"),
        (["report", "--publish", "out"], "data/study/inputs.json: not found"),
        (["quantize", "--subset", "mine"], "data/dataset/manifest.json: not found"),
        (["quantize", "--bits", "1"], "found '1'; must be 2 to 24, or a text such as auto:3"),
    ],
)
def test_missing_input_is_told_in_a_line_with_exit_code_2(
    project: Path, command: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (project / "out").exists()


def test_a_wrong_parameter_is_told_in_a_line_with_exit_code_2(project: Path) -> None:
    params = tiny_params()
    params["glyphs"]["study"]["bits"] = "three"
    write_params(project, params)
    result = CliRunner().invoke(main, ["study"])
    assert result.exit_code == 2
    assert result.stderr.startswith("laq: params.yaml: glyphs.study.bits: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_seed_of_a_process_does_not_matter(clone: Path) -> None:
    torch.manual_seed(1)
    first = (clone / "data/subsets.json").read_bytes()
    run(clone, sys.executable, "-m", "laq", "subsets", PYTHONHASHSEED="7")
    assert (clone / "data/subsets.json").read_bytes() == first
