"""Two studies beside each other: pairs by hand, names, what is refused, and the command on a small store."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from laq.cli import main
from laq.compare.figures import chart
from laq.compare.made_by import cautions, check
from laq.compare.pairing import Comparison, alone, each, match, paired
from laq.compare.text import markdown
from laq.errors import LaqError
from laq.files import write_json
from laq.subsets.subset import Subset
from laq.track.deliver import deliver
from laq.track.descriptions import shortened
from laq.track.find_studies import COLUMNS, StageRecord, TrackedStudies, TrackedStudy
from laq.track.find_studies import RECORDS as RECORDS_FILE
from laq.track.run_specs import Input, ResultRuns, RunSpec
from laq.track.store import Store
from tests.conftest import tiny_params, write_params
from tests.snapshots import check_snapshot
from tests.studies import measured_row

FLOAT = {"original": 90.0, "finetuned": 92.0}
FREE = ("float", "rtn")  # of calibration images


def row(classes: str, bits: str, top1: float, method: str = "gpfq", variant: str = "quantized") -> list[Any]:
    spent = 2.9 if bits == "auto:3" else float(bits)
    drawn = ["none", ""] if method in FREE else ["subset", "0"]
    return [f"random-{classes}", classes, variant, method, bits, *drawn, spent, top1, 1024 * spent]


def rows(*cells: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(cells, columns=list(COLUMNS))


def tracked(run: str, **changes: Any) -> TrackedStudy:
    tags = {"laq.dataset": "glyphs", "laq.network": "resnet20", "laq.commit": "abc"}
    return TrackedStudy(**{"run": run, "started": 0, "params": {}, "tags": tags, "inputs": {}, **changes})


COMPARISON = Comparison(tracked("a" * 32), tracked("b" * 32))


def text_of(table: pd.DataFrame, pair: Comparison = COMPARISON) -> str:
    """The Markdown of a comparison, without the spaces that align its tables."""
    return re.sub(" +", " ", markdown(pair, table))


def test_differences_are_second_minus_first_cell_by_cell() -> None:
    first = rows(row("a, b", "3", 80.0), row("a, c", "3", 70.0), row("a, d", "3", 60.0))
    second = rows(row("a, d", "3", 63.0), row("a, c", "3", 72.0), row("a, b", "3", 81.0))
    (found,) = paired(match(first, second)).to_dict("records")
    assert (found["n"], found["mean_first"], found["mean_second"]) == (3, 70.0, 72.0)
    # 1, 2 and 3 points: each study by itself spreads ten times as far.
    assert (found["difference_mean"], found["difference_std"]) == (2.0, 1.0)
    assert found["bytes_first"] == found["bytes_second"] == 3072
    line = "| original | GPFQ | 3 | 3 | 70.00 | 72.00 | +2.00 ± 1.00 | 3.0 | 3.0 |"
    assert line in text_of(match(first, second))


def test_the_text_of_a_comparison_is_the_one_kept() -> None:
    first = rows(row("a, b", "3", 80.0), row("a, c", "3", 70.0), row("a, b", "4", 80.0))
    second = rows(row("a, c", "3", 72.0), row("a, b", "3", 81.0), row("a, b", "auto:3", 80.0))
    pair = Comparison(tracked("a" * 32, params={"seed": "0"}), tracked("b" * 32, params={"seed": "1"}))
    check_snapshot("comparison.txt", text_of(match(first, second), pair))


def test_one_pair_has_a_difference_and_no_deviation() -> None:
    table = match(rows(row("a, b", "3", 80.0)), rows(row("a, b", "3", 79.5)))
    assert pd.isna(paired(table).difference_std[0])
    assert "| 80.00 | 79.50 | -0.50 | 3.0 |" in text_of(table)


def test_the_same_classes_twice_make_two_pairs() -> None:
    twice = rows(row("a, b", "3", 80.0), row("a, b", "3", 82.0)).assign(subset=["random-1", "given-1"])
    table = match(twice, twice.assign(top1_sub_percent=[81.0, 84.0]))
    assert table.difference_points.tolist() == [1.0, 2.0]
    assert match(twice, twice[:1]).found.tolist() == ["both", "first"]


def test_seeds_count_as_one_cell_of_their_mean() -> None:
    drawn = rows(row("a, b", "3", 80.0), row("a, b", "3", 82.0)).assign(seed=["0", "1"])
    (found,) = paired(match(drawn, rows(row("a, b", "3", 84.0)))).to_dict("records")
    assert (found["n"], found["mean_first"], found["difference_mean"]) == (1, 81.0, 3.0)


def test_calibrations_tell_cells_apart_where_a_study_has_several() -> None:
    subset = rows(row("a, b", "3", 80.0))
    everything = subset.assign(calibration="all", top1_sub_percent=77.0)
    assert paired(match(subset, everything)).difference_mean.tolist() == [-3.0]
    both = pd.concat([subset, everything])
    table = match(both, everything)
    assert paired(table).difference_mean.tolist() == [0.0]
    assert "GPFQ, images of all classes | 3 | 1 | 77.00 | 77.00" in text_of(table)
    assert len(alone(table)) == 1


def test_cells_without_a_partner_are_counted_by_what_the_other_lacks() -> None:
    first = rows(row("a, b", "3", 80.0), row("a, b", "2", 50.0), row("a, c", "3", 70.0))
    second = rows(
        row("a, b", "3", 81.0),
        row("a, b", "3", 75.0, "rtn"),
        row("a, d", "3", 1.0),
        row("a, d", "auto:3", 2.0),
    )
    table = match(first, second)
    assert alone(table) == {
        "bits 2 in the first": 1,
        "the classes of random-a, c in the first": 1,
        "bits auto:3 in the second": 1,
        "method round-to-nearest in the second": 1,
        "the classes of random-a, d in the second": 1,
    }
    assert (
        "have 1 quantized cell in common. 5 cells occur in one study only: bits 2 in the first (1);"
        in text_of(table)
    )
    lost = alone(match(rows(*first.to_numpy().tolist(), row("a, c", "2", 4.0)), first))
    assert lost == {"random-a, c by GPFQ at 2 bits in the first": 1}


def test_where_nothing_is_shared_each_study_stands_by_itself() -> None:
    first = rows(row("a, b", "2", 50.0, "rtn"), row("a, b", "2", 70.0), row("a, c", "2", 80.0))
    second = rows(row("a, b", "3", 81.0))
    table = match(first, second)
    text = text_of(table)
    assert "no quantized cells in common. 4 cells occur in one study only: bits 2 in the first (3);" in text
    assert "| original | round-to-nearest | 2 | 1 | 50.00 | 2.0 | | | |" in text
    assert "| original | GPFQ | 2 | 2 | 75.00 ± 7.07 | 2.0 | | | |" in text
    assert "| original | GPFQ | 3 | | | | 1 | 81.00 | 3.0 |" in text
    assert "taken cell by cell" not in text
    assert paired(table).empty


def test_rows_stand_by_network_bits_and_method_with_round_to_nearest_first() -> None:
    one = rows(
        row("a, b", "3", 1.0, variant="finetuned_quantized"), row("a, b", "10", 1.0), row("a, b", "3", 1.0),
        row("a, b", "auto:3", 1.0), row("a, b", "3", 1.0, "rtn"), row("a, b", "32", 1.0, "float", "original"),
    )  # fmt: skip
    found = each(match(one, one))
    places = list(zip(found.variant, found.method, found.bits, strict=True))
    assert places == [
        ("original", "float", "32"), ("quantized", "rtn", "3"), ("quantized", "gpfq", "3"),
        ("quantized", "gpfq", "10"), ("quantized", "gpfq", "auto:3"), ("finetuned_quantized", "gpfq", "3"),
    ]  # fmt: skip
    assert alone(match(one, one)) == {}


def test_what_differs_is_told_of_parameters_commits_and_inputs() -> None:
    params = {"study.bits": "[2, 3]", "study.seed": "0"}
    first = tracked("a" * 32, params=params, inputs={"images": "1", "network": "2"})
    second = tracked(
        "b" * 32,
        params={"study.bits": "[3]", "study.seed": "0", "network.sha256": "9"},
        tags=first.tags | {"laq.commit": "def"},
        inputs={"images": "1", "network": "3"},
    )
    assert set(Comparison(first, second).differences()) == {
        ("study.bits", "[2, 3]", "[3]"), ("network.sha256", "", "9"), ("commit", "abc", "def"),
    }  # fmt: skip
    table = match(rows(row("a", "3", 1.0)), rows(row("a", "3", 1.0)))
    text = text_of(table, Comparison(first, second))
    assert "| study.bits | [2, 3] | [3] |" in text
    assert "By DVC's hashes, the studies used different files for network." in text
    same = text_of(table, Comparison(first, first))
    assert "Both studies have the same parameters and the same commit." in same
    assert "DVC's hashes" not in same


def test_the_chart_shows_both_studies_and_the_networks_in_float() -> None:
    cells = [
        row(classes, bits, 50.0, method, variant)
        for classes in ("a, b", "a, c")
        for bits in ("2", "10", "auto:3")
        for method in ("rtn", "gpfq")
        for variant in ("quantized", "finetuned_quantized")
    ]
    floats = [row("a, b", "32", top1, "float", variant) for variant, top1 in FLOAT.items()]
    first, second = rows(*cells, *floats), rows(*cells[:4], *floats)
    made = chart(match(first, second), COMPARISON).to_dict()
    (shown,) = (pd.DataFrame(values) for values in made["datasets"].values())
    assert shown.study.value_counts().to_dict() == {"first: aaaaaaaa": 26, "second: bbbbbbbb": 6}
    assert list(shown.sort_values("bits_place").bits.dropna().unique()) == ["2", "10", "auto:3", "32"]
    assert set(shown.network) == {"original network", "fine-tuned on the subset first"}
    assert set(shown[shown.method == "float"].percent) == set(FLOAT.values())


def cell(key: str, place: tuple[str, str]) -> RunSpec:
    """A run below a study."""
    classes, bits = place
    return RunSpec(f"{key}-{classes}-{bits}", f"{classes}, {bits} bits", key, tags={"laq.level": "cell"})


def measured(cells: Mapping[tuple[str, str], float], folder: Path) -> list[tuple[Path, str]]:
    """The tables of a study of ``cells``: both networks as they are, and both quantized."""
    drawn, rows = {place[0] for place in cells}, []
    assert len(drawn) == 1, "the fixture has one subset"
    (names,) = (classes.split(", ") for classes in drawn)
    subset = Subset("random-1", "random", (0, 1), tuple(names), 1.0, 1.0, 1.0, 1.0)
    for variant, score in FLOAT.items():
        rows.append(measured_row(subset, (variant, "float", "32", "none", None), score))
    for (_, bits), top1 in cells.items():
        for variant, score in (("quantized", top1), ("finetuned_quantized", top1 + 1)):
            rows.append(measured_row(subset, (variant, "gpfq", bits, "subset", 0), score))
    table = pd.DataFrame(rows).astype({"levels": "Int64", "seed": "Int64"}).assign(size_bytes=2048.0)
    table.to_csv(folder / "measurements.csv", index=False)
    write_json(folder / "subsets.json", [vars(subset)])
    return [(folder / name, "tables") for name in ("measurements.csv", "subsets.json")]


def study(key: str, cells: Mapping[tuple[str, str], float], folder: Path, **tags: str) -> ResultRuns:
    """The runs of a study of ``cells``: restricted top-1 by classes and bits; "edited" tells another seed."""
    (folder / key).mkdir()
    root = RunSpec(
        key=key,
        name=f"study {key}",
        params={
            "study.bits": str(sorted({bits for _, bits in cells})),
            "dataset.seed": "1" if key == "edited" else "0",
        },
        tags={
            "laq.level": "study", "laq.network": "resnet20", "laq.dataset": "glyphs",
            **{f"laq.{name}": value for name, value in tags.items()},
        },
        inputs=[Input("glyphs", "0" * 32, "data/dataset", "images")],
        files=measured(cells, folder / key),
        documents={RECORDS_FILE: {"dataset": asdict(RECORDS["dataset"])}},
    )  # fmt: skip
    return ResultRuns("laq-glyphs", [root, *(cell(key, place) for place in cells)])


RECORDS = {
    "dataset": StageRecord(
        {"dataset": {"name": "glyphs", "seed": 0}},
        {"data/dataset": "0" * 32},
        {"numpy": "2.1", "torch": "2.7"},
    ),
    "study": StageRecord(
        {"study": {"bits": [3], "tune": None, "also": [{"seeds": [1], "bits": None}]}}, {}, {"numpy": "2.1"}
    ),
}
TRUE: dict[str, Any] = {
    "params": {"dataset.seed": "0", "study.bits": "[3]", "study.also": "[{'seeds': [1]}]"},
    "inputs": {"images": "0" * 32},
}


def test_a_run_that_tells_what_its_results_were_made_with_is_compared() -> None:
    check(tracked("a" * 32, **TRUE), RECORDS)
    check(tracked("a" * 32, **TRUE), {})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"params": {"dataset.seed": "1"}}, "dataset.seed is 1, and its results were made with 0;"),
        ({"params": {"study.bits": "[2]"}}, "study.bits is [2], and its results were made with [3];"),
        ({"inputs": {"images": "1" * 32}}, f"its images have the hash {'1' * 32}, and its results were made from {'0' * 32};"),
    ],
)  # fmt: skip
def test_a_run_whose_results_were_made_otherwise_is_refused(changes: dict[str, Any], told: str) -> None:
    study = tracked("a" * 32, **{name: {**TRUE[name], **changes.get(name, {})} for name in TRUE})
    with pytest.raises(LaqError, match=re.escape(f"study aaaaaaaa: its run says that {told} delete the run")):
        check(study, RECORDS)


def test_what_a_reader_must_know_is_told_first() -> None:
    one = rows(row("a, b", "3", 80.0))
    dirty = {"laq.dirty": "True", "laq.uncommitted": "params.yaml"}
    pair = Comparison(tracked("a" * 32, tags=COMPARISON.first.tags | dirty), tracked("b" * 32))
    newer = {**RECORDS, "study": replace(RECORDS["study"], versions={"numpy": "2.2"})}
    same, other = match(one, one), match(one, rows(row("a, b", "3", 81.0)))
    assert list(cautions(COMPARISON, other, RECORDS, RECORDS)) == []
    assert list(cautions(pair, same, RECORDS, newer)) == [
        "The first was made with uncommitted changes of params.yaml: no commit makes it again.",
        "The studies were made with other versions of packages: numpy 2.1 and 2.2.",
        "All cells have the same accuracy in both: what differs between the studies changes none.",
    ]
    assert list(cautions(COMPARISON, other, RECORDS, {})) == [
        "The second has no record of what made its results, so that its parameters are unproven."
    ]
    text = markdown(pair, same, ["Mind this.", "And that."])
    assert "\n\n- Mind this.\n- And that.\n\n" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A project whose store holds three studies, the last on other data; and the ids of all runs by key."""
    place = tmp_path_factory.mktemp("compare")
    write_params(place, tiny_params())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        store = Store()
        runs = deliver(store, study("other", {("a, b", "3"): 9.0}, place, dataset="cifar100")).ids
        runs |= deliver(store, study("edited", {("a, b", "3"): 70.0}, place)).ids
        runs |= deliver(store, study("old", {("a, b", "3"): 70.0, ("a, b", "8"): 80.0}, place)).ids
        new = study("new", {("b, a", "3"): 72.5, ("b, a", "2"): 60.0}, place, dvc_experiment="narrow")
        runs |= deliver(store, new).ids
        yield place, runs


