"""A study: every cell planned once, with a name, a recipe and its bits, and a table of what came out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from laq import dataset, finetune, network, subsets
from laq import study as room
from laq.errors import LaqError
from laq.files import write_json
from laq.params import Params, Study, load_params
from laq.quantization import choose_bits
from laq.study import plan, read_measurements
from laq.subsets import Subset
from tests.conftest import ROOT, tiny_params, write_params

SUBSET = Subset("random-1", "random", (1, 2), ("a", "b"), 2.0, 1.0, 1.5, 1.5)


def study(**changes: Any) -> Study:
    return load_params(ROOT / "params.yaml").study.model_copy(update=changes)


def test_a_plan_has_both_networks_as_they_are_and_by_bits_and_method() -> None:
    cells = plan([SUBSET], study(bits=(3, "auto:2.5"), methods=("rtn", "qronos")))
    assert [cell.name for cell in cells][:5] == [
        "random-1.original.float",
        "random-1.quantized.rtn-3bit",
        "random-1.quantized.qronos-3bit",
        "random-1.quantized.rtn-auto_2.5",
        "random-1.quantized.qronos-auto_2.5",
    ]
    assert len({cell.name for cell in cells}) == len(cells) == 10


def test_recipes_are_what_the_parameters_say() -> None:
    options = {
        "granularity": "layer",
        "threshold": 0.3,
        "fuse": True,
        "bias_correction": True,
        "batch_size": 7,
    }
    cell = plan([SUBSET], study(bits=(3,), methods=("gpfq_l0",), alphabet="midrise", **options))[1]
    assert cell.recipe is not None
    assert {name: getattr(cell.recipe, name) for name in options} == options
    assert (cell.recipe.bits, cell.recipe.method, cell.recipe.alphabet) == (3, "gpfq_l0", "midrise")


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (("asc:2",), "study.bits: bits: 1 is not within 2..24"),
        (("4 first:30",), "study.bits: bits: 30 is not within 2..24"),
        (("a.b=3 *=4", "a_b=3 *=4", "a.b=3 *=4 "), "study.bits: some of"),
    ],
)
def test_bits_out_of_range_or_with_one_name_are_told_before_any_work(
    bits: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LaqError) as caught:
        plan([SUBSET], study(bits=bits))
    assert str(caught.value).startswith(message)


def ready_for_a_study(folder: Path) -> Params:
    """Everything before the stage, as small as it goes: a network trained on nothing, two subsets."""
    params = tiny_params()
    params["glyphs"]["network"]["training"]["epochs"] = params["glyphs"]["finetune"]["epochs"] = 0
    params["glyphs"]["study"] |= {"bits": [3, "auto:3", "4 last:8"], "methods": ["rtn"]}
    write_params(folder, params)
    read = load_params()
    dataset.run(read.dataset)
    network.run(read.network)
    other = Subset("random-2", "random", (7, 50), ("c", "d"), 2.0, 1.0, 1.5, 1.5)
    write_json(subsets.FILE, [asdict(SUBSET), asdict(other)])
    finetune.run(read.finetune)
    return read


def test_the_table_says_what_was_asked_for_and_what_it_came_to(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, asked = ready_for_a_study(project), []

    def choose(*given: Any) -> dict[str, int]:
        asked.append((given[2], given[4]))
        return choose_bits(*given)

    monkeypatch.setattr("laq.study.cells.choose_bits", choose)
    room.run(params.study)
    table = read_measurements().set_index("cell")
    assert len(table) == 2 * 2 * (1 + 3)
    assert set(table.bits) == {"32", "3", "auto:3", "4 last:8"}
    assert table.loc["random-1.original.float", "mean_bits"] == 32
    assert table.loc["random-1.quantized.rtn-3bit", ["mean_bits", "levels"]].tolist() == [3, 7]
    assert table.loc["random-1.quantized.rtn-auto_3", "mean_bits"] <= 3
    mixed = table.loc["random-1.quantized.rtn-4_last_8"]
    assert 4 < mixed.mean_bits < 8
    assert pd.isna(mixed.levels)
    layers = pd.read_csv(room.FOLDER / room.LAYERS).set_index("cell")
    assert layers.loc["random-1.quantized.rtn-4_last_8", "bits"].tolist() == [4] * 21 + [8]
    # Each subset's own classes and images; once, as the fine-tuned networks are the same, untrained.
    assert len(asked) == 4
    auto = asked[0], asked[2]
    assert [classes for _, classes in auto] == [[1, 2], [7, 50]]
    assert not auto[0][0].equal(auto[1][0])
    room.run(params.study)
    assert len(asked) == 4
