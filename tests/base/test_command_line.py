"""What the command line says of itself, and how it looks in a terminal."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from laq.cli import main
from laq.provenance import read_stages
from laq.terminal import GROUPS, Command, show_markdown, show_rows
from tests.conftest import ROOT

COMMANDS = {name: command for name, command in main.commands.items() if isinstance(command, Command)}


def test_every_command_has_its_place_in_the_help() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert COMMANDS.keys() == main.commands.keys()
    places = [text.index(f"{group}: ") for group in GROUPS]
    assert places == sorted(places)
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_reads_and_writes_and_its_example_is_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = COMMANDS[name]
    text = CliRunner().invoke(main, [name, "--help"]).output
    assert all(f"{title}: " in text for title in ("Reads", "Writes", "Example"))
    program, called, *arguments = [word for word in shlex.split(command.example) if "=" not in word]
    assert (program, called) == ("laq", name)
    assert isinstance(command.make_context(name, arguments), click.Context)
    if stage := read_stages().get(name):
        assert all(
            str(path) in command.about["Reads"] for path in stage.inputs if path.parent == Path("data")
        )
        assert all(str(path) in command.about["Writes"] for path in stage.outputs)


def test_markdown_is_drawn_in_a_terminal_and_without_colours_if_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# Title\n\n| bits | points |\n|---|---|\n| 3 | 1.5 |\n"
    show_markdown(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    show_markdown(text)
    drawn = capsys.readouterr().out
    assert "Title" in drawn
    assert "1.5" in drawn
    assert not re.search(r"\|---|# Title|\x1b\[[0-9;]*3[0-9]", drawn)


def test_rows_have_tabs_for_programs_and_columns_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles, rows = ("picture", "class"), [("[red]a.png", "circle 97.0 %"), ("b.png", "square 51.3 %")]
    show_rows(titles, rows)
    assert capsys.readouterr().out == "[red]a.png\tcircle 97.0 %\nb.png\tsquare 51.3 %\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_rows(titles, rows)
    title, *lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert title.split() == list(titles)
    assert len({line.index("%") for line in lines}) == 1
    assert "[red]a.png" in lines[0]


def test_the_state_of_a_study_that_is_not_begun_is_told_with_what_to_do(project: Path) -> None:
    done = CliRunner().invoke(main, ["status"])
    lines = done.output.splitlines()
    assert done.exit_code == 0, done.output
    assert lines[0].startswith("study  glyphs, on glyphs; params.yaml also has cifar100")
    assert lines[1] == f"store  sqlite:///{project}/mlflow.db"
    assert "dataset     missing" in lines
    assert "report      missing  after dataset" in lines
    assert lines[-1] == "next   `dvc repro` runs dataset and what comes after it"


def test_what_stages_print_is_no_result_of_the_command_that_needs_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        if "repro" in command:
            given.append((command[3:], options["stdout"]))
        return SimpleNamespace(returncode=3, stdout="")

    monkeypatch.setattr("laq.cli.subprocess.run", run)
    assert CliRunner().invoke(main, ["sample", "random-1"]).exit_code == 3
    assert CliRunner().invoke(main, ["pipeline", "subsets"]).exit_code == 3
    assert given == [(["repro", "subsets"], 2), (["repro", "subsets"], None)]
