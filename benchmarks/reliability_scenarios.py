"""What is done to the project, a function each: it returns how the commands ended and what was lost."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from reliability_commands import Running, complaints, finish, start
from reliability_ground import Ground, differences, leftovers, results_in, store_content

from tests.project import dask_cluster
from tests.servers import POSTGRESQL, free_port, mlflow_server, postgresql_server
from tests.servers import kill as kill_server


@dataclass(frozen=True)
class Command:
    """A command, and what it makes anew, which the project is to be without; ``bare``: all of it."""

    words: tuple[str, ...]
    without: tuple[str, ...] = ()
    bare: bool = False

    def on(self, ground: Ground) -> AbstractContextManager[Path]:
        """A copy of the project where the command has not run."""
        return ground.copy(ground.bare if self.bare else ground.done, *self.without)

    def undisturbed(self, ground: Ground) -> tuple[float, dict[str, Any]]:
        """The seconds that the command takes, and what the project holds then."""

        def play() -> tuple[float, dict[str, Any]]:
            with self.on(ground) as folder:
                begin = time.perf_counter()
                finish(folder, *self.words)
                return time.perf_counter() - begin, _content(folder)

        took, content = ground.known(" ".join(self.words), play)
        return float(took), content


_STORE: Final = ("mlflow.db*", "mlruns")
_STUDY: Final = ("data/study", ".laq/cells", ".laq/seconds")
REPRO: Final = Command(("dvc", "repro"), bare=True)
STUDY: Final = Command(("python", "-m", "laq", "study"), _STUDY)
# A program of its own: only Python's end ends joblib's workers at once, and a fork has none.
STUDY_BY_TWO: Final = Command(("laq", "study", "--jobs", "2"), _STUDY)
TRACK: Final = Command(("python", "-m", "laq", "track"), _STORE)
ADVISE: Final = Command(
    ("python", "-m", "laq", "advise", "--subset", "random-1", "--lose", "100"),
    ("data/advise", ".laq/cells", ".laq/sizes", ".laq/finetune"),
)
_ROOM: Final = 64 << 20  # bytes, for a disk that is not full


@dataclass
class Outcome:
    """How the disturbed commands ended, in a word each, and what was lost."""

    ends: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def note(self, running: Running) -> int | None:
        """Note how a process ended, which is to be well, or in one line with code 2."""
        code = running.ended()
        self.ends.append("one line" if code else "well")
        told = complaints(running.said())
        if code and (code != 2 or len(told) != 1):
            what = " / ".join(told)[:500] or running.said()[-500:]
            self.lost.append(f"exit code {code}, {len(told)} lines: {what}")
        return code

    def well(self, running: Running) -> bool:
        """Whether a command ends well, which it must now."""
        if code := running.ended():
            what = " / ".join(complaints(running.said()))[:500] or running.said()[-500:]
            self.lost.append(f"run again: exit code {code}: {what}")
        return not code


@dataclass(frozen=True)
class Scenario:
    """What is done, how often, and why not here; empty if it can be."""

    done: str
    times: int
    play: Callable[[Ground, random.Random], Outcome]
    missing: str = ""


SCENARIOS: dict[str, Scenario] = {}
Play = Callable[[Ground, random.Random], Outcome]


def scenario(name: str, done: str, times: int, missing: str = "") -> Callable[[Play], Play]:
    """Register a scenario."""

    def register(play: Play) -> Play:
        SCENARIOS[name] = Scenario(done, times, play, missing)
        return play

    return register


def _needs_root() -> str:
    return "" if os.getuid() == 0 else "mounting a disk needs root"


# Kill -9.


@scenario("repro killed", "kill -9 of `dvc repro`, 7 times, run again: results and store as undisturbed", 3)
def _repro_killed(ground: Ground, rng: random.Random) -> Outcome:
    return _killed(ground, rng, REPRO, 7)


@scenario("study killed", "kill -9 of `laq study`, run again: results and store as undisturbed", 20)
def _study_killed(ground: Ground, rng: random.Random) -> Outcome:
    return _killed(ground, rng, STUDY)


@scenario(
    "study with two killed",
    "kill -9 of `laq study --jobs 2`, run again: results and store as undisturbed",
    20,
)
def _study_by_two_killed(ground: Ground, rng: random.Random) -> Outcome:
    return _killed(ground, rng, STUDY_BY_TWO)


@scenario("study's worker killed", "kill -9 of one of the two processes of `laq study --jobs 2`", 20)
def _study_worker_killed(ground: Ground, rng: random.Random) -> Outcome:
    took, expected = STUDY_BY_TWO.undisturbed(ground)
    outcome = Outcome()
    with STUDY_BY_TWO.on(ground) as folder:
        process = start(folder, *STUDY_BY_TWO.words)
        while not (workers := process.workers()) and process.ended(0) is None:
            time.sleep(0.05)
        if process.ended(rng.uniform(0, took / 2)) is None:
            with suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
        outcome.note(process)
        if outcome.well(start(folder, *STUDY_BY_TWO.words)):
            process.wait_for_orphans()
            _compare(outcome, folder, expected)
    return outcome


@scenario("advise killed", "kill -9 of `laq advise`, run again: results and store as undisturbed", 20)
def _advise_killed(ground: Ground, rng: random.Random) -> Outcome:
    return _killed(ground, rng, ADVISE)


@scenario("track killed", "kill -9 of `laq track`, run again: results and store as undisturbed", 20)
def _track_killed(ground: Ground, rng: random.Random) -> Outcome:
    return _killed(ground, rng, TRACK)


def _killed(ground: Ground, rng: random.Random, command: Command, kills: int = 1) -> Outcome:
    """Kill the command at random moments of its time, run it again, and compare with an undisturbed run."""
    took, expected = command.undisturbed(ground)
    outcome, killed, within = Outcome(), [], took if kills == 1 else took / 2
    with command.on(ground) as folder:
        for _ in range(kills):
            killed.append(start(folder, *command.words))
            if killed[-1].ended(rng.uniform(0, within)) is None:
                killed[-1].kill(alone=rng.random() < 0.5)
            outcome.ends.append("killed" if killed[-1].ended() == -9 else "had ended")
        if outcome.well(start(folder, *command.words)):
            for process in killed:
                process.wait_for_orphans()
            _compare(outcome, folder, expected)
    if outcome.ends == ["had ended"] and not outcome.lost:
        return _killed(ground, rng, command)  # it was faster than then
    return outcome


def _content(folder: Path) -> dict[str, Any]:
    """The project's results, and what its store holds."""
    store = folder / "mlflow.db"
    return {**results_in(folder), **(store_content(f"sqlite:///{store}") if store.exists() else {})}