@pytest.fixture
def archive(folder: tuple[Path, dict[str, str]]) -> TrackedStudies:
    return TrackedStudies(Store(), "laq-glyphs")


def compare(*options: str) -> Result:
    return CliRunner().invoke(main, ["compare", *options])


def test_a_study_is_found_by_age_id_prefix_key_and_experiment(
    folder: tuple[Path, dict[str, str]], archive: TrackedStudies
) -> None:
    runs = folder[1]
    names = {"latest": "new", "previous": "old", "narrow": "new", runs["old"]: "old", runs["new"][:12]: "new"}
    for name, key in names.items():
        assert archive.find(name).run == runs[key], name
    assert archive.find("latest").label == "narrow"
    named = tracked("f" * 32, tags={"laq.key": "0123abcd" * 8})
    archive.studies.append(named)
    assert archive.find("0123abcd0123") == named
    assert archive.find("previous").label == runs["old"][:8]


def test_what_is_no_study_is_told_in_a_line(
    folder: tuple[Path, dict[str, str]], archive: TrackedStudies
) -> None:
    runs = folder[1]
    of_a_cell = runs["old-a, b-3"]
    for name, told in {
        "nobody": f"study 'nobody' is unknown; known in experiment laq-glyphs at {archive.store}: latest,",
        "": "study '' is unknown",
        runs["old"][:3]: "is unknown",
        of_a_cell: f"run {of_a_cell} (a, b, 3 bits) is not a study but a cell run; known studies:",
        of_a_cell[:20]: f"run {of_a_cell}",
    }.items():
        with pytest.raises(LaqError) as caught:
            archive.find(name)
        assert told in str(caught.value)
        assert f"{runs['new'][:8]} (narrow), {runs['old'][:8]}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_of_several_and_studies_elsewhere_or_unfinished_are_refused(
    folder: tuple[Path, dict[str, str]], archive: TrackedStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = [tracked("abcd" + digit * 28) for digit in "12"]
    monkeypatch.setattr(archive, "studies", twins)
    with pytest.raises(LaqError, match="'abcd' may be any of abcd1111, abcd2222; give more"):
        archive.find("abcd")
    assert archive.find("abcd1") == twins[0]
    monkeypatch.setattr(archive, "studies", twins[:1])
    with pytest.raises(LaqError, match="no study is the previous one: .* has only abcd1111; `dvc exp run`"):
        archive.find("previous")
    with pytest.raises(LaqError, match=r"\(study old\) is a study that is not sent whole; `laq track`"):
        archive.find(folder[1]["old"])
    with pytest.raises(LaqError, match="a study of experiment laq-glyphs; asked for is laq-elsewhere"):
        TrackedStudies(archive.store, "laq-elsewhere").find(folder[1]["old"])
    with pytest.raises(LaqError, match="no study is the latest one: .* has no study"):
        TrackedStudies(archive.store, "laq-elsewhere").find("latest")


