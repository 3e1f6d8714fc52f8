"""A published study comes out again, and what does not is told."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from laq.errors import LaqError
from laq.files import md5, read_json
from laq.report.unchanged import changed_files, hash_files
from laq.sections.commands import Tolerance
from laq.verify import why_not
from laq.verify.comparison import Row
from laq.verify.published import read_published
from tests.conftest import ROOT
from tests.project import laq

TABLE = "measurements.csv.gz"


@pytest.fixture(scope="module")
def own(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that has published its study in out/."""
    target = tmp_path_factory.mktemp("verify") / "copy"
    shutil.copytree(clone, target, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    laq(target, "report", "--publish", "out")
    return target


@pytest.fixture
def published(own: Path, tmp_path: Path) -> Path:
    """A copy of what was published, to be changed."""
    return Path(shutil.copytree(own / "out", tmp_path / "out"))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_table(folder: Path, change: Callable[[pd.DataFrame], None]) -> None:
    table = pd.read_csv(folder / TABLE, dtype=str)
    change(table)
    (folder / TABLE).write_bytes(gzip.compress(table.to_csv(index=False).encode()))


def test_all_cells_come_out_again_measured_anew(own: Path) -> None:
    # What the study has kept of its cells is not what is compared.
    for kept in (own / ".laq/cells").glob("*/measurement.json"):
        edit_json(kept, lambda found: found.update(top1_sub_percent=1.0))
    before = {path.name for path in (own / ".laq/cells").iterdir()}
    count = len(pd.read_csv(own / "out" / TABLE))
    output = laq(own, "verify", "out", "--cells", "0")
    assert f"out: {count} of {count} cells, measured again on\n" in output
    assert f"\n{count} of {count} cells are equal.\n" in output
    assert {path.name for path in (own / ".laq/cells").iterdir()} == before
    assert not list((own / ".laq/verify").iterdir())


def test_cells_are_drawn_by_the_seed(own: Path) -> None:
    found = read_published(own / "out")
    first, again, other = (list(found.drawn(5, seed).cell) for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 5
    output = laq(own, "verify", "out", "--cells", "2", "--seed", "1")
    first_line = f"out: 2 of {len(found.table)} cells, drawn by seed 1, measured again on"
    assert f"{first_line}\n" in output
    assert all(cell in output for cell in found.drawn(2, 1).cell)


def test_few_networks_are_trained_for_a_draw() -> None:
    found = read_published(ROOT / "results/cifar100")
    tuned = found.table.variant.str.startswith("finetuned")
    for seed in range(5):
        cells = found.drawn(24, seed)
        trained = cells[cells.variant.str.startswith("finetuned")]
        assert len(trained) == round(24 * tuned.mean())
        assert trained.subset.nunique() <= 3
        assert cells.subset.nunique() > 10
        assert len(set(cells.cell)) == 24
    every = found.drawn(len(found.table) - 1, 0)
    assert len(set(every.cell)) == len(found.table) - 1


def test_a_number_that_was_not_measured_is_told(own: Path, published: Path) -> None:
    def lie(table: pd.DataFrame) -> None:
        table.loc[table.cell == "random-1.quantized.gpfq-3bit.subset-0", "top1_sub_percent"] = "99.5"

    edit_table(published, lie)
    output = laq(own, "verify", str(published), "--cells", "0", code=1)
    told = [line for line in output.splitlines() if "instead of" in line]
    assert len(told) == 1
    assert told[0].startswith("random-1.quantized.gpfq-3bit.subset-0: differs: top1_sub_percent ")
    assert told[0].endswith(" instead of 99.5")
    assert "1 DIFFER" in output


def test_a_number_in_a_row_that_is_not_drawn_cannot_be_changed(own: Path, published: Path) -> None:
    drawn = set(read_published(published).drawn(1, 0).cell)

    def lie(table: pd.DataFrame) -> None:
        table.loc[~table.cell.isin(drawn), "top1_sub_percent"] = "99.5"

    was = read_json(published / "provenance.json")["files"][TABLE]
    edit_table(published, lie)
    output = laq(own, "verify", str(published), "--cells", "1", "--seed", "0", code=1)
    assert "1 of 1 cells are equal.\n" in output
    told = f"{TABLE} was changed after it was published: its MD5 is {md5(published / TABLE)}, and was {was}"
    assert told in output
    # Nor is it analysed again, which would give it a new hash.
    told = f"laq: {published}: {told}; take it back, for example by `git checkout {published}`\n"
    assert laq(own, "report", "--of", str(published), code=2) == told


def test_a_study_that_was_published_without_its_layers_is_analysed_again(own: Path, published: Path) -> None:
    (published / "layers.csv").unlink()
    (published / "report.md").write_text("as it was written then", encoding="utf-8")
    record = read_json(published / "provenance.json") | {"files": hash_files(published)}
    (published / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    laq(own, "report", "--of", str(published))
    now = read_json(published / "provenance.json")
    assert now.pop("analysis")["processor"]
    assert now == record | {"files": hash_files(published)}
    for name in (TABLE, "report.md", "summary.csv", "subsets.json"):
        assert (published / name).read_bytes() == (own / "out" / name).read_bytes()
    assert not (published / "layers.csv").exists()


@pytest.mark.parametrize("folder", sorted((ROOT / "results").glob("*/")), ids=lambda folder: folder.name)
def test_no_published_file_was_changed(folder: Path) -> None:
    record = read_json(folder / "provenance.json")
    assert list(changed_files(folder, record)) == []
    files = {path.name for path in folder.iterdir()} - {"provenance.json"}
    assert set(record["files"]) == files


def test_a_tolerance_of_the_published_parameters_is_used_and_told(own: Path, published: Path) -> None:
    def lie(table: pd.DataFrame) -> None:
        at = table.cell == "random-1.quantized.gpfq-3bit.subset-0"
        table.loc[at, "top1_sub_percent"] = str(float(table.loc[at, "top1_sub_percent"].iloc[0]) + 0.5)

    edit_table(published, lie)
    params = yaml.safe_load((published / "params.yaml").read_text(encoding="utf-8"))
    tolerance = {"methods": ["gpfq"], "points": 0.6, "relative": 0.0, "why": "ties fall differently"}
    params["glyphs"]["verify"]["tolerances"] = [tolerance]
    (published / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    edit_json(published / "provenance.json", lambda record: record.update(files=hash_files(published)))
    output = laq(own, "verify", str(published), "--cells", "0")
    assert "random-1.quantized.gpfq-3bit.subset-0: within tolerance: top1_sub_percent " in output
    assert "Tolerance of the published record: ties fall differently" in output
    assert "1 within the tolerance" in output


@pytest.mark.parametrize(
    ("methods", "bases", "row", "expected"),
    [
        ((), (), {"method": "rtn", "variant": "quantized"}, True),
        (("gpfq",), (), {"method": "rtn", "variant": "quantized"}, False),
        ((), ("finetuned",), {"method": "rtn", "variant": "finetuned_quantized"}, True),
        ((), ("finetuned",), {"method": "rtn", "variant": "quantized"}, False),
    ],
)
def test_a_tolerance_is_for_the_rows_that_it_names(
    methods: tuple[str, ...], bases: tuple[Any, ...], row: dict[str, str], expected: object
) -> None:
    assert Tolerance(methods=methods, bases=bases, points=1, relative=0, why="x").names(row) is expected


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "equal"),
        ({"top1_sub_percent": 80.4}, "within tolerance"),
        ({"top1_sub_percent": 80.6}, "differs"),
        ({"drop_sub_points": 0.9}, "within tolerance"),
        ({"drop_sub_points": 1.1}, "differs"),
        ({"size_bytes": 1005}, "within tolerance"),
        ({"size_bytes": 1020}, "differs"),
        ({"relative_error_logits": None}, "differs"),
        ({"top1_sub_percent": 80.0000001}, "equal"),  # beyond the digits that are published
    ],
)
def test_the_outcome_of_a_row(change: dict[str, Any], outcome: str) -> None:
    published = {
        "top1_sub_percent": 80.0, "drop_sub_points": 0.5, "size_bytes": 1000, "relative_error_logits": 0.1,
        "levels": None,
    }  # fmt: skip
    tolerance = Tolerance(points=0.5, relative=0.01, why="x")
    assert Row(published, published | change, tolerances=[tolerance]).outcome == outcome
    if change:
        assert Row(published, published | change).outcome == ("equal" if outcome == "equal" else "differs")


@pytest.mark.parametrize(
    "name", ["dataset.json", "provenance.json", "params.yaml", "subsets.json", "network.json", TABLE]
)
def test_a_missing_file_is_told(own: Path, published: Path, name: str) -> None:
    (published / name).unlink()
    told = (
        f"laq: {published / name}: not found, and needed to measure the study again; name a folder as "
        "`laq report --publish FOLDER` wrote it\n"
    )
    assert laq(own, "verify", str(published), code=2) == told


def test_balanced_accuracies_are_compared_where_they_were_published() -> None:
    measured = {"top1_sub_percent": 80.0, "balanced_top1_sub_percent": 75.0}
    assert Row({"top1_sub_percent": 80.0}, measured).outcome == "equal"
    assert Row(measured, measured).outcome == "equal"
    assert Row(measured | {"balanced_top1_sub_percent": 74.0}, measured).outcome == "differs"


def tampered_network(folder: Path) -> None:
    content = bytearray((folder / "network.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "network.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (tampered_network, "data/network is not what was published: its MD5 is "),
        (
            lambda folder: edit_json(folder / "subsets.json", lambda s: s[0].update(kind="other")),
            "data/subsets.json is not what was published: its MD5 is ",
        ),
        (lambda folder: (folder / "provenance.json").write_text("[]"), "does not tell what the study was"),
        (lambda folder: (folder / "provenance.json").write_text("{"), "provenance.json: not JSON"),
        (
            lambda folder: edit_json(folder / "provenance.json", lambda record: record.update(files=[1])),
            "provenance.json: files: found [1]; must give MD5s by files' names",
        ),
        (
            lambda folder: edit_json(folder / "subsets.json", lambda subsets: subsets.pop()),
            "subsets.json: has no subset random-1, which the table has",
        ),
    ],
)
def test_what_is_not_what_was_published_is_not_measured(
    own: Path, published: Path, tamper: Callable[[Path], Any], told: str
) -> None:
    tamper(published)
    before = sorted((own / ".laq").rglob("*"))
    output = laq(own, "verify", str(published), "--cells", "2", code=2)
    assert told in output
    assert len(output.splitlines()) == 1
    assert [path for path in sorted((own / ".laq").rglob("*")) if path not in before] in (
        [],
        [own / ".laq/verify"],
    )


def test_other_data_than_the_published_are_told(own: Path, published: Path) -> None:
    params = yaml.safe_load((published / "params.yaml").read_text(encoding="utf-8"))
    params["glyphs"]["dataset"]["seed"] = 9
    (published / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    edit_json(published / "dataset.json", lambda images: images["md5"].update({"test.npy": "0"}))
    output = laq(own, "verify", str(published), "--cells", "2", code=2)
    assert "data/dataset/test.npy is not what was published: its MD5 is " in output


def test_a_study_that_was_published_without_its_hashes_or_weights_is_left_out(published: Path) -> None:
    (published / "network.safetensors").unlink()
    assert why_not(published) == "it was published without network.safetensors"
    (published / "dataset.json").unlink()
    (published / "network.json").unlink()
    assert why_not(published) == "it was published without dataset.json, network.json"
    (published / "provenance.json").unlink()
    with pytest.raises(LaqError, match=r"provenance\.json: not found, and needed"):
        why_not(published)


def test_a_study_whose_images_are_not_at_hand_is_left_out(
    own: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAQ_CIFAR100", raising=False)
    params = yaml.safe_load((published / "params.yaml").read_text(encoding="utf-8"))
    params["glyphs"]["dataset"] = {"name": "cifar100"}
    (published / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    edit_json(published / "dataset.json", lambda images: images["md5"].update({"test.npy": "0"}))
    output = laq(own, "verify", "--at-hand", str(published), "out", "--cells", "1")
    assert f"{published}: left out: the images of cifar100 are not at hand\n" in output
    assert "1 of 1 cells are equal." in output
