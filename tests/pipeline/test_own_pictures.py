"""A study of your own pictures: whoever uses results sees that these have changed, and so does DVC."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from laq.params import load_params
from laq.provenance import FILE, find_stale, is_watched, recording, watch
from laq.states import state_md5
from tests.conftest import tiny_params, write_params
from tests.dataset.test_folder import class_files, picture, put
from tests.project import laq

STAGE = {
    "cmd": "python -m laq dataset",
    "deps": [],
    "params": ["${study}.dataset"],
    "outs": ["data/dataset", "data/provenance/dataset.json"],
}


@pytest.fixture
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures outside of the project."""
    put(folder := tmp_path_factory.mktemp("own") / "photos", class_files())
    return folder


@pytest.fixture
def shop(project: Path, photos: Path) -> dict[str, Any]:
    """The settings of a study of pictures that lie outside of the project, whose images are made."""
    block = tiny_params()["glyphs"]
    block["dataset"] = {"name": "folder", "path": os.path.relpath(photos, project), "size": 16}
    block["subsets"] |= {"sizes": [2], "given": []}
    write_params(project, {"study": "shop", "shop": block})
    FILE.write_text(f"# Ours.\n{yaml.safe_dump({'stages': {'dataset': STAGE}})}", encoding="utf-8")
    assert "add ${shop.dataset.path} to the deps of the stage dataset in dvc.yaml" in laq(project, "dataset")
    return load_params().settings


CHANGES = {
    "added": lambda photos: (photos / "hat/new.png").write_bytes(picture(99)),
    "removed": lambda photos: (photos / "hat/0.png").unlink(),
    "changed": lambda photos: (photos / "hat/0.png").write_bytes(picture(99)),
    "moved": lambda photos: (photos / "hat/0.png").rename(photos / "shoe/new.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whoever_uses_results_sees_changed_pictures(photos: Path, shop: dict[str, Any], change: Any) -> None:
    assert find_stale(shop, "dataset") is None
    change(photos)
    stale = find_stale(shop, "dataset")
    assert stale is not None
    assert stale.reason == f"{shop['dataset']['path']}: changed since the stage dataset read it"
    assert stale.unseen
    watch(shop)
    stale = find_stale(shop, "dataset")
    assert stale is not None
    assert not stale.unseen


def test_what_systems_write_is_no_change_and_pictures_may_be_gone(photos: Path, shop: dict[str, Any]) -> None:
    (photos / ".DS_Store").write_bytes(b"-")
    assert find_stale(shop, "dataset") is None
    photos.rename(photos.with_name("elsewhere"))
    assert find_stale(shop, "dataset") is None


def test_a_clock_that_is_set_back_hides_no_change(photos: Path, shop: dict[str, Any]) -> None:
    one = photos / "hat/0.png"
    before, other = one.stat(), bytearray(one.read_bytes())
    other[-20] ^= 1  # as large as before, in the same file
    with one.open("r+b") as file:
        file.write(other)
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_stale(shop, "dataset") is not None


@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ("network", {"architecture": "python:own/file.py:make"}),
        (
            "network",
            {"source": "file", "architecture": "own/file.pt2", "weights": "w.pt", "sha256": "0" * 64},
        ),
        ("network", {"source": "pretrained", "architecture": "resnet18", "outputs": "own/file.txt"}),
        ("embeddings", {"network": "python:own/file.py:make"}),
    ],
)
def test_what_is_made_by_a_file_of_the_studys_own_is_stale_once_that_has_changed(
    project: Path, stage: str, section: dict[str, Any]
) -> None:
    params = tiny_params()
    params["glyphs"][stage] |= section
    write_params(project, params)
    outputs = [f"data/{stage}", f"data/provenance/{stage}.json"]
    stages = {stage: {"params": [f"${{study}}.{stage}"], "deps": [], "outs": outputs}}
    FILE.write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    name = next(value for value in section.values() if "own/" in value)
    own = Path("own", name.rpartition("/")[2].removesuffix(":make"))
    own.parent.mkdir()
    own.write_bytes(b"one")
    study = load_params().settings
    with recording(stage, study):
        Path("data", stage).mkdir(parents=True)
    assert find_stale(study, stage) is None
    own.write_bytes(b"two")
    stale = find_stale(study, stage)
    assert stale is not None
    assert stale.advice == (
        f"{own}: changed since the stage {stage} read it; run `dvc repro --force --single-item {stage}`, "
        "then `dvc repro`"
    )
    own.unlink()
    assert find_stale(study, stage) is None


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_dvc_sees_changed_pictures_that_it_watches(
    project: Path, photos: Path, shop: dict[str, Any], change: Any
) -> None:
    watch(shop)
    watch(shop)
    assert is_watched(shop)
    assert FILE.read_text(encoding="utf-8").startswith("# Ours.\n")
    assert FILE.read_text(encoding="utf-8").count("${shop.dataset.path}") == 1
    Repo.init(str(project), no_scm=True).close()
    with Repo(str(project)) as repo:
        repo.commit(force=True)
        assert repo.status() == {}
        change(photos)
        assert set(repo.status()) == {"dataset"}


def test_a_folder_is_hashed_as_dvc_does_and_files_that_stay_are_read_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laq import states
    from laq.files import dvc_md5, md5

    put(project / "photos", class_files(3))
    assert state_md5(project / "photos") == dvc_md5(project / "photos")
    read: list[Path] = []
    monkeypatch.setattr(states, "md5", lambda path: read.append(path) or md5(path))
    (project / "photos/hat/0.png").write_bytes(picture(5))
    assert state_md5(project / "photos") == dvc_md5(project / "photos")
    assert read == [project / "photos/hat/0.png"]
    (project / ".laq/states.json").write_text("{", encoding="utf-8")
    assert state_md5(project / "photos") == dvc_md5(project / "photos")
    assert state_md5(project / "photos/hat/0.png") == md5(project / "photos/hat/0.png")
