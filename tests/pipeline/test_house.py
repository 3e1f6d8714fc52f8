"""The house itself: one vocabulary, imports that run one way, functions that stay small, names that stand once."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from laq.cli import main
from laq.params import Params
from laq.quantization import METHODS
from tests.conftest import ROOT

# A room imports those before it.
ORDER = [
    "errors", "progress", "git", "files", "addresses", "beside", "states", "paths", "machine", "imports",
    "provenance", "cache", "parallel", "quantization", "charts", "sections", "pictures", "run", "architectures",
    "serving", "dataset", "network", "embeddings",
    "divergence", "subsets", "finetune", "study", "report", "params", "predecessor", "track", "quantize", "export",
    "compare", "advise", "verify", "init", "status", "terminal", "cli", "__main__", "environment",
]  # fmt: skip
# Options of whoever runs a command, not of what comes out: no launcher passes them on, variables do.
WHO_WORKS = {"jobs", "scheduler"}
# Commands with options, which are a section of params.yaml too.
WITHOUT_A_STAGE = ["quantize", "export", "compare", "advise", "verify"]
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
    if path.stem not in {
        "autolog",
        "champions",
        "deliver",
        "environment",
        "models",
        "onnx_models",
        "pyfunc",
        "store",
        "views",
    }:
        assert not any(name.split(".")[0] == "mlflow" for name in imported(path))


def source_of(module: str) -> Path | None:
    """The file of a module or package of laq."""
    path = ROOT.joinpath(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


@cache
def what_is_imported(path: Path, *, lazily: bool = False) -> dict[str, str]:
    """The names that a file imports from laq, and from which modules; or those that it offers lazily."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]
    lazy = [node for block in for_types for node in ast.walk(block)]
    nodes = [n for n in (lazy if lazily else ast.walk(tree)) if isinstance(n, ast.ImportFrom) and n.module]
    chosen = [n for n in nodes if str(n.module).startswith("laq") and (lazily or n not in lazy)]
    return {alias.name: str(node.module) for node in chosen for alias in node.names}


def closure(own: str) -> set[str]:
    """The files that a room's code can import, directly or by others, packages' lazy names included."""
    waiting, found = [path for path in MODULES if room(path) == own], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name, module in what_is_imported(path).items():
            source = source_of(module)
            assert source is not None
            where = what_is_imported(source, lazily=True).get(name, f"{module}.{name}")
            parts = where.split(".")
            files = [source_of(".".join(parts[:n])) for n in range(1, len(parts) + 1)]
            waiting += [source, *(file for file in files if file)]
    return {path.relative_to(ROOT / "laq").as_posix() for path in found}


@pytest.mark.parametrize("own", ["dataset", "network", "embeddings", "divergence", "subsets"])
def test_a_stage_before_the_study_depends_neither_on_other_sections_nor_on_methods(own: str) -> None:
    files = closure(own)
    assert not files & {"params.py", "quantization/methods/registry.py"}
    earlier = {f"sections/{stage}.py" for stage in ORDER[: ORDER.index(own) + 1]}
    assert {name for name in files if name.startswith("sections/")} <= {
        *earlier,
        "sections/__init__.py",
        "sections/base.py",
        "sections/architecture.py",  # names of networks, which two of them hold
    }


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


STUDIES = ("glyphs", "cifar100", "cifar100_clipping", "cifar100_wide", "cifar100_efficientnet")
# Nothing is fine-tuned that no cell asks for.
BEYOND_THE_SECTION = {"finetune": ["${study}.study.bases", "${study}.study.also"]}


def test_a_stage_is_a_command_is_a_section_is_a_room() -> None:
    stages, params = read("dvc.yaml")["stages"], read("params.yaml")
    sections = [name for name in Params.model_fields if name != "name"]
    for block in STUDIES:
        assert list(params[block]) == sections
    assert sections == [*stages, *WITHOUT_A_STAGE]
    assert set(stages) <= set(ORDER)
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m laq {name}"
        assert stage["params"] == [f"${{study}}.{name}", *BEYOND_THE_SECTION.get(name, [])]
    assert set(sections) < set(main.commands)


@pytest.mark.parametrize("name", WITHOUT_A_STAGE)
def test_an_option_has_the_name_of_its_key_and_left_out_it_is_as_params_yaml_says(name: str) -> None:
    command, arguments = main.commands[name], {"verify": ["{results}"]}.get(name, [])
    assert read("MLproject")["entry_points"][name]["command"] == " ".join(["laq", name, *arguments])
    options = {str(option.name): option for option in command.params if option.name not in WHO_WORKS}
    section = read("params.yaml")["glyphs"][name]
    assert name in {"advise", "verify"} or set(section) <= set(options)
    left_out = command.make_context(name, list(arguments)).params
    for key in set(options) & set(section):
        assert left_out[key] is None
        option = options[key]
        assert isinstance(option, click.Option)
        told = rf"\[default: {name}\.{key} in (the folder's )?params\.yaml\]"
        assert re.search(told, " ".join(str(option.help).split()))


def test_an_option_may_be_written_with_underscores_as_parameters_of_mlflow_are() -> None:
    with click.Context(main, **main.context_settings) as group:
        read = main.commands["advise"].make_context("advise", ["--max_kb", "60"], parent=group)
    assert read.params["max_kb"] == 60


def test_entry_points_without_options_run_the_pipeline_up_to_their_stage() -> None:
    entries = read("MLproject")["entry_points"]
    plain = {name: entry["command"] for name, entry in entries.items() if name not in WITHOUT_A_STAGE}
    assert plain.pop("main") == "laq pipeline"
    assert plain == {name: f"laq pipeline {name}" for name in ("finetune", "study", "report")}
    assert set(plain) < set(read("dvc.yaml")["stages"])


def test_the_isolated_project_offers_the_same() -> None:
    project, isolated = read("MLproject")["entry_points"], read("isolated/MLproject")["entry_points"]
    assert set(isolated) == {"main", "quantize", "export", "advise"}
    for name, entry in isolated.items():
        assert entry["command"] == f"cd .. && {project[name]['command']}"
        assert entry.get("parameters") == project[name].get("parameters")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            _, example, lines = (ast.get_docstring(node) or "").partition("\n\nExamples:\n")
            shown = (example + lines).count("\n")
            assert node.end_lineno - node.lineno - shown < 40, node.name


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


# It translates another program's names.
OTHERS_NAMES = {"predecessor"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_methods_are_named_in_their_registry_alone(path: Path) -> None:
    if "methods" in path.parts or room(path) in OTHERS_NAMES:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Constant) and node.value in METHODS), node.lineno


def test_pages_name_no_method() -> None:
    parts = [p for p in (ROOT / "laq").rglob("*") if p.suffix in {".js", ".html", ".css", ".md"}]
    assert parts
    for path in parts:
        text = path.read_text(encoding="utf-8")
        named = [name for method in METHODS.values() for name in (method.name, method.label) if name in text]
        assert not named, path


@pytest.mark.parametrize("path", sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py")]), ids=str)
def test_what_runs_beside_the_package_imports_only_what_it_has(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in {"laq", "tests"}:
            module = import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