def _compare(outcome: Outcome, folder: Path, expected: dict[str, Any]) -> None:
    outcome.lost += [*differences(expected, _content(folder)), *leftovers(folder)]


# Several at once.


@scenario("queue", "two workers of `dvc queue` (`-j 2`): all outputs and cells as one by one", 5)
def _queue(ground: Ground, rng: random.Random) -> Outcome:
    outcome, study = Outcome(), "glyphs.study.bits=[3,4]"
    number = rng.randrange(1000)
    settings = {f"queued-{number}-{c}": (study, f"glyphs.report.confidence=0.{c}") for c in (91, 92)}
    with ground.copy(ground.done, ".laq/cells", *_STORE) as folder:
        for name, changes in settings.items():
            finish(folder, *_experiment(name, changes), "--queue")
        finish(folder, "dvc", "queue", "start", "-j", "2")
        status = _when_all_are_done(folder, len(settings))
        outcome.ends += ["well" if "Success" in line else "failed" for line in status]
        outcome.lost += [f"experiment: {line}" for line in status if "Success" not in line]
        for name, changes in settings.items():
            expected = ground.known(" ".join(changes), partial(_outputs_after, ground, changes))
            found = differences(expected, {**_outputs_of(folder, name), **_cells_in(folder)})
            outcome.lost += [f"{name}: {line}" for line in found]
        outcome.lost += leftovers(folder)
    return outcome


def _experiment(name: str, changes: Sequence[str]) -> list[str]:
    """The command that runs an experiment."""
    return ["dvc", "exp", "run", "-n", name, *(word for change in changes for word in ("-S", change))]


def _when_all_are_done(folder: Path, count: int) -> list[str]:
    """The lines of `dvc queue status` once no experiment is queued or running."""
    while True:
        lines = finish(folder, "dvc", "queue", "status").splitlines()
        ends = [line for line in lines if "Success" in line or "Failed" in line]
        if len(ends) == count:
            return ends
        time.sleep(1)


def _outputs_of(folder: Path, name: str) -> dict[str, str]:
    """The hash of every output that `dvc.yaml` names, as DVC has recorded it for an experiment."""
    refs = finish(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    ref = next((ref for ref in refs if ref.endswith(f"/{name}")), "")
    stages = yaml.safe_load(finish(folder, "git", "show", f"{ref}:dvc.lock"))["stages"] if ref else {}
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}


