"""A study: every cell planned once, with a name, a recipe and its bits, and a table of what came out."""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from torch import Tensor, nn

from laq import dataset, finetune, network
from laq import study as room
from laq.dataset.layout import Manifest
from laq.errors import LaqError
from laq.files import read_json, write_json
from laq.parallel import Workers
from laq.params import Params, load_params
from laq.paths import NETWORK, SUBSETS, WEIGHTS
from laq.pictures import Preprocessing
from laq.quantization import QuantizedNetwork, Recipe, choose_activations, choose_bits_each, quantize_each
from laq.quantization.tuning.settings import Tuning
from laq.sections.study import Further, Study
from laq.study import plan, read_measurements
from laq.study.cells import Cell
from laq.study.measure import cost, groups_of
from laq.study.progress import StudyProgress
from laq.study.results import ALWAYS
from laq.subsets.subset import Subset, read_subsets
from tests.conftest import ROOT, tiny_params, write_params

SUBSET = Subset("random-1", "random", (1, 2), ("a", "b"), 2.0, 1.0, 1.5, 1.5)
OTHER = Subset("random-2", "random", (7, 50), ("c", "d"), 2.0, 1.0, 1.5, 1.5)


def study(**changes: Any) -> Study:
    return load_params(ROOT / "params.yaml").study.model_copy(update=changes)


def test_a_plan_has_both_networks_as_they_are_and_by_bits_and_method() -> None:
    cells = plan([SUBSET], study(bits=(3, "auto:2.5"), methods=("rtn", "qronos")))
    assert [cell.name for cell in cells][:5] == [
        "random-1.original.float",
        "random-1.quantized.rtn-3bit",
        "random-1.quantized.qronos-3bit.subset-0",
        "random-1.quantized.rtn-auto_2.5.subset-0",
        "random-1.quantized.qronos-auto_2.5.subset-0",
    ]
    assert len({cell.name for cell in cells}) == len(cells) == 10


def test_methods_that_learn_from_images_are_planned_for_each_calibration_and_seed() -> None:
    many = study(bits=(3,), calibrations=("subset", "all"), seeds=(0, 7))
    cells = {cell.name.removeprefix("random-1."): cell for cell in plan([SUBSET], many)}
    calibrated = [f"gpfq-3bit.{images}-{seed}" for images in ("subset", "all") for seed in (0, 7)]
    assert list(cells)[:6] == ["original.float", *(f"quantized.{c}" for c in ["rtn-3bit", *calibrated])]
    assert [cells[f"quantized.{c}"].seed for c in calibrated] == [0, 7, 0, 7]
    # Unless rounding learns too: a radius, or the ranges of activations.
    for learned in ({"radius": "error"}, {"activations": 8}):
        cells_of_both = [cell.name for cell in plan([SUBSET], many.model_copy(update=learned))]
        assert "random-1.quantized.rtn-3bit.all-7" in cells_of_both


def test_further_grids_add_cells_and_repeat_none() -> None:
    also = (Further(seeds=(0, 1), bases=("original",)), Further(bits=("auto:3",), methods=("gpfq",)))
    few, many = plan([SUBSET], study(bits=(3,))), plan([SUBSET], study(bits=(3,), also=also))
    assert {cell.name for cell in many} - {cell.name for cell in few} == {
        "random-1.quantized.gpfq-3bit.subset-1",
        "random-1.quantized.gpfq-auto_3.subset-0",
        "random-1.finetuned_quantized.gpfq-auto_3.subset-0",
    }
    assert len({cell.name for cell in many}) == len(many) == len(few) + 3


def test_networks_that_are_for_no_subset_are_made_once_for_all() -> None:
    cells = plan([SUBSET, OTHER], study(bits=(2, 3), calibrations=("subset", "all"), seeds=(0, 1)))
    groups = groups_of(cells)
    assert sorted(cell.name for group in groups for cell in group.cells) == sorted(
        cell.name for cell in cells
    )
    shared = [group for group in groups if len({cell.subset for cell in group.cells}) > 1]
    assert [group.classes for group in shared] == [[1, 2, 7, 50]] * 4
    # As it is, rounded, and calibrated on all classes with two seeds; each bit-width for both subsets.
    assert [len(group.networks) for group in shared] == [1, 2, 2, 2]
    assert all(len(cells) == 2 for group in shared for cells in group.networks)
    # Per subset: two seeds of the original; the fine-tuned as it is, rounded, and 2 calibrations x 2 seeds.
    assert len(groups) - len(shared) == 2 * (2 + 1 + 1 + 4)


