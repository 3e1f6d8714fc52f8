"""What `pip install laq` brings is what the quantizer and serving import; the command says what else it needs."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.project import environment, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The last one is a module that a registry names: served networks of torchvision are built by it.
CORE = ("laq.quantization", "laq.serving", "laq.run", "laq.architectures.torchvision_models")
# Modules that are not called as their packages are.
MODULES = {
    "vl-convert-python": "vl_convert",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "umap-learn": "umap",
}
MODULES |= {"markdown-it-py": "markdown_it", "ruamel.yaml": "ruamel"}


def modules_of(requirements: list[str]) -> set[str]:
    names = [requirement.partition(">=")[0].strip() for requirement in requirements]
    found = {MODULES.get(name, name) for name in names}
    return found | {"pydantic_core"} if "pydantic" in found else found


def source_of(module: str) -> Path | None:
    """The file of one of the project's modules."""
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.exists()), None)


def imports(node: ast.AST, *, at_once: bool) -> Iterator[str]:
    """The modules that code imports; ``at_once``: when it is imported itself, not when it is called."""
    for child in ast.iter_child_nodes(node):
        if at_once and isinstance(child, ast.FunctionDef):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
            # `from laq import files` imports laq.files.
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child, at_once=at_once)


def loaded_with(modules: tuple[str, ...]) -> dict[str, Path]:
    """Those of the project's modules that are imported with these, and their files."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        parts = waiting.pop().split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            source = source_of(name) if parts[0] == "laq" else None
            if source is not None and name not in found:
                found[name] = source
                waiting += imports(ast.parse(source.read_text(encoding="utf-8")), at_once=True)
    return found


def packages(source: Path, *, at_once: bool) -> set[str]:
    """The packages of others that a file imports."""
    names = imports(ast.parse(source.read_text(encoding="utf-8")), at_once=at_once)
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"laq"}


def test_the_quantizer_and_serving_import_what_the_package_alone_brings() -> None:
    core = modules_of(PROJECT["dependencies"])
    loaded = loaded_with(CORE)
    assert {"laq.quantization.files.packing", "laq.architectures"} <= loaded.keys()
    for name, source in loaded.items():
        assert packages(source, at_once=True) <= core, name
    # Nothing is asked for that they could do without.
    used = {package for source in loaded.values() for package in packages(source, at_once=False)}
    assert core <= used


def test_the_quantizer_imports_nothing_more_when_it_is_called() -> None:
    extras = PROJECT["optional-dependencies"]
    allowed = modules_of([*PROJECT["dependencies"], *extras["onnx"]]) | {"triton"}  # which comes with torch
    for source in (ROOT / "laq/quantization").rglob("*.py"):
        assert packages(source, at_once=False) <= allowed, source


def test_every_import_is_of_a_package_that_some_extra_brings() -> None:
    extras = PROJECT["optional-dependencies"]
    known = modules_of([r for listed in (PROJECT["dependencies"], *extras.values()) for r in listed])
    for source in (ROOT / "laq").rglob("*.py"):
        assert packages(source, at_once=False) <= known | {"sqlalchemy", "triton"}, source  # MLflow, torch


def test_importing_the_quantizer_loads_neither_mlflow_nor_dvc_nor_pandas() -> None:
    program = "import sys, laq.quantization; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, text=True, capture_output=True)
    pipeline = modules_of(PROJECT["optional-dependencies"]["pipeline"]) - {"scipy"}  # which numba asks for
    heavy = {*pipeline, "pandas", "PIL", "torchvision", "scipy.stats", "triton"}
    assert heavy & set(done.stdout.split()) == set()


ALONE = """
import json, sys
from pathlib import Path
for name in {missing}: sys.modules[name] = None
import numpy as np, pandas as pd, torch
from laq.architectures import NetworkDesign, build
from laq.files import md5
from laq.quantization import Recipe, quantize, save
from laq.serving import DESCRIPTION, WEIGHTS, load_classifier
design = NetworkDesign("resnet20", 5, 32, (0.5,) * 3, (0.25,) * 3)
images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
save(WEIGHTS, quantize(build(design, seed=1), images, Recipe(bits=3)))
with open(DESCRIPTION, "w") as file:
    classes = {{"1": "circle", "3": "square"}}
    json.dump({{"design": design.to_json(), "classes": classes, "md5": md5(Path(WEIGHTS))}}, file)
picture = np.full((32, 32, 3), 200)
print(*load_classifier(Path(".")).predict(pd.DataFrame({{"image": [picture]}})).columns, end=" ")
print(Path(sys.modules["laq"].__file__).parents[1])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `pip install` of the project's wheel fills."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "laq", source / "laq", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob(f"laq-{PROJECT['version']}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(target)
    return target


def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    kept = {path.relative_to(installed) for path in (installed / "laq").rglob("*") if path.is_file()}
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "laq").splitlines()
    assert kept == {Path(name) for name in listed if (ROOT / name).is_file()}


def test_an_installed_wheel_quantizes_packs_and_serves_without_the_pipelines_packages(
    installed: Path, tmp_path: Path
) -> None:
    extras = PROJECT["optional-dependencies"]
    missing = modules_of([r for name, listed in extras.items() if name != "dev" for r in listed])
    missing.remove("laq[pipeline]")
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(missing=sorted(missing))],
        cwd=tmp_path, env=environment() | {"PYTHONPATH": str(installed)}, check=False, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.stdout.split() == ["class", "probability", "probabilities", str(installed)], done.stderr


@pytest.mark.parametrize("missing", ["click", "joblib"])
def test_without_the_pipelines_packages_the_command_says_what_to_install(project: Path, missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from laq.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "study"], cwd=project, env=environment() | {"PYTHONPATH": str(ROOT)},
        check=False, text=True, capture_output=True,
    )  # fmt: skip
    told = f"laq: {missing} is not installed; `pip install 'laq[pipeline]'` brings what the commands need\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