def _outputs_after(ground: Ground, changes: Sequence[str]) -> dict[str, str]:
    """The outputs and the cells of an experiment that runs alone."""
    with ground.copy(ground.done, ".laq/cells", *_STORE) as folder:
        finish(folder, *_experiment("alone", changes))
        return {**_outputs_of(folder, "alone"), **_cells_in(folder)}


def _cells_in(folder: Path) -> dict[str, str]:
    return {name: value for name, value in results_in(folder).items() if name.startswith(".laq/cells")}


@scenario("quantize at once", "four `laq quantize` at once on a new sqlite store, two of them the same", 5)
def _quantize_at_once(ground: Ground, _: random.Random) -> Outcome:
    outcome, bits = Outcome(), ("5", "6", "7", "7")
    commands = [("python", "-m", "laq", "quantize", "--subset", "random-1", "--bits", b) for b in bits]

    def one_by_one() -> dict[str, Any]:
        with ground.copy(ground.done, ".laq/cells", *_STORE) as folder:
            for command in commands:
                finish(folder, *command)
            return _content(folder)

    expected = ground.known("quantize", one_by_one)
    with ground.copy(ground.done, ".laq/cells", *_STORE) as folder:
        for process in [start(folder, *command) for command in commands]:
            outcome.note(process)
        _compare(outcome, folder, expected)
        outcome.lost += [f"waits: {path.name}" for path in (folder / ".laq/outbox").glob("*.json")]
    return outcome


# What the commands depend on goes away, and comes back.


@scenario("Dask worker killed", "kill -9 of one of two Dask workers during `laq study`", 5)
def _dask_worker_killed(ground: Ground, rng: random.Random) -> Outcome:
    _, expected = STUDY.undisturbed(ground)
    outcome = Outcome()
    with STUDY.on(ground) as folder, dask_cluster(folder) as (address, workers):
        process = start(folder, *STUDY.words, "--scheduler", address)
        while not list((folder / ".laq").glob("*/*/inputs.json")) and process.ended(0) is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2))
        rng.choice(workers).kill()
        if outcome.note(process) and not outcome.well(start(folder, *STUDY.words)):
            return outcome
        _compare(outcome, folder, expected)
    return outcome


@scenario("server killed", "the tracking server killed with -9 during `laq track`, and started again", 10)
def _server_killed(ground: Ground, rng: random.Random) -> Outcome:
    outcome = Outcome()
    took, _ = TRACK.undisturbed(ground)
    with TRACK.on(ground) as folder, ExitStack() as stack:
        port = free_port()
        uri, place = f"http://127.0.0.1:{port}", folder / "server"
        place.mkdir()
        server = stack.enter_context(mlflow_server(place, port))
        process = start(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)
        time.sleep(rng.uniform(0, 2 * took))
        kill_server(server)
        time.sleep(rng.uniform(0, 3))
        stack.enter_context(mlflow_server(place, port))
        outcome.note(process)
        if not outcome.well(start(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)):
            return outcome
        outcome.lost += differences(_server_content(ground), store_content(uri, place / "artifacts"))
    return outcome


def _server_content(ground: Ground) -> dict[str, Any]:
    """What a server holds after an undisturbed `laq track`."""

    def play() -> dict[str, Any]:
        with TRACK.on(ground) as folder:
            port, place = free_port(), folder / "server"
            place.mkdir()
            uri = f"http://127.0.0.1:{port}"
            with mlflow_server(place, port):
                finish(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)
                return store_content(uri, place / "artifacts")

    content: dict[str, Any] = ground.known("server", play)
    return content


@scenario(
    "PostgreSQL restarted",
    "PostgreSQL stopped at once and started again during `laq track`",
    10,
    "" if POSTGRESQL else "PostgreSQL is not installed",
)
def _postgresql_restarted(ground: Ground, rng: random.Random) -> Outcome:
    outcome = Outcome()
    took, _ = TRACK.undisturbed(ground)

    def play() -> dict[str, Any]:
        with TRACK.on(ground) as folder, postgresql_server() as (uri, _):
            finish(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)
            return store_content(uri)

    expected = ground.known("postgresql", play)
    with TRACK.on(ground) as folder, postgresql_server() as (uri, control):
        process = start(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)
        time.sleep(rng.uniform(0, 1.5 * took))
        control("stop")
        time.sleep(rng.uniform(0, 3))
        control("start")
        outcome.note(process)
        if not outcome.well(start(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)):
            return outcome
        outcome.lost += differences(expected, store_content(uri))
    return outcome


