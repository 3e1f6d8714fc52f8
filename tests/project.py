"""A copy of the project whose tiny pipeline has run once, and commands run in it as a user does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from laq.cli import main
from tests.conftest import ROOT, Once, tiny_params, write_params
from tests.preloaded import server

BINARIES = Path(sys.executable).parent
# The project's environment is activated.
os.environ["PATH"] = os.pathsep.join([str(BINARIES), os.environ["PATH"]])
SUBSETS, BITS = 3, 2  # of the tiny study
STARTS_WITHIN = 60  # seconds, after which a process that should have answered has not


def environment() -> dict[str, str]:
    """The environment of the tests, with nothing of MLflow's or DVC's in it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "LAQ_"))}
    # A process for every core would import for longer than it works.
    return clean | {"LAQ_JOBS": "1"}


@pytest.fixture(scope="session")
def preloaded() -> Iterator[None]:
    """Programs that ``run`` starts, and those that these start, begin at once from here on."""
    with server(BINARIES) as clients, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(clients), prepend=os.pathsep)
        yield


def run(folder: Path, *command: str, code: int = 0, **variables: str) -> str:
    """What ``command`` prints, run in ``folder``; it must end with ``code``."""
    done = subprocess.run(
        command, cwd=folder, env=environment() | variables, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def laq(folder: Path, *arguments: str, code: int = 0, **variables: str) -> str:
    """What `laq` prints in ``folder``, called in this process, which has imported all it needs."""
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        for name, value in {**environment(), **variables}.items():
            patch.setenv(name, value)
        done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="session")
def clone(once: Once, preloaded: None, new_store: Callable[[Path], None]) -> Path:
    """A git repository with the project's files and tiny parameters, its pipeline run once.

    It is everybody's: what changes files, or the store, works on a copy.
    """

    def make(folder: Path) -> None:
        make_clone(folder, tiny_params())
        new_store(folder / "mlflow.db")
        first = run(folder, "dvc", "repro")
        assert stages_run(first) == list(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"])

    return once("clone", make)


def make_clone(folder: Path, params: dict[str, Any]) -> None:
    """Put a git repository with the project's files and these parameters into an empty folder."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    # What numba has compiled, which it takes for as new as the code.
    compiled = [str(path.relative_to(ROOT)) for path in (ROOT / "laq").rglob("*.nb[ci]")]
    for name in [*listed, *compiled]:
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    write_params(folder, params)
    (folder / "dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    commit = "-c user.name=t -c user.email=t@t commit -qm start"
    # The last one is what `make repro` does first.
    for command in ("init -q", "add -A", commit, "update-index --skip-worktree dvc.lock"):
        run(folder, "git", *command.split())


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Dask scheduler with two workers."""
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as (address, _):
        yield address


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """A Dask scheduler's address, and its two workers, each a process of its own."""
    contact = folder / "scheduler.json"
    options = {"cwd": folder, "env": environment() | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.DEVNULL}
    common = ["--no-dashboard", "--scheduler-file", str(contact)]
    programs = [[str(BINARIES / "dask"), "scheduler", "--port", "0", *common]]
    programs += [[str(BINARIES / "dask"), "worker", "--nthreads", "1", "--no-nanny", *common]] * 2
    processes = [subprocess.Popen(program, **options) for program in programs]
    try:
        from distributed import Client

        with Client(scheduler_file=str(contact), timeout=STARTS_WITHIN) as client:
            client.wait_for_workers(2, timeout=STARTS_WITHIN)
            yield client.scheduler.address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