def test_cells_are_read_with_classes_in_order_and_floats_once(
    folder: tuple[Path, dict[str, str]], archive: TrackedStudies
) -> None:
    found = archive.cells(archive.find("previous"))
    assert len(found) == 2 + 2 * 2  # both networks as they are, and both at 3 and 8 bits
    assert found[found.method == "float"].top1_sub_percent.tolist() == list(FLOAT.values())
    assert set(archive.cells(archive.find("latest")).classes) == {"a, b"}
    with pytest.raises(LaqError, match="its run has no tables/measurements.csv; delete the run, then run"):
        archive.cells(tracked(folder[1]["old-a, b-3"]))


def test_the_command_writes_and_prints_the_comparison(folder: tuple[Path, dict[str, str]]) -> None:
    place, runs = folder
    done = compare()
    assert done.exit_code == 0, done.output
    squeezed = re.sub(" +", " ", done.stdout)
    assert "| study.bits | ['3', '8'] | ['2', '3'] |" in squeezed
    assert "| original | GPFQ | 3 | 1 | 70.00 | 72.50 | +2.50 | 2.0 | 2.0 |" in squeezed
    assert "| finetuned | float | 32 | 1 | 92.00 | 92.00 | +0.00 | 2.0 | 2.0 |" in squeezed
    assert "4 cells occur in one study only: bits 8 in the first (2); bits 2 in the second (2)." in squeezed
    made = place / "data/compare"
    assert {path.name for path in made.iterdir()} == {"compare.md", "compare.csv", "compare.png"}
    assert (made / "compare.md").read_text(encoding="utf-8") == done.stdout
    assert pd.read_csv(made / "compare.csv").found.value_counts().to_dict() == {
        "both": 4, "first": 2, "second": 2,
    }  # fmt: skip
    turned = compare("--first", "narrow", "--second", runs["old"])
    assert "| 72.50 | 70.00 | -2.50 |" in re.sub(" +", " ", turned.stdout)


