"""Real programs on one store: processes at once, servers that die or say nothing, and kill -9."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient

from laq.track.run_specs import ResultRuns
from tests.conftest import ROOT
from tests.project import environment
from tests.servers import (
    POSTGRESQL,
    free_port,
    kill,
    mlflow_server,
    postgresql,
    silent_server,
)
from tests.track.test_track import champion, check_once, runs_of
from tests.trees import make_tree

pytestmark = pytest.mark.usefixtures("preloaded")
needs_postgresql = pytest.mark.skipif(POSTGRESQL is None, reason="PostgreSQL is not installed")


def saved(tree: ResultRuns, folder: Path) -> Path:
    path = folder / f"{tree.root.key}.json"
    tree.save(path)
    return path


@contextmanager
def delivering(folder: Path, store: str, *paths: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that delivers saved trees."""
    known = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        ["python", "-m", "tests.trees", *paths],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment() | {"PYTHONPATH": known, "MLFLOW_TRACKING_URI": store} | variables,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, list[str]]:
    """How it ended, what it said, and the lines it complained in."""
    output, complaints = process.communicate()
    return (
        process.returncode,
        output,
        [line for line in complaints.splitlines() if line and not line.startswith("track:")],
    )


@pytest.mark.parametrize("same", [True, False], ids=["the same result", "results of their own"])
def test_eight_processes_at_once_on_a_new_store_lose_and_double_nothing(
    tmp_path: Path, weights: Path, *, same: bool
) -> None:
    trees = [make_tree(weights, "result" if same else f"result {n}", score=n) for n in range(8)]
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with delivering(tmp_path, store, *(saved(tree, tmp_path) for tree in trees)) as processes:
        code, output, complaints = ended(processes)
    assert (code, complaints) == (0, [])
    sent = sorted(map(int, output.replace("sent ", "").split()))
    assert sent == ([0] * 7 + [3] if same else [3] * 8)
    client = MlflowClient(store)
    check_once(client, *trees[:1] if same else trees)
    assert champion(client).tags["laq.top1_choosing_percent"] == "10.0"


@needs_postgresql
def test_machines_at_once_on_a_new_postgresql_lose_and_double_nothing(tmp_path: Path, weights: Path) -> None:
    tree = make_tree(weights, subsets=2)
    path = saved(tree, tmp_path)
    with postgresql() as store, ExitStack() as stack:
        # Each has a folder of its own for locks, as machines do.
        for name in "ab":
            (tmp_path / name).mkdir()
        processes = [
            stack.enter_context(delivering(tmp_path, store, path, TMPDIR=str(tmp_path / name)))
            for name in "ab"
        ]
        found = [ended(process) for process in processes]
        assert [code for code, _, _ in found] == [0, 0], found
        client = MlflowClient(store)
        check_once(client, tree)
        assert len(client.search_model_versions()) == 2


@contextmanager
def backend(kind: str) -> Iterator[str]:
    with postgresql() if kind == "postgresql" else nullcontext("") as store:
        yield store


def some_finished(client: MlflowClient, least: int) -> bool:
    experiment = client.get_experiment_by_name("laq-test")
    if experiment is None:
        return False
    found = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    return len(found) >= least


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def test_a_server_killed_in_the_middle_is_told_and_catches_up_when_it_is_back(
    tmp_path: Path, weights: Path, new_store: Callable[[Path], None], kind: str
) -> None:
    new_store(tmp_path / "server.db")
    tree, port = make_tree(weights, subsets=3, bits=(2, 3, 4)), free_port()
    path, store = saved(tree, tmp_path), f"http://127.0.0.1:{port}"
    with backend(kind) as database:
        with (
            mlflow_server(tmp_path, port, database) as server,
            delivering(tmp_path, store, path) as process,
        ):
            while not some_finished(MlflowClient(store), 3):
                assert process.poll() is None
                time.sleep(0.1)  # which leaves the server to the process
            kill(server)
            code, _, complaints = ended(process)
        assert (code, len(complaints)) == (2, 1), complaints
        assert complaints[0].startswith(f"laq: MLflow at {store}: ")
        with mlflow_server(tmp_path, port, database), delivering(tmp_path, store, path) as process:
            code, output, complaints = ended(process)
            assert (code, complaints) == (0, [])
            assert 0 < int(output.split()[1]) < len(tree.runs)
            check_once(MlflowClient(store), tree)
            assert len(MlflowClient(store).search_model_versions()) == 3


def test_a_server_that_says_nothing_is_told_after_the_time_that_was_set(
    tmp_path: Path, weights: Path
) -> None:
    path = saved(make_tree(weights), tmp_path)
    patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with (
        silent_server() as port,
        delivering(tmp_path, f"http://127.0.0.1:{port}", path, **patience) as process,
    ):
        code, _, complaints = ended(process)
    assert (code, len(complaints)) == (2, 1), complaints
    assert "Read timed out. (read timeout=1)" in complaints[0]
    assert path.exists()


def test_a_killed_process_goes_on_where_it_was_and_nothing_is_there_twice(
    tmp_path: Path, weights: Path, new_store: Callable[[Path], None]
) -> None:
    tree, store = make_tree(weights, subsets=4, bits=(2, 3, 4, 5)), f"sqlite:///{tmp_path / 'mlflow.db'}"
    new_store(tmp_path / "mlflow.db")
    path = saved(tree, tmp_path)
    for least in (0, 3, 8):
        with delivering(tmp_path, store, path) as process:
            while not some_finished(MlflowClient(store), least):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert 8 <= len(runs_of(MlflowClient(store))) < len(tree.runs)
    with delivering(tmp_path, store, path) as process:
        assert ended(process)[0] == 0
    check_once(MlflowClient(store), tree)
    assert len(MlflowClient(store).search_model_versions()) == 4