def test_recipes_are_what_the_parameters_say() -> None:
    options = {
        "granularity": "layer",
        "fuse": True,
        "bias_correction": True,
        "batch_size": 7,
    }
    own = {"gpfq_l0": {"threshold": 0.3}, "gpfq_l1": {"threshold": 0.2}}
    cell = plan([SUBSET], study(bits=(3,), methods=("gpfq_l0",), alphabet="midrise", options=own, **options))[
        1
    ]
    assert cell.recipe is not None
    assert {name: getattr(cell.recipe, name) for name in options} == options
    assert (cell.recipe.bits, cell.recipe.method, cell.recipe.alphabet) == (3, "gpfq_l0", "midrise")
    assert cell.recipe.options == {"threshold": 0.3}


def test_a_tuned_network_is_made_for_a_subset_or_for_all_and_learns_from_images() -> None:
    tuning = Tuning(steps=7)
    for name, networks in (("rtn-tuned", 2), ("rtn-tuned-all", 1)):
        cells = plan([SUBSET, OTHER], study(bits=(2,), methods=(name,), calibrations=("all",), tune=tuning))
        quantized = [cell for cell in cells if cell.variant == "quantized"]
        assert [cell.name.partition(".")[2] for cell in quantized] == [f"quantized.{name}-2bit.all-0"] * 2
        groups = groups_of(quantized)
        assert sum(len(group.networks) for group in groups) == len(groups) == networks
        found = {cell.recipe.tune for cell in quantized if cell.recipe}
        assert found == (
            {replace(tuning, classes=one.classes) for one in (SUBSET, OTHER)}
            if name == "rtn-tuned"
            else {replace(tuning, loss="all")}
        )


def test_networks_that_are_tuned_stand_beside_those_that_are_not(project: Path) -> None:
    params = ready_for_a_study(project)
    names = ("rtn", "rtn-tuned-all", "rtn-tuned")
    plain = {"bits": (2,), "methods": names, "bases": ("original",)}
    room.run(params.study.model_copy(update={**plain, "tune": Tuning(steps=3, batch_size=4)}))
    table = read_measurements()
    assert set(table.method) == {"float", *names}
    tuned = table[table.method.str.startswith("rtn-tuned")]
    assert set(tuned.tuned) <= {0, 1}
    assert (tuned.held_back_before_nats > 0).all()
    assert (tuned.held_back_after_nats >= 0).all()
    assert tuned.codes_moved_percent.between(0, 100).all()
    assert (tuned.tuning_passes > 0).all()
    assert table[table.method.isin(["float", "rtn"])].tuned.isna().all()
    room.run(params.study.model_copy(update=plain | {"methods": ("rtn",)}))
    assert not {"tuned", "relative_error_held_back"} & set(read_measurements())


def ready_for_a_study(folder: Path) -> Params:
    """Everything before the stage, as small as it goes: a network trained on nothing, two subsets."""
    params = tiny_params()
    params["glyphs"]["network"]["training"]["epochs"] = params["glyphs"]["finetune"]["epochs"] = 0
    params["glyphs"]["study"] |= {"bits": [3, "auto:3", "4 last:8"], "methods": ["rtn"]}
    params["glyphs"]["report"]["primary"]["method"] = "rtn"
    write_params(folder, params)
    read = load_params()
    dataset.run(read.dataset)
    network.run(read.network)
    write_json(SUBSETS, [asdict(SUBSET), asdict(OTHER)])
    finetune.run(read.finetune, Workers(), wanted=read.study.fine_tunes)
    return read


