"""Which code and packages a result depends on."""

import subprocess
import sys

import pytest
import torch

from laq.imports import code_digest, package_versions, source_files
from tests.conftest import ROOT

STAGES = "dataset", "network", "embeddings", "divergence", "subsets", "finetune", "study", "report"


@pytest.mark.parametrize("stage", ["dataset", "subsets"])
def test_what_python_imports_is_found(stage: str) -> None:
    program = (
        f"import sys, laq.{stage}; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('laq.') and hasattr(m, '__file__')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    imported = {name.removeprefix(f"{ROOT}/") for name in done.stdout.split()}
    # A package's `__init__` runs whenever something in it is imported, and counts where it is used.
    found = set(source_files(f"laq.{stage}"))
    assert {name for name in imported if not name.endswith("__init__.py")} <= found
    assert any(name.startswith(f"laq/{stage}") for name in found)


def test_what_is_imported_late_or_named_in_a_registry_is_found() -> None:
    assert "laq/dataset/cifar100.py" in source_files("laq.dataset")
    assert "laq/quantization/methods/qronos.py" in source_files("laq.study.measure")


def test_a_measurement_does_not_depend_on_how_networks_are_trained_or_results_reported() -> None:
    measured = source_files("laq.study.measure")
    assert not [
        name for name in measured if name.startswith(("laq/report", "laq/track", "laq/network/training"))
    ]
    trained = source_files("laq.network")
    assert not [name for name in trained if name.startswith(("laq/study", "laq/quantization/methods"))]


def test_data_files_of_a_package_belong_to_its_modules() -> None:
    assert "laq/report/templates/report.md" in source_files("laq.report")
    assert not [name for name in source_files("laq.report") if name.endswith((".pyc", ".nbi", ".nbc"))]


def test_packages_are_told_with_their_versions_and_the_standard_library_is_not() -> None:
    found = package_versions("laq.network")
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert not {"os", "laq", "umap-learn"} & found.keys()


def test_each_stage_has_a_digest_of_its_own() -> None:
    assert len({code_digest(f"laq.{stage}") for stage in STAGES}) == len(STAGES)
    assert code_digest("laq.network") == code_digest("laq.network")
