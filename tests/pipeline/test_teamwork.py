"""A team's ways of working, with the real programs: `mlflow run` anywhere, remotes, queues, restored stages."""

import csv
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from laq.files import read_json
from tests.project import SUBSETS, environment, laq, run, stages_run

STUDY_RUNS = 1 + SUBSETS * (1 + 2 * 2)  # the study, its subsets, two methods at two bit-widths for each
QUANTIZE_RUNS = 1 + 1 + 2  # an order for one subset, the subset, round-to-nearest and the method


def runs_in(folder: Path, experiment: str) -> list[Run]:
    """All runs of an experiment in the store of a project."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], max_results=1000))


def without_pyenv() -> str:
    """The PATH less the folders that have pyenv."""
    folders = environment()["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "pyenv").exists())


@pytest.fixture
def copied(clone: Path, new_store: Callable[[Path], None], tmp_path: Path) -> Path:
    """The clone's files and its results, without its runs."""
    target = tmp_path / "copy"
    shutil.copytree(clone, target, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    new_store(target / "mlflow.db")
    return target


def test_mlflow_run_needs_neither_a_flag_nor_pyenv_and_logs_a_run_with_the_networks_below(
    copied: Path, tmp_path: Path
) -> None:
    variables = {"PATH": without_pyenv(), "MLFLOW_ENV_ROOT": str(tmp_path / "envs")}
    assert shutil.which("pyenv", path=variables["PATH"]) is None
    run(copied, sys.executable, "-m", "laq.environment", **variables)
    (made,) = (tmp_path / "envs").iterdir()
    options = ["-P", "bits=3", "-P", "subset=random-1"]
    output = run(copied, "mlflow", "run", ".", "-e", "quantize", *options, **variables)
    assert f"source {made}/bin/activate" in output
    assert "random-1:" in output
    runs = runs_in(copied, "Default")
    assert len(runs) == QUANTIZE_RUNS
    assert {r.info.status for r in runs} == {"FINISHED"}
    (own,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert own.data.tags["laq.level"] == "quantize"
    asked = {"bits": "3", "subset": "random-1", "method": "gpfq"}
    assert {name: own.data.params[name] for name in asked} == asked
    (cell,) = [r for r in runs if r.data.tags["laq.level"] == "cell" and r.data.params["method"] == "gpfq"]
    table = pd.read_csv(copied / "data/study/measurements.csv").set_index("cell")
    for variant, name in (("quantized", "top1"), ("finetuned_quantized", "finetuned/top1")):
        expected = table.loc[f"random-1.{variant}.gpfq-3bit.subset-0", "top1_sub_percent"]
        assert cell.data.metrics[name] == pytest.approx(expected)
    assert len(cell.outputs.model_outputs) == 2


def test_outside_of_git_what_is_missing_is_made_first(copied: Path) -> None:
    shutil.rmtree(copied / ".git")
    shutil.rmtree(copied / "data")
    output = run(
        copied, "mlflow", "run", ".", "-e", "quantize", "--env-manager", "local", "-P", "subset=random-1"
    )
    assert "random-1:" in output
    assert not (copied / "data/study").exists()
    runs = runs_in(copied, "Default")
    assert len(runs) == QUANTIZE_RUNS
    (own,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert own.data.params["bits"] == "4"


@contextmanager
def served_by_git(folder: Path) -> Iterator[str]:
    """The address of a repository that a git daemon serves on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--export-all", f"--base-path={folder.parent}", "--listen=127.0.0.1"]
    daemon = subprocess.Popen([*command, f"--port={port}", str(folder)], start_new_session=True)
    try:
        address = f"git://127.0.0.1:{port}/{folder.name}"
        while subprocess.run(["git", "ls-remote", address], capture_output=True, check=False).returncode:
            assert daemon.poll() is None
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(daemon.pid, 15)
        daemon.wait()


def test_mlflow_run_takes_a_git_address_and_leaves_its_runs_where_it_was_called(
    clone: Path, new_store: Callable[[Path], None], tmp_path: Path
) -> None:
    new_store(tmp_path / "mlflow.db")
    branch = run(clone, "git", "branch", "--show-current").strip()
    command = ["-v", branch, "-e", "quantize", "--env-manager", "local", "-P", "subset=random-1"]
    with served_by_git(clone) as address:
        output = run(tmp_path, "mlflow", "run", address, *command)
    assert stages_run(output) == ["dataset", "network", "embeddings", "divergence", "subsets", "finetune"]
    runs = runs_in(tmp_path, "Default")
    assert len(runs) == QUANTIZE_RUNS
    assert all(Path(r.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path) for r in runs)


def test_a_second_clone_pulls_does_nothing_and_has_the_same_report(clone: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(clone, tmp_path / "first", symlinks=True)
    first = tmp_path / "first"
    run(first, "dvc", "remote", "add", "-d", "team", str(tmp_path / "remote"))
    run(first, "git", "update-index", "--no-skip-worktree", "dvc.lock")
    run(first, "git", "add", "-A")
    run(first, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "results")
    run(first, "dvc", "push")
    run(tmp_path, "git", "clone", "-q", str(first), str(second))
    run(second, "dvc", "pull")
    assert "up to date" in run(second, "dvc", "status")
    assert stages_run(run(second, "dvc", "repro")) == []
    for name in ("report.md", "metrics.json", "points_lost.png"):
        assert (second / "data/report" / name).read_bytes() == (first / "data/report" / name).read_bytes()
    # DVC has restored the results, so this store has never seen their runs.
    assert f"Sent {STUDY_RUNS} of {STUDY_RUNS} runs to " in laq(second, "track")
    assert len(runs_in(second, "laq-glyphs")) == STUDY_RUNS
    assert "up to date" in run(second, "dvc", "status")
    assert run(second, "git", "status", "--short") == ""


def test_the_whole_pipeline_as_an_entry_point_ends_with_all_runs(copied: Path) -> None:
    output = run(copied, "mlflow", "run", ".", "--env-manager", "local")
    assert f"Sent {STUDY_RUNS} of {STUDY_RUNS} runs to " in output
    (study,) = [r for r in runs_in(copied, "laq-glyphs") if r.data.tags["laq.level"] == "study"]
    (own,) = runs_in(copied, "Default")
    assert own.data.tags["laq.study_run"] == study.info.run_id
    assert study.info.run_id in own.data.tags["mlflow.note.content"]


def test_queued_experiments_land_in_the_same_store_and_name_their_runs(copied: Path) -> None:
    for bits in (2, 5):
        changes = (f"glyphs.study.bits=[{bits}]", f"glyphs.report.primary.bits={bits}")
        settings = [word for change in changes for word in ("-S", change)]
        run(copied, "dvc", "exp", "run", "--queue", "-n", f"bits-{bits}", *settings)
    run(copied, "dvc", "queue", "start", "-j", "2")
    # DVC takes a second of a core to answer, git none.
    for asked in count():
        if all(f"/bits-{bits}" in run(copied, "git", "for-each-ref", "refs/exps") for bits in (2, 5)):
            break
        assert asked % 30 or "Failed" not in run(copied, "dvc", "queue", "status")
        time.sleep(1)
    shown = list(csv.DictReader(run(copied, "dvc", "exp", "show", "--csv").splitlines()))
    by_name = {row["Experiment"]: row for row in shown}
    runs = [r for r in runs_in(copied, "laq-glyphs") if r.data.tags["laq.level"] == "study"]
    assert len(runs) == 2
    for bits in (2, 5):
        row = by_name[f"bits-{bits}"]
        (found,) = [r for r in runs if r.data.tags["laq.key"].startswith(row["laq_key"])]
        assert found.data.tags["laq.dvc_experiment"] == f"bits-{bits}"
        assert found.data.metrics["top1/gpfq"] == pytest.approx(float(row["top1.gpfq"]), abs=1e-3)
    cells = [r for r in runs_in(copied, "laq-glyphs") if r.data.tags["laq.level"] == "cell"]
    assert len(cells) == 2 * SUBSETS * 2
    assert read_json(copied / "data/report/metrics.json")["bits"] == "3"
