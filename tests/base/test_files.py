"""Results on disk under fire: processes that race, are killed, find a full or read-only disk, a wrong clock."""

import errno
import fcntl
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from laq import files
from laq.cache import cached, is_whole
from laq.cli import main
from laq.files import replacing_file, replacing_folder, write_json
from laq.imports import package_versions
from laq.network import save_tensors
from tests.conftest import ROOT

# Every program is a process of its own, and says a line when what it is for has begun.
IMPORTS = """
import sys, time
from pathlib import Path
from laq.cache import cached
from laq.files import replacing_file, replacing_folder, write_json
def say(word):
    print(word, flush=True)
"""
HAMMER = """
def fill(key, folder):
    for name in "ab":
        (folder / name).write_text(str(key) * 999)
say("begun")
sys.stdin.readline()
for key in range(150):
    found = cached("cells", {"key": key}, lambda folder: fill(key, folder))
    assert {p.name: p.read_text() for p in found.iterdir() if len(p.name) == 1} == dict.fromkeys("ab", str(key) * 999)
say("ended")
"""
STUCK_IN_A_CELL = """
def fill(folder):
    (folder / "half").write_text("half")
    say("begun")
    time.sleep(600)
cached("cells", {"key": sys.argv[1]}, fill)
"""
REPLACE_FOR_EVER = """
number = 0
while True:
    number += 1
    with replacing_folder(Path("data/study")) as folder:
        for name in "abcdefgh":
            (folder / name).write_text(str(number))
    with replacing_file(Path("data/table.csv")) as file:
        file.write_text(f"{number}," * 9999)
    if number == 1:
        say("begun")
"""


@contextmanager
def program(code: str, *arguments: str, **options: object) -> Iterator["subprocess.Popen[str]"]:
    """A process that has begun what it is for; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTS + code, *arguments], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def left(folder: Path) -> list[str]:
    """What is there of results that are not whole."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob(".?*") if p.name != ".laq")


def filled(folder: Path) -> None:
    (folder / "whole").write_text("whole", encoding="utf-8")


def test_processes_that_make_the_same_results_at_once_all_have_them_whole(project: Path) -> None:
    with program(HAMMER) as one, program(HAMMER) as two, program(HAMMER) as three:
        for process in (one, two, three):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (one, two, three):
            assert process.communicate()[0] == "ended\n"
    assert len(list((project / ".laq/cells").iterdir())) == 150
    assert left(project / ".laq") == []


def test_what_a_killed_process_has_left_is_removed_and_what_a_living_one_writes_is_not(project: Path) -> None:
    with program(STUCK_IN_A_CELL, "dead") as dead, program(STUCK_IN_A_CELL, "alive"):
        dead.kill()
        dead.wait()
        begun = list((project / ".laq").glob(".*"))
        assert len(begun) == 2
        for folder, moment in zip(begun, (0, 4e9), strict=True):  # a wrong clock says nothing of either
            os.utime(folder, (moment, moment))
        cached("other", {"key": 0}, filled)
        assert len(left(project / ".laq")) == 1
    cached("other", {"key": 1}, filled)
    assert left(project / ".laq") == []
    made = cached("cells", {"key": "dead"}, filled)
    assert sorted(p.name for p in made.iterdir()) == ["files.json", "inputs.json", "whole"]


def test_a_result_that_has_changed_since_is_made_again_and_what_is_aside_may_change(project: Path) -> None:
    made: list[Path] = []

    def fill(folder: Path) -> None:
        made.append(folder)
        (folder / "below").mkdir()
        for name in ("number", "below/weights", "seconds"):
            (folder / name).write_text("1", encoding="utf-8")

    def result() -> Path:
        return cached("cells", {"key": 0}, fill, aside=["seconds"])

    for name in ("number", "below/weights", "files.json", "inputs.json"):
        made.clear()
        (result() / name).write_text("2", encoding="utf-8")
        assert is_whole(result())
        assert len(made) == 1 + (name == "number"), name
    (result() / "below/weights").unlink()
    assert (result() / "below/weights").read_text(encoding="utf-8") == "1"
    made.clear()
    (result() / "seconds").write_text("2", encoding="utf-8")
    assert (result() / "seconds").read_text(encoding="utf-8") == "2"
    assert made == []


def test_a_kill_at_any_moment_leaves_the_old_result_or_the_new_one(project: Path) -> None:
    for seconds in torch.rand(12, generator=torch.Generator().manual_seed(0)):
        with program(REPLACE_FOR_EVER):
            time.sleep(float(seconds) / 20)
        found = {p.name: p.read_text() for p in (project / "data/study").iterdir()}
        assert sorted(found) == list("abcdefgh")
        assert len(set(found.values())) == 1
        numbers = (project / "data/table.csv").read_text().split(",")
        assert len(numbers) == 9999 + 1
        assert len(set(numbers[:-1])) == 1
    write_json(project / "data/one.json", 1)
    assert left(project / "data") == []