def test_activations_may_have_bits_by_point(project: Path) -> None:
    params = ready_for_a_study(project)
    write_json(SUBSETS, [asdict(SUBSET)])
    asked = {"bits": (3,), "methods": ("rtn",), "bases": ("original",)}
    room.run(params.study.model_copy(update={**asked, "activations": {"*": 8}}))
    assert list(read_measurements().method) == ["float", "rtn"]
    with pytest.raises(LaqError, match="activations: 'nothing' matches no point"):
        room.run(params.study.model_copy(update={**asked, "activations": {"nothing": 8}}))


def test_activations_may_have_a_budget_beside_that_of_weights(project: Path) -> None:
    params = ready_for_a_study(project)
    asked = {
        "bits": (3, "auto:3"),
        "methods": ("rtn", "gpfq"),
        "bases": ("original",),
        "activations": "auto:4.5",
    }
    cells = [cell for cell in plan([SUBSET, OTHER], params.study.model_copy(update=asked)) if cell.recipe]
    assert len({group.cells[0].subset for group in groups_of(cells)}) == 2
    chosen, recipes = list[Any](), list[Recipe]()

    def noted(*given: Any) -> dict[str, int]:
        chosen.append(choose_activations(*given))
        return chosen[-1]

    def quantized(network: nn.Module, images: Any, asked: list[Recipe], **kwargs: Any) -> Any:
        recipes.extend(asked)
        return quantize_each(network, images, asked, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laq.study.measure.choose_activations", noted)
        patch.setattr("laq.study.measure.quantize_each", quantized)
        room.run(params.study.model_copy(update=asked))
    assert len(chosen) == 2
    assert [recipe.activations for recipe in recipes] == [chosen[0]] * 4 + [chosen[1]] * 4
    assert {type(recipe.bits) for recipe in recipes} == {int, dict}
    assert dict(read_measurements().method.value_counts()) == {"float": 2, "rtn": 4, "gpfq": 4}


def test_bits_by_points_in_another_order_are_measured_anew() -> None:
    known = {"code": "", "dataset": {}, "design": {}, "_hashes": {NETWORK / WEIGHTS: ""}}
    folders = set()
    for order in (["a.*", "*"], ["*", "a.*"]):
        asked = study(
            activations={pattern: 4 if pattern == "*" else 8 for pattern in order}, methods=("rtn",)
        )
        cell = next(cell for cell in plan([SUBSET], asked) if cell.recipe)
        folders.add(room.StudyInputs(asked, **known).folder(cell))
    assert len(folders) == 2


def test_nothing_is_fine_tuned_that_no_cell_asks_for(project: Path) -> None:
    params = ready_for_a_study(project)
    tuned = [f"{s.name}.safetensors" for s in (SUBSET, OTHER)]
    original = params.study.model_copy(update={"bases": ("original",)})
    further = original.model_copy(update={"also": (Further(bases=("finetuned",)),)})
    for study, expected in ((original, []), (further, tuned), (params.study, tuned)):
        finetune.run(params.finetune, Workers(), wanted=study.fine_tunes)
        assert sorted(file.name for file in finetune.FOLDER.iterdir()) == sorted(expected)


def test_the_table_says_what_was_asked_for_and_what_it_came_to(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, asked = ready_for_a_study(project), []

    def choose(*given: Any) -> tuple[dict[str, int], ...]:
        asked.append((given[2], given[4]))
        return choose_bits_each(*given)

    monkeypatch.setattr("laq.study.measure.choose_bits_each", choose)
    room.run(params.study)
    table = read_measurements().set_index("cell")
    assert len(table) == 2 * 2 * (1 + 3)
    assert set(table.bits) == {"32", "3", "auto:3", "4 last:8"}
    # Texts in rows that no file has gone through, too: whoever groups by them must not average them.
    cells = plan(read_subsets(), params.study)
    rows = [room.measurement_row(cell, room.StudyInputs(params.study).folder(cell)) for cell in cells]
    assert {row["bits"] for row in rows} == set(table.bits)
    assert table.loc["random-1.original.float", "mean_bits"] == 32
    assert table.loc["random-1.quantized.rtn-3bit", ["mean_bits", "levels"]].tolist() == [3, 7]
    assert table.loc["random-1.quantized.rtn-auto_3.subset-0", "mean_bits"] <= 3
    mixed = table.loc["random-1.quantized.rtn-4_last_8"]
    assert 4 < mixed.mean_bits < 8
    assert pd.isna(mixed.levels)
    layers = pd.read_csv(room.FOLDER / room.LAYERS).set_index("cell")
    assert layers.loc["random-1.quantized.rtn-4_last_8", "bits"].tolist() == [4] * 9 + [8]
    # Each subset's own classes and images, whichever network.
    auto = {tuple(classes): images for images, classes in asked}
    assert {(1, 2), (7, 50)} <= auto.keys()
    assert not auto[1, 2].equal(auto[7, 50])
    before, measured = len(asked), (room.FOLDER / room.MEASUREMENTS).read_bytes()
    # What was measured is read again, unless somebody has changed it.
    made = {p: read_json(p.with_name("inputs.json")) for p in Path(".laq/cells").glob("*/measurement.json")}
    one = next(path for path, inputs in made.items() if inputs["recipe"] is None)
    one.write_text(one.read_text(encoding="utf-8").replace('percent": ', 'percent": 9'), encoding="utf-8")
    room.run(params.study)
    assert len(asked) == before
    assert (room.FOLDER / room.MEASUREMENTS).read_bytes() == measured


def test_the_table_is_the_same_whoever_does_the_work_and_in_a_smaller_study(
    project: Path, cluster: str
) -> None:
    params = ready_for_a_study(project).study.model_copy(
        update={"bits": (2, 3), "methods": ("rtn", "gpfq"), "calibrations": ("subset", "all")}
    )
    tables = []
    for workers in (Workers(), Workers(jobs=2), Workers(scheduler=cluster)):
        shutil.rmtree(project / ".laq")
        room.run(params, workers)
        tables.append((room.FOLDER / room.MEASUREMENTS).read_bytes())
    assert tables[0] == tables[1] == tables[2]
    large = read_measurements().set_index("cell")
    shutil.rmtree(project / ".laq")
    write_json(SUBSETS, [asdict(OTHER)])
    room.run(params.model_copy(update={"bits": (3,)}))
    small = read_measurements().set_index("cell")
    assert len(small) == 2 + 2 * 3
    pd.testing.assert_frame_equal(small, large.loc[small.index])


def test_a_cell_that_raises_is_told_and_tried_again_while_the_others_are_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = ready_for_a_study(project).study.model_copy(update={"bits": (2, 3), "methods": ("rtn", "gpfq")})
    calls = []

    def failing(
        network: nn.Module, images: Tensor, recipes: Sequence[Recipe], device: str
    ) -> tuple[QuantizedNetwork, ...]:
        calls.append(recipes)
        if any((recipe.bits, recipe.method) == (2, "gpfq") for recipe in recipes):
            raise RuntimeError("no memory")
        return quantize_each(network, images, recipes, device=device)

    monkeypatch.setattr("laq.study.measure.quantize_each", failing)
    with pytest.raises(LaqError) as caught:
        room.run(params)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("4 of 20 cells failed twice; the others are kept")
    assert sorted(lines[1:]) == [
        f"random-{number}.{variant}.gpfq-2bit.subset-0: RuntimeError: no memory"
        for number in (1, 2)
        for variant in ("finetuned_quantized", "quantized")
    ]
    assert not room.FOLDER.exists()
    bar = capsys.readouterr().err
    assert ", 0/20 cells]" in bar
    assert ", 16/20 cells" in bar
    calls.clear()
    with pytest.raises(LaqError):
        room.run(params)
    assert {(recipe.bits, recipe.method) for recipes in calls for recipe in recipes} == {(2, "gpfq")}
    monkeypatch.undo()
    monkeypatch.chdir(project)
    capsys.readouterr()
    room.run(params)
    assert len(read_measurements()) == 20
    bar = capsys.readouterr().err
    assert ", 16/20 cells" in bar
    assert "100%|##########|" in bar
    assert ", 20/20 cells]" in bar


def test_the_bar_knows_that_choosing_bits_takes_longest_and_shared_networks_serve_many(project: Path) -> None:
    params = ready_for_a_study(project).study.model_copy(update={"radius": "error"})
    params = params.model_copy(update={"methods": ("gpfq",), "calibrations": ("subset", "all")})
    inputs = room.StudyInputs(params)
    alone, both = (
        {group.cells[0].name: cost(group, inputs) for group in groups_of(plan(subsets, params))}
        for subsets in ([SUBSET], [SUBSET, OTHER])
    )
    assert max(alone, key=alone.__getitem__) == "random-1.quantized.gpfq-auto_3.subset-0"
    shared = "random-1.quantized.gpfq-3bit.all-0"
    assert alone[shared] < both[shared] < 2 * alone[shared]


def test_what_is_not_quantized_is_in_the_table_and_nothing_where_all_is(project: Path) -> None:
    params = ready_for_a_study(project).study.model_copy(update={"bits": (3,), "methods": ("rtn",)})
    write_json(SUBSETS, [asdict(OTHER)])
    room.run(params)
    assert "not_quantized" not in read_measurements()
    room.run(params.model_copy(update={"ignore": ("body.fc",)}))
    table = read_measurements().set_index("variant").not_quantized
    assert table["quantized"].startswith("body.fc (")
    assert table["quantized"].endswith(" weights): ignore names it")
    assert table[["original", "finetuned"]].isna().all()


def test_a_study_on_a_gpu_is_refused_where_there_is_none_and_says_what_its_networks_were_made_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ready_for_a_study(project).study.model_copy(update={"bits": (3,), "methods": ("rtn",)})
    write_json(SUBSETS, [asdict(OTHER)])
    on_gpu = params.model_copy(update={"device": "cuda"})
    with pytest.raises(
        LaqError, match=r"^study\.device: found cuda, but torch sees no GPU here; set it to auto or cpu$"
    ):
        room.run(on_gpu)
    assert not room.FOLDER.exists()
    asked = []

    def by_gpu(*given: Any, device: str) -> list[QuantizedNetwork]:
        asked.append(device)
        return [replace(result, device="NVIDIA H100") for result in quantize_each(*given)]

    monkeypatch.setattr("laq.study.measure.quantize_each", by_gpu)
    monkeypatch.setattr("laq.study.measure.check_device", lambda device: None)
    room.run(on_gpu)
    table = read_measurements().set_index("variant").quantized_on
    assert set(asked) == {"cuda"}
    assert table["quantized"] == "NVIDIA H100"
    assert table[["original", "finetuned"]].isna().all()
    room.run(params)  # of other cells
    assert set(asked) == {"cpu", "cuda"}


@pytest.mark.parametrize(("images", "shown"), [([2, 2, 2], False), ([2, 3, 2], True)])
def test_balanced_accuracies_are_told_where_classes_have_different_numbers_of_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[int], shown: object
) -> None:
    manifest = Manifest("made up", Preprocessing(8), {"test": images}, {}, {})
    monkeypatch.setattr(room, "read_manifest", lambda _: manifest)
    monkeypatch.setattr(room, "read_design", lambda: SimpleNamespace(architecture="none"))
    always = dict.fromkeys(ALWAYS, 50.0)
    measured = always | {"top1_sub_percent": 80.0, "balanced_top1_sub_percent": 75.0}
    write_json(tmp_path / "measurement.json", measured)
    row = room.measurement_row(Cell(SUBSET, "original"), tmp_path)
    assert row["top1_sub_percent"] == 80
    assert ("balanced_top1_sub_percent" in row) is shown


def test_progress_counts_what_is_kept_and_tells_the_time_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = plan([SUBSET], study())[:4]
    folders = {cell: tmp_path / cell.name for cell in cells}
    folders[cells[0]].mkdir()
    with StudyProgress(folders, dict.fromkeys(cells, 100), Workers(jobs=2)) as bar:
        folders[cells[1]].mkdir()
        bar.look()
        bar.add((cells[1],), seconds=90, groups=2)
        bar.look()
        for cell in cells[2:]:
            folders[cell].mkdir()
    lines = [line.partition(", ")[2].rstrip("]") for line in capsys.readouterr().err.splitlines()]
    # 90 seconds for each of two cells, on two processes.
    told = ["1/4 cells", "2/4 cells", "2/4 cells, about 90 s left", "4/4 cells"]
    assert [line for line, _ in itertools.groupby(lines)] == told