# Disks.


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of so many bytes, with what was in the folder; yields what makes room on it."""
    kept = folder.with_name(f"{folder.name}-before")
    folder.rename(kept) if folder.exists() else kept.mkdir()
    folder.mkdir()
    used = sum(file.stat().st_size for file in kept.rglob("*"))
    options = f"size={used + size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(kept)
        yield (
            lambda: (
                subprocess.run(["mount", "-o", f"remount,size={used + _ROOM}", folder], check=True) and None
            )
        )
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _full(ground: Ground, rng: random.Random, command: Command, place: str) -> Outcome:
    """Run the command on a disk with too little room, then with enough."""
    _, expected = command.undisturbed(ground)
    outcome, room = Outcome(), rng.randrange(1 << 12, 1 << 19)
    with command.on(ground) as folder, _disk(folder / place, room) as grow:
        outcome.note(start(folder, *command.words))
        outcome.lost += leftovers(folder)
        grow()
        if not outcome.well(start(folder, *command.words)):
            return outcome
        _compare(outcome, folder, expected)
    return outcome


@scenario("full disk, cells", "`laq study` with a full disk under the cache", 10, _needs_root())
def _full_cells(ground: Ground, rng: random.Random) -> Outcome:
    return _full(ground, rng, STUDY, ".laq")


@scenario("full disk, outputs", "`laq study` with a full disk under `data/`", 5, _needs_root())
def _full_outputs(ground: Ground, rng: random.Random) -> Outcome:
    return _full(ground, rng, STUDY, "data")


@scenario(
    "full disk, store",
    "`laq track` with a full disk under a sqlite store and its artifacts",
    10,
    _needs_root(),
)
def _full_store(ground: Ground, rng: random.Random) -> Outcome:
    outcome = Outcome()

    def play() -> dict[str, Any]:
        with TRACK.on(ground) as folder:
            (folder / "store").mkdir()
            uri = f"sqlite:///{folder / 'store/mlflow.db'}"
            finish(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)
            return store_content(uri)

    expected = ground.known("store", play)
    with (
        ground.copy(ground.done, *_STORE) as folder,
        _disk(folder / "store", rng.randrange(1 << 12, 3 << 20)) as grow,
    ):
        uri = f"sqlite:///{folder / 'store/mlflow.db'}"
        outcome.note(start(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri))
        grow()
        if not outcome.well(start(folder, *TRACK.words, MLFLOW_TRACKING_URI=uri)):
            return outcome
        outcome.lost += [*differences(expected, store_content(uri)), *leftovers(folder)]
    return outcome


@scenario("read-only data", "`laq study` and `laq advise` with a read-only `data/`", 2, _needs_root())
def _read_only(ground: Ground, rng: random.Random) -> Outcome:
    command, outcome = rng.choice([STUDY, ADVISE]), Outcome()
    _, expected = command.undisturbed(ground)
    with command.on(ground) as folder:
        for options in (
            ["--bind", folder / "data", folder / "data"],
            ["-o", "remount,bind,ro", folder / "data"],
        ):
            subprocess.run(["mount", *options], check=True)
        outcome.note(start(folder, *command.words))
        subprocess.run(["umount", folder / "data"], check=True)
        outcome.lost += leftovers(folder)
        if not outcome.well(start(folder, *command.words)):
            return outcome
        _compare(outcome, folder, expected)
    return outcome


# The clock.

_JUMP: Final = """\
# The clock of this process goes back by a day after so many seconds.
import time
_now, _now_ns, _begin, _after = time.time, time.time_ns, time.monotonic(), {after}
def _back():
    return 86400 if time.monotonic() - _begin > _after else 0
time.time = lambda: _now() - _back()
time.time_ns = lambda: _now_ns() - _back() * 10**9
"""


@scenario(
    "clock", "`dvc repro` from nothing, then `laq track`, while every process's clock jumps back a day", 3
)
def _clock(ground: Ground, rng: random.Random) -> Outcome:
    _, expected = REPRO.undisturbed(ground)
    outcome = Outcome()
    with REPRO.on(ground) as folder:
        patch = folder.with_name("clock")
        patch.mkdir(exist_ok=True)
        (patch / "sitecustomize.py").write_text(_JUMP.format(after=rng.uniform(0, 8)), encoding="utf-8")
        for path in folder.rglob("*"):  # as files from a machine whose clock is ahead
            if path.is_file() and rng.random() < 0.2:
                os.utime(path, (4e9, 4e9))
        for command in (REPRO, TRACK):
            outcome.note(start(folder, *command.words, PYTHONPATH=str(patch)))
        _compare(outcome, folder, expected)
    return outcome
