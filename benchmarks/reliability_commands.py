"""Commands as processes of their own, which can be killed: real ones, and `laq` forked where all is imported.

A process imports for longer than the tiny study takes; one that is forked is killed at its work.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.project import BINARIES, environment

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is forked must have no threads
_LAQ: Final = ("python", "-m", "laq")
_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["laq.advise", "laq.quantize", "laq.study", "laq.track", "laq.cli"])
_ORPHANS_END_WITHIN: Final = 120


@dataclass(frozen=True)
class Running:
    """A process in a session of its own; what it says goes to a file."""

    process: "subprocess.Popen[bytes] | multiprocessing.process.BaseProcess"
    log: Path

    def ended(self, within: float | None = None) -> int | None:
        """The exit code, once there is one; None if it takes longer."""
        if isinstance(self.process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(within)
            return self.process.returncode
        self.process.join(within)
        return self.process.exitcode

    def said(self) -> str:
        """All that it has said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self, *, alone: bool) -> None:
        """Kill -9 of the process, and of all that it has started unless it is to be killed ``alone``."""
        assert self.process.pid
        with suppress(ProcessLookupError):
            if not alone:
                os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)

    def workers(self) -> list[psutil.Process]:
        """The processes that joblib has started for it."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [
                child for child in children if "loky.backend.popen_loky_posix" in " ".join(child.cmdline())
            ]
        return []

    def wait_for_orphans(self) -> None:
        """Wait until all that the killed process had started has come to its end."""
        assert self.process.pid
        for _ in range(10 * _ORPHANS_END_WITHIN):
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)
        self.kill(alone=False)


def start(folder: Path, *words: str, **variables: str) -> Running:
    """A command of the project's environment, begun in ``folder``."""
    log = folder.with_name(f"{folder.name}-{time.time_ns()}.log")
    settings = environment() | variables
    if words[:3] == _LAQ and "PYTHONPATH" not in variables:
        forked = _FORKS.Process(target=_laq, args=(folder, words[3:], settings, log))
        forked.start()
        return Running(forked, log)
    program = shutil.which(words[0], path=str(BINARIES)) or words[0]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, *words[1:]],
            cwd=folder,
            env=settings,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Running(process, log)


def _laq(folder: Path, words: tuple[str, ...], settings: dict[str, str], log: Path) -> None:
    """What `laq` does, in this process."""
    from laq.cli import main  # noqa: PLC0415 (where it is imported already)

    os.setsid()
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    sys.argv = ["laq", *words]
    main(words, prog_name="laq")


def finish(folder: Path, *words: str, **variables: str) -> str:
    """What a command says that must end well."""
    running = start(folder, *words, **variables)
    if code := running.ended():
        raise RuntimeError(f"{' '.join(words)}: exit code {code}: {running.said()[-2000:]}")
    return running.said()


def complaints(said: str) -> list[str]:
    """The lines that say what went wrong, without the one by which ``advise`` says what it will measure."""
    lines = [line for line in said.splitlines() if line.startswith(("laq: ", "Traceback", "ERROR:"))]
    return [line for line in lines if " candidates for " not in line]