def test_readers_find_a_result_at_every_moment_of_its_replacement(project: Path) -> None:
    with program(REPLACE_FOR_EVER):
        seen = set()
        while len(seen) < 30:
            seen.add((project / "data/study/h").read_text())
            assert len(set((project / "data/table.csv").read_text().split(",")[:-1])) == 1


@pytest.mark.parametrize("missing", ["swap", "locks"])
def test_a_file_system_that_lacks_swapping_or_locks_does_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing == "swap":
        monkeypatch.setattr(files, "ctypes", SimpleNamespace(CDLL=lambda _: object()))
    else:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    for text in ("old", "new"):
        with replacing_folder(project / "data/study") as folder:
            (folder / text).write_text(text)
        cached("cells", {"key": 0}, filled)
    assert [p.name for p in (project / "data/study").iterdir()] == ["new"]
    assert left(project) == []


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file of more bytes can be written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_a_cell() -> None:
    cached("cells", {"key": 0}, lambda folder: (folder / "w").write_bytes(bytes(9999)))


def write_a_folder(write: Callable[[Path], object]) -> None:
    with replacing_folder(Path("data/x")) as folder:
        write(folder)


def write_a_file(write: Callable[[Path], object]) -> None:
    with replacing_file(Path("data/w")) as file:
        write(file)


WEIGHTS = {"w": torch.zeros(9999)}
FULL: dict[str, tuple[Callable[[], None], str]] = {
    "a cell": (write_a_cell, "cells/[0-9a-f]{64}"),
    "a folder": (lambda: write_a_folder(lambda f: (f / "w").write_bytes(bytes(9999))), "data/x"),
    "a copy": (lambda: write_a_folder(lambda f: shutil.copyfile("params.yaml", f / "w")), "data/x/w"),
    "a file": (lambda: write_a_file(lambda f: f.write_bytes(bytes(9999))), "data/w"),
    "JSON": (lambda: write_json(Path("data/w"), "0" * 9999), "data/w"),
    "a table": (lambda: write_a_file(lambda f: pd.DataFrame([range(5000)]).to_csv(f)), "data/w"),
    "an array": (lambda: write_a_folder(lambda f: np.save(f / "w.npy", np.zeros(9999))), "data/x"),
    "weights": (lambda: save_tensors(Path("data/w"), WEIGHTS), "data/w"),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_told_in_a_line_and_nothing_half_written_stays(
    project: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write, named = FULL[kind]

    def stage(*_: object) -> None:
        write()
        Path("data/dataset").mkdir(parents=True)

    monkeypatch.setattr("laq.dataset.run", stage)
    with no_room(4000):
        done = CliRunner().invoke(main, ["dataset"])
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    why = "No space left on device" if kind == "an array" else "File too large"
    assert re.fullmatch(rf"laq: \S*{named}: {why}", done.stderr.strip()), done.stderr
    assert [p for p in project.rglob("*") if p.is_file() and p.suffix != ".yaml"] == []
    assert left(project) == []
    with no_room(10**6):
        assert CliRunner().invoke(main, ["dataset"]).exit_code == 0


# The first to find no room does so once another is at work, which is then killed.
IN_MANY = """
import time
from laq import dataset
from laq.cache import cached, is_whole
from laq.cli import main
from laq.parallel import Workers, run_all
def fill(key, folder):
    while len([*folder.parent.glob(".laq-partial-*")]) < 2 or key != 0:
        time.sleep(0.01)
    (folder / "w").write_bytes(bytes(9999))
def fill_a_cell(key):
    cached("cells", {"key": key}, lambda folder: fill(key, folder))
dataset.run = lambda *_: list(run_all(fill_a_cell, range(6), Workers(2)))
main()
"""


def test_a_full_disk_in_one_of_many_processes_is_told_once(project: Path) -> None:
    """In a process of its own, as those that it starts have no room for good."""
    # Python itself would keep half of what it has compiled.
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with no_room(4000):
        done = subprocess.run(
            [sys.executable, "-c", IN_MANY, "dataset"],
            text=True,
            capture_output=True,
            check=False,
            env=variables,
        )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"laq: \S*cells/[0-9a-f]{64}: File too large", done.stderr.strip()), done.stderr
    assert left(project) == []


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The current folder may be read and no more, by root neither."""
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_read_only_folder_is_told_in_a_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        with replacing_folder(Path("study")) as folder:
            filled(folder)

    (project / "study").mkdir()
    (project / "study" / "old").write_text("old", encoding="utf-8")
    monkeypatch.setattr("laq.dataset.run", write)
    package_versions("laq.dataset")  # imports what another user may not be able to
    with read_only(project):
        done = CliRunner().invoke(main, ["dataset"])
        with pytest.raises(PermissionError) as caught, replacing_file(Path("table.csv")) as file:
            filled(file)
    assert (done.exit_code, done.stderr) == (2, "laq: study: Permission denied\n")
    assert str(caught.value.filename) == "table.csv"
    assert [p.name for p in (project / "study").iterdir()] == ["old"]
    assert left(project) == []
