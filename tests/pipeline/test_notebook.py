"""The notebook of the tutorials runs, and is kept with the outputs of a run."""

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT
from tests.project import environment

NOTEBOOK = ROOT / "docs/tutorials/label-aware.ipynb"
PICTURES = 3


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs(clone: Path, tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    env = environment() | {"PYTHONPATH": str(clone)}
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(clone)}}).execute(env=env)
    assert pictures(notebook) == PICTURES


def test_the_notebook_is_kept_with_outputs_and_small() -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert pictures(notebook) == PICTURES
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    # No path of the machine that it was run on.
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")
