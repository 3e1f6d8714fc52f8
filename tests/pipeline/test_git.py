"""What is uncommitted: whatever results depend on, and of params.yaml the study that runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from laq.git import commit
from tests.conftest import tiny_params
from tests.project import run

Text = Callable[[dict[str, Any]], str]


def dumped(params: dict[str, Any]) -> str:
    return yaml.safe_dump(params, sort_keys=False)


def with_seed(study: str) -> Text:
    """The file with another seed for the study's images."""

    def text(params: dict[str, Any]) -> str:
        params[study]["dataset"]["seed"] = 5
        return dumped(params)

    return text


CLEAN: dict[str, Text] = {
    "as committed": dumped,
    "comments": lambda params: f"# a note\n{dumped(params)}# another\n",
    "only study switched": lambda params: dumped(params | {"study": "cifar100"}),
    "another study's key": with_seed("cifar100_wide"),
    "another order and layout": lambda params: yaml.safe_dump(params, default_flow_style=True),
}
DIRTY: dict[str, Text] = {
    "a key of the study's": with_seed("glyphs"),
    "a new study": lambda params: dumped(params | {"study": "mine", "mine": params["glyphs"]}),
    "a study that is not there": lambda params: dumped(params | {"study": "nowhere"}),
    "no YAML": lambda _: "study: [",
    "nothing": lambda _: "",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of a git repository, the current folder while the test runs."""
    folder = tmp_path / "some where"
    folder.mkdir()
    (folder / "params.yaml").write_text(dumped(tiny_params()), encoding="utf-8")
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@t commit -qm start"):
        run(folder, "git", *command.split())
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("change", "dirty"), [*((c, False) for c in CLEAN), *((c, True) for c in DIRTY)])
@pytest.mark.parametrize("staged", [False, True])
def test_params_yaml_is_uncommitted_where_the_study_that_runs_is(
    repository: Path, change: str, *, dirty: bool, staged: bool
) -> None:
    (repository / "params.yaml").write_text({**CLEAN, **DIRTY}[change](tiny_params()), encoding="utf-8")
    if staged:
        run(repository, "git", "add", "-A")
    found = commit()
    assert (found["dirty"], found["uncommitted"]) == (dirty, ["params.yaml"] * dirty)
    assert found["commit"] == run(repository, "git", "rev-parse", "HEAD").strip()


def test_a_file_that_is_not_in_the_commit_is_uncommitted(repository: Path) -> None:
    run(repository, "git", "rm", "-q", "--cached", "params.yaml")
    run(repository, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "without")
    (repository / "laq").mkdir()
    (repository / "laq/new.py").touch()
    assert commit()["uncommitted"] == ["laq/new.py", "params.yaml"]
