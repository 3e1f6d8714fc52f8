"""The house itself: one vocabulary, imports that run one way, functions that stay small."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from laq.cli import main
from laq.params import Params
from tests.conftest import ROOT

# A room imports those before it.
ORDER = [
    "errors", "progress", "provenance", "files", "cache", "params", "quantization", "dataset", "network",
    "embeddings", "divergence", "subsets", "finetune", "study", "report", "tracking", "cli", "__main__",
]  # fmt: skip
MODULES = sorted((ROOT / "laq").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "laq").parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.parent.name != "laq" or m.stem != "__init__"], ids=str
)
def test_imports_run_one_way(path: Path) -> None:
    own = room(path)
    used = {
        name.split(".")[1] if "." in name else "cli" for name in imported(path) if name.split(".")[0] == "laq"
    }
    assert own in ORDER
    if own != "cli":
        assert all(ORDER.index(other) <= ORDER.index(own) for other in used), used
    if own == "quantization":
        assert used <= {"quantization"}
        assert not any(name.split(".")[0] in {"mlflow", "dvc", "pathlib", "yaml"} for name in imported(path))
    if path.stem != "store":
        assert not any(name.split(".")[0] == "mlflow" for name in imported(path))


def test_a_stage_is_a_command_is_a_section_is_a_room() -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    stages = [name for name in pipeline if name != "track"]
    assert stages == list(params["glyphs"]) == list(params["cifar100"])
    assert stages == [name for name in Params.model_fields if name != "name"]
    assert set(stages) <= set(ORDER)
    for name, stage in pipeline.items():
        assert stage["cmd"] == f"python -m laq {name}"
        assert name == "track" or stage["params"] == [f"${{study}}.{name}"]
    assert set(pipeline) < set(main.commands)


def test_the_mlproject_offers_what_the_commands_do() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    options = {option.name: option.default for option in main.commands["quantize"].params}
    offered = {
        name: spec["default"] for name, spec in project["entry_points"]["quantize"]["parameters"].items()
    }
    assert {name: str(value) for name, value in options.items()} == {k: str(v) for k, v in offered.items()}
    assert set(re.findall(r"{(\w+)}", project["entry_points"]["quantize"]["command"])) == set(offered)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 40, node.name


def test_the_entry_point_compare_is_the_command() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    entry = project["entry_points"]["compare"]
    offered = {name: spec["default"] for name, spec in entry["parameters"].items()}
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert offered == blocks["glyphs"]["compare"] == blocks["cifar100"]["compare"]
    assert [option.name for option in main.commands["compare"].params] == list(offered)
    assert entry["command"] == "laq compare --first {first} --second {second}"
