"""Real servers on loopback, each ended with the block that it was started for."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from tests.project import environment

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's place, off the PATH
POSTGRESQL = _PROGRAMS[-1] if _PROGRAMS else None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: Sequence[str], folder: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with all that it starts, killed at the end of the block; what it says goes to a file."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment() | variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill -9, children and all."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def mlflow_server(
    folder: Path, port: int, backend: str = "", **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """`mlflow server` on ``port``, its store in ``folder``; takes requests when the block begins."""
    command = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    variables |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, folder, **variables) as process:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder)
        yield process


def wait_for(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    while True:
        try:
            requests.get(url, timeout=5).raise_for_status()
        except requests.RequestException:
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
        else:
            return


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a new, empty PostgreSQL with the user `laq`, password `s3cret`."""
    with postgresql_server() as (address, _):
        yield address


@contextmanager
def postgresql_server() -> Iterator[tuple[str, Callable[[str], None]]]:
    """As ``postgresql``, and what stops it without mercy ("stop") and starts it again ("start")."""
    assert POSTGRESQL is not None
    # The server refuses to run as root, and others may not look into pytest's folders.
    user: Mapping[str, str] = {"user": "postgres"} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="laq-postgresql-") as place:
        folder, port = Path(place), free_port()
        (folder / "password").write_text("s3cret", encoding="utf-8")
        for path in (folder, folder / "password") if user else ():
            shutil.chown(path, "postgres")
        new = ["-U", "laq", "--pwfile", folder / "password", "--auth=scram-sha-256", "--no-sync"]
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"

        def control(order: str) -> None:
            words = ["start", "-o", settings] if order == "start" else ["stop", "-m", "immediate"]
            files = ["-D", folder / "data", "-l", folder / "postgresql.log", "-w"]
            program = [POSTGRESQL / "pg_ctl", *files, *words]
            subprocess.run(program, check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)

        initialise = [POSTGRESQL / "initdb", "-D", folder / "data", *new]
        subprocess.run(initialise, check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)
        control("start")
        try:
            yield f"postgresql+psycopg2://laq:s3cret@127.0.0.1:{port}/postgres", control
        finally:
            control("stop")
