"""Nothing stale is used: every key, file and package that a result depends on is checked, by DVC and by us."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dvc.repo import Repo

from laq import provenance
from laq.cli import main
from laq.files import read_json, write_json
from laq.git import commit
from laq.imports import COMPILED, source_files
from laq.params import load_params
from laq.provenance import check, find_stale, read_stages
from tests.conftest import ROOT, tiny_params, write_params
from tests.project import laq, run, stages_run

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
RECORDED = [name for name in STAGES if name != "track"]
# Of whether anything is fine-tuned.
ALSO = {"study.bases": {"finetune"}, "study.also": {"finetune"}}


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys that hold something else than keys."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS = list(leaves(tiny_params()["glyphs"]))


@pytest.fixture(scope="module")
def made(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project with its results, the current folder of these tests."""
    target = tmp_path_factory.mktemp("provenance") / "copy"
    shutil.copytree(clone, target, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(target)
        yield target


@pytest.fixture
def edited(made: Path) -> Iterator[Path]:
    """The same for what edits files of data/ or parameters, which are put back after."""
    kept = made.with_name("kept")
    shutil.copytree(made / "data", kept / "data", symlinks=True)
    shutil.copy(made / "params.yaml", kept)
    yield made
    shutil.rmtree(made / "data")
    shutil.copytree(kept, made, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(kept)


def changed(study: dict[str, Any], key: str) -> dict[str, Any]:
    """A copy of the study with another value of the key."""
    *sections, last = key.split(".")
    copy: dict[str, Any] = json.loads(json.dumps(study))
    place = copy
    for name in sections:
        place = place[name]
    place[last] = "something else"
    return copy


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_that_it_uses_and_no_other(stage: str) -> None:
    listed = [ROOT / path for path in STAGES[stage]["deps"] if path.startswith("laq/")]
    files = {
        file.relative_to(ROOT).as_posix()
        for path in listed
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file() and file.suffix not in COMPILED
    }
    assert files == set(source_files(f"laq.{stage}")), "run `make dependencies`"


def stages_of(key: str) -> set[str]:
    """The stages that depend on a key."""
    return ({key.partition(".")[0]} & set(STAGES)) | ALSO.get(key, set())


@pytest.mark.parametrize("key", KEYS)
def test_whoever_uses_results_sees_a_changed_key(made: Path, key: str) -> None:
    study = load_params().settings
    stale = find_stale(changed(study, key), "report")
    first = next((name for name in RECORDED if name in stages_of(key)), None)
    assert (stale.stage if stale else None) == first
    if stale:
        assert f"params.yaml: glyphs.{key} is 'something else', and was " in stale.advice
        assert stale.advice.endswith(f" when the stage {first} ran; run `dvc repro`")


# DVC is told of whole sections, and of these keys beside.
@pytest.mark.parametrize("key", [*{key.partition(".")[0]: key for key in KEYS}.values(), *ALSO])
def test_dvc_runs_the_stages_that_depend_on_a_changed_key_and_no_other(edited: Path, key: str) -> None:
    params = tiny_params()
    params["glyphs"] = changed(params["glyphs"], key)
    (edited / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    with Repo(str(edited)) as repo:
        assert set(repo.status()) == stages_of(key)


def test_what_is_fresh_is_used(made: Path) -> None:
    assert find_stale(load_params().settings, *RECORDED) is None


@pytest.mark.parametrize(
    ("path", "stage", "told"),
    [
        ("data/dataset/test.npy", "dataset", "data/dataset: changed since the stage dataset wrote it"),
        ("data/network/network.json", "network", "data/network: changed since the stage network wrote it"),
        ("data/subsets.json", "subsets", "data/subsets.json: changed since the stage subsets wrote it"),
        ("data/study/measurements.csv", "study", "data/study: changed since the stage study wrote it"),
        ("data/provenance/study.json", "study", "data/provenance/study.json: not JSON"),
    ],
)
def test_changed_data_are_not_used(edited: Path, path: str, stage: str, told: str) -> None:
    target = edited / path
    content = target.read_bytes()
    target.unlink()  # not through a link to DVC's cache
    target.write_bytes(content + b" more")
    before = sorted(edited.rglob("*"))
    for command in (["report"], ["track"], ["report", "--publish", "out"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"laq: {told}")
        assert len(done.stderr.splitlines()) == 1
    assert sorted(edited.rglob("*")) == before
    with Repo(str(edited)) as repo:
        assert stage in repo.status()


def test_changed_code_is_told_by_its_file(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*modules: str) -> dict[str, str]:
        return {**source_files(*modules), "laq/network/training.py": "edited"}

    monkeypatch.setattr(provenance, "source_files", other)
    stale = find_stale(load_params().settings, "network")
    assert stale
    assert stale.advice.startswith("laq/network/training.py: changed since the stage ")


def test_other_packages_are_told_with_what_forces_the_stage_to_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "package_versions", lambda *_: {"python": "3.11", "torch": "9.9"})
    stale = find_stale(load_params().settings, "dataset")
    assert stale
    assert stale.unseen
    assert "run `dvc repro --force --single-item dataset`, then `dvc repro`" in stale.advice


@pytest.mark.parametrize("content", [[], {}, {"parameters": {}}, "text", None])
def test_a_record_that_is_none_is_told(edited: Path, content: Any) -> None:
    record = read_stages()["network"].record
    record.unlink()
    write_json(record, content)
    done = CliRunner().invoke(main, ["report"])
    assert (done.exit_code, done.stderr) == (
        2,
        "laq: data/provenance/network.json: not the record of a stage; run `dvc repro`\n",
    )


def test_a_record_that_is_missing_is_told(edited: Path) -> None:
    read_stages()["divergence"].record.unlink()
    with pytest.raises(
        provenance.LaqError, match=r"^data/provenance/divergence.json: not found; run `dvc repro`$"
    ):
        check(load_params().settings, "subsets")
    check(load_params().settings, "network")


def test_a_record_holds_what_the_stage_was_given_and_read_and_is_the_same_each_time(edited: Path) -> None:
    record = edited / "data/provenance/subsets.json"
    first = record.read_bytes()
    found = read_json(record)
    assert found["parameters"] == {"subsets": load_params().settings["subsets"]}
    assert set(found["inputs"]) == {"data/divergence/matrix.npy", "data/divergence/class_names.npy"}
    assert found["code"] == source_files("laq.subsets")
    laq(edited, "subsets")
    assert record.read_bytes() == first


def test_a_stage_that_fails_leaves_no_record(edited: Path) -> None:
    params = tiny_params()
    params["glyphs"]["subsets"]["similar"] = 99
    (edited / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    laq(edited, "subsets", code=2)
    assert not (edited / "data/provenance/subsets.json").exists()
    assert laq(edited, "track", code=2) == "laq: data/provenance/subsets.json: not found; run `dvc repro`\n"


def test_quantize_makes_what_is_stale_again(edited: Path) -> None:
    params = tiny_params()
    params["glyphs"]["subsets"]["seed"] = 5
    (edited / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    output = run(edited, "laq", "quantize", "--subset", "random-1", "--bits", "3")
    assert stages_run(output) == ["subsets", "finetune"]
    assert "random-1:" in output


def test_results_of_one_seed_are_never_told_as_anothers(
    edited: Path, new_store: Callable[[Path], None]
) -> None:
    new_store(edited / "mlflow.db")
    before = (edited / "mlflow.db").read_bytes()
    params = tiny_params()
    params["glyphs"]["dataset"]["seed"] = 1
    write_params(edited, params)
    told = (
        "laq: params.yaml: glyphs.dataset.seed is 1, and was 0 when the stage dataset ran; run `dvc repro`\n"
    )
    for command in (["track"], ["report"], ["report", "--publish", "out/other"]):
        assert laq(edited, *command, code=2) == told
    assert (edited / "mlflow.db").read_bytes() == before
    assert not (edited / "out/other").exists()
    assert commit()["uncommitted"] == ["params.yaml"]


def test_what_is_uncommitted_is_told_and_parameters_are_part_of_it(edited: Path) -> None:
    params = tiny_params()
    params["glyphs"]["verify"]["cells"] = 1
    write_params(edited, params)
    laq(edited, "report", "--publish", "out/noted")
    found = read_json(edited / "out/noted/provenance.json")
    assert (found["dirty"], found["uncommitted"]) == (True, ["params.yaml"])
