"""What the documentation shows is there: commands, options, files, and Python that runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torchvision
import yaml

from laq.architectures import make_body
from laq.cli import main
from laq.params import load_params

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ENTRY_POINT = re.compile(r"^mlflow run \S+ .*?-e (\w+)(.*)")


def blocks(page: Path, language: str) -> Iterator[str]:
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if found[1] == language:
            yield found[2]


def lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                yield str(page.relative_to(ROOT)), line.partition("  #")[0].strip()


def commands() -> list[tuple[str, list[str]]]:
    """The calls of ``laq``, with the page that shows each."""
    found = [(page, shlex.split(line)) for page, line in lines() if re.match(r"(\w+=\S+ )*laq ", line)]
    return [(page, words[words.index("laq") + 1 :]) for page, words in found]


def test_commands_that_are_shown_have_these_options() -> None:
    shown = commands()
    assert len(shown) > 10
    for page, (name, *words) in shown:
        assert name in main.commands, page
        command = main.commands[name]
        with click.Context(command, parent=click.Context(main)) as context:
            command.make_parser(context).parse_args(words)


def test_entry_points_that_are_shown_have_these_parameters() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]
    shown = [found for _, line in lines() if (found := _ENTRY_POINT.match(line))]
    assert shown
    for found in shown:
        options = {option.name for option in main.commands[found[1]].params}
        for name in re.findall(r"-P (\w+)=", found[2]):
            assert name in options | set(project[found[1]].get("parameters", {}))


def test_keys_that_are_shown_are_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    studies = re.findall(r"^(\w+):$", text, re.MULTILINE)
    shown = [key for _, line in lines() for key in re.findall(r"-S '?\"?([\w.]+)=", line)]
    assert shown
    for key in set(shown) - {"study"}:
        study, *path = key.split(".")
        assert study in studies
        value: object = load_params()
        for name in path:
            value = getattr(value, name)


def test_the_code_of_the_library_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A network that takes a second, instead of one that takes a minute.
    monkeypatch.setattr(torchvision.models, "resnet18", lambda: make_body("resnet8", {}, 10))
    names: dict[str, object] = {}
    for block in blocks(ROOT / "docs/how-to/library.md", "python"):
        exec(block, names)  # noqa: S102 (it is ours)
    assert (tmp_path / "small.safetensors").stat().st_size < 100_000


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{page}: {target}"
