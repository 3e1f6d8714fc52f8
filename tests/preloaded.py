"""Commands that begin at once: each is forked from a process that has imported what all of them need.

A command such as `python -m laq study` imports for longer than a tiny study takes, and one `dvc repro` starts
nine of them. ``server`` is a process that has imported everything. The programs in a folder ahead of others on the
PATH, `python`, `laq`, `dvc` and `mlflow`, are a ``client``: it hands its arguments, folder, environment and open
files to the server, which forks, and the fork runs the program's own entry point. So each is a process of its
own still, started by DVC, MLflow or a shell. What is none of these, such as `python -c`, runs as it is.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

# Where the programs begin, and those that are modules for `python -m`.
PROGRAMS = {"laq": ("laq.__main__", "main"), "dvc": ("dvc.cli", "main"), "mlflow": ("mlflow.cli", "cli")}
MODULES = {
    "laq": PROGRAMS["laq"],
    "tests.trees": ("tests.trees", "main"),
    "uvicorn": ("uvicorn.main", "main"),
}
IMPORTED = (
    "laq.embeddings", "laq.report", "laq.finetune", "laq.quantize", "laq.cli",
    "dvc.repo", "dvc.repo.reproduce", "dvc.commands.repro", "mlflow.projects", "mlflow.server.fastapi_app",
    "torch._dynamo",  # which torch's optimizers import
)  # fmt: skip
_LENGTH = struct.Struct("!I")
_STATUS = struct.Struct("!i")
_CLIENT = """#!{python} -IS
import sys
sys.path.insert(0, {folder!r})
from preloaded import client
client({address!r}, {real!r})
"""


@contextmanager
def server(real: Path) -> Iterator[Path]:
    """A server for the length of the block: the folder of its clients; ``real`` has the programs themselves."""
    with tempfile.TemporaryDirectory(prefix="laq-preloaded-") as place:  # addresses of sockets must be short
        address, clients = f"{place}/socket", Path(place) / "bin"
        clients.mkdir()
        _write_clients(clients, address, real)
        with _started(address):
            yield clients


def _write_clients(clients: Path, address: str, real: Path) -> None:
    for name in ("python", *PROGRAMS):
        values = {"python": sys.executable, "folder": str(Path(__file__).parent), "address": address}
        (clients / name).write_text(_CLIENT.format(**values, real=str(real / name)), encoding="utf-8")
        (clients / name).chmod(0o755)


@contextmanager
def _started(address: str) -> Iterator[None]:
    own, its = socket.socketpair()
    command = [sys.executable, __file__, address, str(its.fileno())]
    # What is forked must have no threads.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with own, subprocess.Popen(command, env=variables, pass_fds=[its.fileno()]) as process:
        its.close()
        assert own.recv(1), "the server of commands did not start"
        yield
        own.close()  # which ends the server
        process.wait()


def client(address: str, real: str) -> None:
    """Let the server do what this program was called for."""
    name, words = os.path.basename(sys.argv[0]), sys.argv[1:]  # noqa: PTH119 (pathlib takes as long as all else)
    if name == "python":
        if words[:1] != ["-m"] or words[1] not in MODULES:
            os.execv(real, [real, *words])  # noqa: S606 (it is the program that was called)
        name, words = words[1], words[2:]
    order = json.dumps([name, words, os.getcwd(), dict(os.environ)]).encode()  # noqa: PTH109 (likewise)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [_LENGTH.pack(len(order))], [0, 1, 2])
        connection.sendall(order)
        (status,) = _STATUS.unpack(connection.recv(_STATUS.size))
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _serve(address: str, owner: socket.socket) -> Callable[[], Any] | None:
    """Fork for every client until the owner is gone; in a fork, this is the program to run."""
    for module in (*IMPORTED, *(module for module, _ in {**PROGRAMS, **MODULES}.values())):
        import_module(module)
    # Every stage asks for the versions of packages, whose list is read once for all.
    import_module("laq.imports").package_versions("laq.study.measure")
    gc.freeze()  # forks share these objects, and look through none of them when they end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        owner.send(b"1")
        while owner not in select.select([listener, owner], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                owner.close()
                listener.close()
                sys.executable = str(Path(address).with_name("bin") / "python")
                return _forked(connection)
            connection.close()
    return None


def _forked(connection: socket.socket) -> Callable[[], Any]:
    """The program that the client asks for, in a fork of this process, which tells the client how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    content = b""
    while len(content) < _LENGTH.unpack(length)[0]:
        content += connection.recv(1 << 16)
    program = os.fork()
    if program == 0:
        connection.close()
        os.setsid()
        return _prepared(*json.loads(content), files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(program)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.killpg(program, signal.SIGKILL)  # as the client was; what it has started are clients, too
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    try:
        connection.send(_STATUS.pack(status))
    finally:
        os._exit(0)


def _prepared(
    name: str, words: list[str], folder: str, variables: dict[str, str], files: list[int]
) -> Callable[[], Any]:
    """The program, with this process made what the client's is."""
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [name, *words]
    module, function = {**PROGRAMS, **MODULES}[name]
    run: Callable[[], Any] = getattr(import_module(module), function)
    return run


def _end(run: Callable[[], Any]) -> None:
    """Run a program and end the process, without taking apart all that the server has imported."""
    status: Any = 1
    try:
        status = run()
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 (whatever it is, Python would print it)
        traceback.print_exc()
    if isinstance(status, str):
        sys.stderr.write(f"{status}\n")
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    if run := _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))):
        _end(run)
