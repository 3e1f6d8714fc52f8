"""The plan of a study: every cell once, with a name, a recipe and its bits."""

from typing import Any

import pytest

from laq.errors import LaqError
from laq.params import Study, load_params
from laq.study import plan
from laq.subsets import Subset
from tests.conftest import ROOT

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
