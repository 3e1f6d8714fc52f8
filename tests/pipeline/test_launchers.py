"""`mlflow run` hands every value to the command as it is, whatever a shell would make of it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.projects._project_spec import load_project

from tests.conftest import ROOT
from tests.project import run

VALUES = [
    "x; touch hacked", "x && touch hacked", "x || touch hacked", "x | touch hacked", "x & touch hacked", "x > hacked",
    "x\ntouch hacked", "$(touch hacked)", "`touch hacked`", "'; touch hacked; '", '"; touch hacked; "', "'$(touch hacked)'",
    "\\'; touch hacked; \\'", "; touch hacked #", "<(touch hacked)", "$HOME", "${IFS}", "{bits}", "{subset}; touch hacked",
    "%s", "~", "*", "!!", "--jobs=9", "-", "--", "", " ", "a  b", "\t", "\\", "ä 🙂", "x" * 3000,
]  # fmt: skip
PROJECTS = (".", "isolated")


def entry_points(project: str) -> dict[str, Any]:
    return dict(load_project(str(ROOT / project))._entry_points)


ENTRIES = [(project, entry) for project in PROJECTS for entry in entry_points(project)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder to run in, and before others on the path a `laq` that writes down what it was given."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "laq"
    command.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{tmp_path}/given'\n", encoding="utf-8")
    command.chmod(0o755)
    (tmp_path / "work" / "isolated").mkdir(parents=True)
    return tmp_path / "work"


def given(work: Path, project: str, entry: str, values: dict[str, str]) -> list[str]:
    """The arguments that `laq` gets where MLflow runs an entry point."""
    command = entry_points(project)[entry].compute_command(values, None)
    path = os.pathsep.join([str(work.parent / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command], cwd=work / project, env=os.environ | {"PATH": path}, check=False,
        text=True, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in work.rglob("*")) == ["isolated"]
    return (work.parent / "given").read_text(encoding="utf-8").removesuffix("\0").split("\0")


def expected(project: str, entry: str, values: dict[str, str]) -> list[str]:
    """The words of an entry point's command after `laq`, with values in their places."""
    point = entry_points(project)[entry]
    words = shlex.split(point.command)
    filled = {f"{{{name}}}": values.get(name, p.default) for name, p in point.parameters.items()}
    return [filled.get(word, word) for word in words[words.index("laq") + 1 :]]


@pytest.mark.parametrize(("project", "entry"), [e for e in ENTRIES if entry_points(e[0])[e[1]].parameters])
def test_each_value_reaches_its_option_and_runs_nothing(work: Path, project: str, entry: str) -> None:
    for first in range(len(VALUES)):
        others = VALUES[first:] + VALUES[:first]
        values = dict(zip(entry_points(project)[entry].parameters, others, strict=False))
        assert given(work, project, entry, values) == expected(project, entry, values)


@pytest.mark.parametrize(("project", "entry"), ENTRIES)
def test_parameters_that_an_entry_point_has_not_run_nothing(work: Path, project: str, entry: str) -> None:
    values = {f"{at}{value}": value for at, value in enumerate(VALUES)}
    unknown = [word for name, value in values.items() for word in (f"--{name}", value)]
    assert given(work, project, entry, values) == [*expected(project, entry, {}), *unknown]


def test_a_real_run_refuses_such_values_in_a_line_and_runs_nothing(
    project: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = shutil.copy(empty_database, tmp_path_factory.mktemp("store"))
    shutil.copyfile(ROOT / "MLproject", project / "MLproject")
    values = {"subset": "$(touch hacked)", "bits": "4; touch hacked", "method": "`touch hacked`"}
    options = [word for name, value in values.items() for word in ("-P", f"{name}={value}")]
    before = sorted(path.name for path in project.iterdir())
    output = run(
        project, sys.executable, "-m", "mlflow", "run", ".", "-e", "quantize", "--env-manager", "local", *options,
        code=1, MLFLOW_TRACKING_URI=f"sqlite:///{store}",
    )  # fmt: skip
    assert "found '4; touch hacked'; must be a whole number from 2 to 24" in output
    assert sorted(path.name for path in project.iterdir()) == before, output