def test_what_is_not_to_be_compared_is_told_and_leaves_the_files_alone(
    folder: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # as the program does
    place, runs = folder
    before = compare().stdout
    for first, told in {
        runs[
            "other"
        ]: f"--first, --second: {runs['other'][:8]} is a study on cifar100 and narrow one on glyphs;",
        "latest": f"--first, --second: both name the study {runs['new']}",
        "nobody": "study 'nobody' is unknown",
        runs[
            "edited"
        ]: f"study {runs['edited'][:8]}: its run says that dataset.seed is 1, and its results were",
    }.items():
        done = compare("--first", first)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert done.stderr.startswith(f"laq: {told}")
        assert (place / "data/compare/compare.md").read_text(encoding="utf-8") == before


def test_the_run_that_mlflow_started_gets_files_note_and_tags(
    folder: tuple[Path, dict[str, str]], archive: TrackedStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = archive.store.client
    own = client.create_run(client.create_experiment("launched", folder[0].as_uri())).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    done = compare()
    tags = client.get_run(own).data.tags
    assert {file.path for file in client.list_artifacts(own)} == {"compare.md", "compare.csv", "compare.png"}
    assert tags["mlflow.note.content"] == done.stdout
    assert (tags["laq.first"], tags["laq.second"]) == (folder[1]["old"], folder[1]["new"])


def test_a_note_too_long_ends_with_a_whole_line() -> None:
    note = "\n".join(["a line of a table"] * 1000)
    short = shortened(note)
    assert len(short) <= 8000
    assert short.endswith("a line of a table\n\nThe rest is in the artifacts.")
    assert shortened("short") == "short"
