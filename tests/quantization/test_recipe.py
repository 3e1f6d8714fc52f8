"""A recipe: what it takes, what it refuses in one line, and what it makes of those in older files."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from laq import quantization
from laq.quantization import (
    METHODS,
    AlphabetSpec,
    QuantizationError,
    Recipe,
    load_quantized,
    parse_bits,
    read_metadata,
)
from laq.quantization.bits.spec import Budget, Precision

NUMBERS = ("radius", "percentile", "retain_rate", "memory_gib")
COUNTS = ("bits", "batch_size", "seed")
BOOLEANS = ("fuse", "bias_correction")
OLD_FILE = Path(__file__).parent / "recipe_with_threshold_and_form.safetensors"


def refused(**options: Any) -> str:
    with pytest.raises(QuantizationError) as caught:
        Recipe(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "maps", [{"bits": {"a": 3}}, {"activations": {"*": 8}}, {"options": {"form": "auto"}}]
)
def test_recipes_with_maps_can_be_keys(maps: dict[str, Any]) -> None:
    assert len({Recipe(**maps), Recipe(**maps), Recipe()}) == 2 - (Recipe(**maps) == Recipe())


def test_recipes_differ_where_the_first_pattern_that_matches_does() -> None:
    one, other = (Recipe(activations=dict(bits)) for bits in ([("a.*", 4), ("*", 8)], [("*", 8), ("a.*", 4)]))
    assert (one.activation_bits("a.b"), other.activation_bits("a.b")) == (4, 8)
    assert one != other
    assert len({one, other, Recipe.from_json(asdict(one))}) == 2
    assert Recipe(bits={"a": 3, "b": 4}) == Recipe(bits={"b": 4, "a": 3})  # these are names
    assert one != Recipe(activations=8)
    assert one != "a recipe"


@pytest.mark.parametrize("value", [True, False, float("nan"), float("inf"), -1, "1", None, [1], 1j])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_a_finite_number_and_no_boolean(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{name}: found {value!r}; must be ")
    assert "a number" in refused(**{name: value})


@pytest.mark.parametrize("value", [True, False, 2.0, float("nan"), -1, "2", None, [2], np.float64(2)])
@pytest.mark.parametrize("name", COUNTS)
def test_a_whole_number_is_no_float_and_no_boolean(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{name}: found {value!r}; must be a whole number ")


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0])
@pytest.mark.parametrize("name", BOOLEANS)
def test_a_boolean_is_no_number(name: str, value: Any) -> None:
    assert refused(**{name: value}) == f"{name}: found {value!r}; must be true or false"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**32}, "seed: found 4294967296; must be a whole number from 0 to 4294967295"),
        ({"ignore": "body.fc"}, "ignore: found 'body.fc'; must be patterns of layers' names"),
        ({"ignore": (1,)}, "ignore: found (1,); must be patterns"),
        ({"bits": {"head": 4.0}}, "bits: found {'head': 4.0}; must be a whole number from 2 to 24, or a map"),
        ({"bits": {1: 4}}, "bits: found {1: 4}; must be"),
        ({"alphabet": 3}, "alphabet: found 3; must be symmetric, twos_complement, midrise, predecessor"),
        ({"method": ["gpfq"]}, "method: found ['gpfq']; must be rtn, gpfq,"),
        ({"method": "gtpq"}, "method: found 'gtpq'; must be rtn, gpfq, sgpfq, gpfq_l0, gpfq_l1, gptq, qronos, adaround, brecq; did"),
        ({"method": "rtn", "options": {"form": "auto"}}, "options: found 'form', which rtn does not have: it has"),
        ({"options": {"from": "auto"}}, "options: found 'from', which gpfq does not have: it has form; did you me"),
        ({"options": {"form": "primal"}}, "options: gpfq: form: found 'primal'; must be auto, residual, covarian"),
        ({"options": [("form", "auto")]}, "options: gpfq: found [('form', 'auto')]; must be a map of option name"),
        ({"method": "gpfq_l1", "options": {"threshold": True}}, "options: gpfq_l1: threshold: found True; must b"),
        ({"method": "gpfq_l0", "options": {"threshold": float("nan")}}, "options: gpfq_l0: threshold: found nan;"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_told_with_what_is(options: dict[str, Any], message: str) -> None:
    assert refused(**options).startswith(message)


def test_numbers_of_numpy_are_taken_and_kept_as_pythons() -> None:
    numbers = {
        "bits": np.int64(3),
        "batch_size": np.int32(4),
        "seed": np.uint8(5),
        "percentile": np.float32(0.5),
    }
    of_numpy = Recipe(**numbers, radius=np.float64(0.75), retain_rate=np.int64(1), ignore=["a"])
    assert of_numpy == Recipe(bits=3, batch_size=4, seed=5, percentile=0.5, radius=0.75, ignore=("a",))
    kept = [getattr(of_numpy, name) for name in (*COUNTS, *NUMBERS)]
    assert [type(value) for value in kept] == [int] * 3 + [float] * 4
    assert Recipe(bits={"head": np.int64(3)}).bits == {"head": 3}
    assert AlphabetSpec(bits=np.int8(8)).codes == (-127, 127)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ternary"}, "alphabet: found 'ternary'; must be symmetric,"),
        ({"bits": 1}, "bits: found 1; must be a whole number from 2 to 24"),
        ({"bits": {"head": 3}}, "bits: found {'head': 3}; must be a whole number from 2 to 24"),
        ({"radius": "least"}, "radius: found 'least'; must be auto, mse, error, or a number above 0"),
        ({"percentile": 0}, "percentile: found 0; must be a number above 0, at most 1"),
    ],
)
def test_an_alphabet_refuses_what_a_recipe_does(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError) as caught:
        AlphabetSpec(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Precision(True),
        lambda: Precision(4, first=4.0),  # type: ignore[arg-type]
        lambda: Precision((8, 1)),
        lambda: Precision(4, choices=(2, 25)),
        lambda: Budget(mean=float("nan")),
        lambda: Budget(mean=0),
        lambda: Budget(size=1.5),  # type: ignore[arg-type]
        lambda: Budget(size=-1),
    ],
)
def test_bits_of_layers_and_budgets_are_numbers_that_can_be(wrong: Callable[[], object]) -> None:
    with pytest.raises(QuantizationError, match=r"^bits: .*found \S+; must be a (whole )?number "):
        wrong()


def test_bits_may_be_numpys() -> None:
    assert parse_bits(np.int64(3)) == Precision(3)


def test_every_public_name_is_there_and_needs_neither_mlflow_nor_dvc_nor_pandas() -> None:
    assert set(quantization.__all__) <= set(dir(quantization))
    code = (
        "import sys; from laq import quantization as q; [getattr(q, name) for name in q.__all__]; "
        "print({'mlflow', 'dvc', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        quantization.quantise  # noqa: B018


def test_recipes_are_compared_hashed_and_changed_with_their_options() -> None:
    plain, own = (Recipe(method="gpfq_l0", options=options) for options in ({}, {"threshold": 0.9}))
    assert len({plain, own, Recipe(method="gpfq_l0")}) == 2
    assert own.options == {"threshold": 0.9}
    assert METHODS["gpfq_l0"].settings(own.options) == {"threshold": 0.9, "form": "auto"}
    assert [replace(plain, method=method).method for method in METHODS] == list(METHODS)


def test_a_recipe_comes_back_from_json_and_those_of_before_get_options_of_their_methods() -> None:
    recipe = Recipe(method="gpfq_l1", bits={"a": 3}, ignore=("b",), options={"threshold": 0.5})
    assert Recipe.from_json(asdict(recipe)) == recipe
    before = {"bits": 3, "ignore": ["b"], "threshold": 0.5, "form": "residual"}
    kept = {
        method: Recipe.from_json({**before, "method": method}).options
        for method in ("rtn", "gpfq", "gpfq_l0")
    }
    assert kept == {
        "rtn": {},
        "gpfq": {"form": "residual"},
        "gpfq_l0": {"threshold": 0.5, "form": "residual"},
    }
    for content, message in (
        ({"bitz": 3}, "unknown option bitz; a later laq may know it"),
        ([3], "found .3.; must be the options of a recipe"),
        ({**before, "method": "awq"}, "method: found 'awq'; must be"),
    ):
        with pytest.raises(QuantizationError, match=message):
            Recipe.from_json(content)  # type: ignore[arg-type]


def test_a_file_whose_recipe_has_threshold_and_form_at_its_top_still_loads() -> None:
    recipe = read_metadata(OLD_FILE).recipe
    expected = Recipe(bits=3, method="gpfq_l0", alphabet="midrise")
    assert recipe == replace(expected, options={"threshold": 0.9, "form": "covariance"})
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = load_quantized(OLD_FILE, network).network(images)[0].detach()
    # What the network that was saved gave.
    torch.testing.assert_close(
        outputs, torch.tensor([-0.0447, -0.0261, -0.1195, 0.0258, 0.0700]), atol=1e-4, rtol=0
    )
