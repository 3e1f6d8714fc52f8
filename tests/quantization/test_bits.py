"""Bits per layer: what users write, slopes over depth, and the allocation that loses least."""

import copy
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from laq.quantization import QuantizationError, QuantizedNetwork, Recipe, quantize, quantize_each
from laq.quantization.bits.allocate import (
    allocate,
    choose_activations,
    choose_bits,
    choose_bits_each,
    code_bits,
    label_aware_bits,
)
from laq.quantization.bits.sensitivity import (
    Sensitivities,
    sensitivities,
    sensitivities_each,
    sensitivities_of_activations,
)
from laq.quantization.bits.spec import CHOICES, Budget, Precision, Slope, bits_per_layer, parse_bits
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.fusion import fold_batch_norms
from laq.quantization.execution.points import points_of, with_points

NAMES = ["stem", "layer1.0", "layer1.1", "layer2.0", "head"]
Losses = dict[str, dict[int, float]]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (4, Precision(4)),
        ("4", Precision(4)),
        ([8, 4, 3], Precision((8, 4, 3))),
        ({"head": 8, "*": 3}, Precision({"head": 8, "*": 3})),
        ("8,4,3", Precision((8, 4, 3))),
        ("head=8 layer*.0=4  *=3", Precision({"head": 8, "layer*.0": 4, "*": 3})),
        ("asc:4", Precision(Slope("asc", 4, 1))),
        ("desc:4:2", Precision(Slope("desc", 4, 2))),
        ("auto:3", Precision(Budget(mean=3.0))),
        ("auto:2.5 first:8", Precision(Budget(mean=2.5), first=8)),
        ("auto:96000B last:6", Precision(Budget(size=96000), last=6)),
        (" 3  first:8 last:8 ", Precision(3, 8, 8)),
    ],
    ids=str,
)
def test_what_users_write_is_understood(written: Any, meant: Precision) -> None:
    found = parse_bits(written)
    assert found == meant
    assert parse_bits(copy.deepcopy(written)) == found


@pytest.mark.parametrize(
    "written",
    [True, 4.0, None, "", "four", "4.5", "asc", "asc:3.5", "auto:", "auto:2.5B", "auto:3 last:8 first:8", "8, 4", "8,4 last:8", "head=x", "=3", "٤",
     [], [4, 4.0], [True], {}, {"*": "3"}, {3: 3}],
    ids=repr,
)  # fmt: skip
def test_what_is_not_understood_is_shown_beside_what_would_be(written: Any) -> None:
    with pytest.raises(QuantizationError) as caught:
        parse_bits(written)
    assert f"bits: found {written!r}" in str(caught.value)
    assert "asc:4" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "written", [1, 25, [4, 1], {"*": 0}, "asc:3:2", "desc:24", "3 first:1", "auto:3 last:32"]
)
def test_bits_out_of_range_are_named(written: Any) -> None:
    with pytest.raises(
        QuantizationError, match=r"^bits: found \d+; must be a whole number from 2 to 24$"
    ) as caught:
        parse_bits(written)
    assert str(caught.value).split()[2] in {"1;", "25;", "0;", "32;"}


def test_a_number_a_list_and_the_ends() -> None:
    assert bits_per_layer(parse_bits(4), NAMES) == dict.fromkeys(NAMES, 4)
    assert list(bits_per_layer(parse_bits([8, 4, 3, 2, 6]), NAMES).values()) == [8, 4, 3, 2, 6]
    assert list(bits_per_layer(parse_bits("3 first:8 last:6"), NAMES).values()) == [8, 3, 3, 3, 6]
    assert list(bits_per_layer(parse_bits("asc:4 last:8"), NAMES).values()) == [3, 3, 4, 5, 8]
    with pytest.raises(
        QuantizationError, match="2 given for 5 layers: stem, layer1.0, layer1.1, layer2.0, head"
    ):
        bits_per_layer(parse_bits([8, 4]), NAMES)


def test_the_first_pattern_that_matches_counts() -> None:
    bits = bits_per_layer(parse_bits({"layer1.1": 6, "layer*": 4, "*": 8}), NAMES)
    assert bits == {"stem": 8, "layer1.0": 4, "layer1.1": 6, "layer2.0": 4, "head": 8}
    assert list(bits) == NAMES
    with pytest.raises(QuantizationError, match="'Layer1' matches no layer; layers: stem"):
        bits_per_layer(parse_bits({"Layer1": 6, "*": 4}), NAMES)
    with pytest.raises(QuantizationError, match="no pattern matches layer head"):
        bits_per_layer(parse_bits({"layer*": 4, "stem": 8}), NAMES)


@pytest.mark.parametrize(("average", "spread"), [(4, 0), (4, 1), (4, 2), (6, 4), (12, 7)])
def test_slopes_keep_their_average_exactly_whatever_the_depth(average: int, spread: int) -> None:
    for depth in range(1, 70):
        bits = Slope("asc", average, spread).bits(depth)
        assert sum(bits) == average * depth
        assert bits == sorted(bits)
        assert Slope("desc", average, spread).bits(depth) == bits[::-1]
        assert average - spread <= bits[0] <= bits[-1] <= average + spread
        runs = [bits.count(b) for b in range(average - spread, average + spread + 1)]
        assert max(runs) - min(runs) <= (2 if depth % (2 * spread + 1) else 0)


def problem(
    seed: int, layers: int = 5, choices: tuple[int, ...] = (2, 3, 4, 8)
) -> tuple[Losses, dict[str, int]]:
    """Losses over many orders of magnitude, now and then equal or rising with the bits."""
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(layers)]
    losses = {n: {b: float(np.exp(rng.normal(-b, 3)).round(6)) for b in choices} for n in names}
    return losses, {n: int(rng.integers(1, 200)) for n in names}


def cost(losses: Losses, bits: dict[str, int]) -> float:
    return sum(losses[name][b] for name, b in bits.items())


def size(weights: dict[str, int], bits: dict[str, int], extra: int = 0) -> int:
    return sum(weights[name] * (b + extra) for name, b in bits.items())


@pytest.mark.parametrize("seed", range(20))
def test_the_allocation_is_the_best_of_all(seed: int) -> None:
    losses, weights = problem(seed)
    options = [dict(zip(losses, bits, strict=True)) for bits in product(*losses.values())]
    for mean in (2.0, 2.3, 3.0, 4.7, 8.0):
        budget = int(mean * sum(weights.values()))
        bits = allocate(losses, weights, budget)
        best = min((cost(losses, o), size(weights, o)) for o in options if size(weights, o) <= budget)
        assert (cost(losses, bits), size(weights, bits)) == pytest.approx(best, rel=1e-12)
        assert list(bits) == list(losses)


@pytest.mark.parametrize("seed", range(5))
def test_more_budget_never_loses_more_and_uniform_bits_never_win(seed: int) -> None:
    losses, weights = problem(seed, layers=40)
    total = sum(weights.values())
    lost = [cost(losses, allocate(losses, weights, b)) for b in range(2 * total, 8 * total, total // 7)]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > lost[-1]
    for b in (2, 3, 4, 8):
        assert (
            cost(losses, allocate(losses, weights, b * total))
            <= cost(losses, dict.fromkeys(losses, b)) + 1e-12
        )


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    losses, weights = problem(0)
    total = sum(weights.values())
    with pytest.raises(QuantizationError, match="least possible is 2 bits a weight") as caught:
        allocate(losses, weights, 2 * total - 1)
    assert "\n" not in str(caught.value)
    assert allocate(losses, weights, 2 * total) == dict.fromkeys(losses, 2)
    with pytest.raises(QuantizationError, match="least possible is 3 bits a weight"):
        allocate(losses, weights, 2 * total, "predecessor")


def test_an_alphabet_costs_the_whole_bits_that_its_levels_need() -> None:
    assert [code_bits(kind, 4) for kind in ("symmetric", "twos_complement", "midrise", "predecessor")] == [
        4,
        4,
        4,
        5,
    ]
    losses, weights = problem(1)
    budget = 4 * sum(weights.values())
    assert size(weights, allocate(losses, weights, budget, "predecessor"), extra=1) <= budget
    assert cost(losses, allocate(losses, weights, budget, "predecessor")) >= cost(
        losses, allocate(losses, weights, budget)
    )


def test_budgets_in_bits_and_bytes_and_the_ends() -> None:
    losses, weights = problem(2, choices=(2, 3, 4, 5, 6, 8))
    measured, total = Sensitivities(losses, weights), sum(weights.values())
    bits = label_aware_bits(Precision(Budget(mean=3.3)), measured)
    assert bits == allocate(losses, weights, int(33 * total / 10 + 1e-9))
    assert label_aware_bits(Precision(Budget(size=total // 2)), measured) == allocate(
        losses, weights, total // 2 * 8
    )
    ends = label_aware_bits(parse_bits("auto:5 first:7 last:8"), measured)
    assert (ends["layer0"], ends["layer4"]) == (7, 8)
    assert size(weights, ends) <= 5 * total
    with pytest.raises(QuantizationError, match="see label_aware_bits"):
        bits_per_layer(parse_bits("auto:3"), NAMES)
    with pytest.raises(QuantizationError, match="only auto"):
        label_aware_bits(parse_bits(3), measured)
    with pytest.raises(QuantizationError, match="either a mean or a size"):
        Budget()


class Small(nn.Module):
    """Two convolutions with batch norms, an operation in place, six classes; weights are seeded."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 6)  # defined first, run last
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 0.5))
            self.norm.running_var.add_(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x = F.relu(self.second(F.relu(self.norm(self.first(x)), inplace=True)))
        return self.head(x.mean((2, 3))) * 3


def pictures(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(6))


def trials(network: nn.Module, images: Tensor, *bits: int) -> list[QuantizedNetwork]:
    return [quantize(network, images, Recipe(bits=b)) for b in bits]


def test_fewer_bits_cost_more_and_many_cost_nothing() -> None:
    network, images = Small(), pictures()
    measured = sensitivities(network, images, trials(network, images, 2, 8, 20))
    assert list(measured.losses) == ["first", "second", "head"]
    assert measured.weights == {"first": 216, "second": 864, "head": 72}
    for loss in measured.losses.values():
        assert list(loss) == [2, 8, 20]
        assert loss[2] > 50 * loss[8] > 0
        assert loss[20] == pytest.approx(0, abs=1e-9)
        assert loss[20] >= 0


@pytest.mark.parametrize("classes", [None, [4, 1]], ids=str)
def test_the_loss_is_the_divergence_of_the_probabilities(classes: list[int] | None) -> None:
    network, images = Small().eval(), pictures()
    trial = quantize(network, images, Recipe(bits=2))
    measured = sensitivities(network, images, [trial], classes)
    for layer in trial.layers:
        modified = copy.deepcopy(network)
        modified.get_submodule(layer.name).weight.data = layer.alphabet.decode(layer.codes)
        with torch.no_grad():
            p, q = (
                n(images.clone())[:, classes or slice(None)].double().softmax(1) for n in (network, modified)
            )
        expected = (p * (p / q).log()).sum(1).mean().item()
        assert measured.losses[layer.name][2] == pytest.approx(expected, rel=1e-4)
        assert expected > 1e-4


def test_the_classes_that_count_change_what_is_sensitive() -> None:
    network, images = Small(), pictures()
    by_classes = [
        sensitivities(network, images, trials(network, images, 3), c) for c in (None, [0, 1], [2, 5])
    ]
    losses = [[loss[3] for loss in m.losses.values()] for m in by_classes]
    assert losses[0] != losses[1] != losses[2] != losses[0]
    whole = sensitivities(network, images, trials(network, images, 3), range(6))
    assert whole == by_classes[0]
    assert (
        list(sensitivities_each(network, images, trials(network, images, 3), [None, [0, 1], [2, 5]]))
        == by_classes
    )


@pytest.mark.usefixtures("two_threads")
def test_the_callers_network_images_and_threads_are_left_as_they_were() -> None:
    network, images, threads = Small().train(), pictures(), torch.get_num_threads()
    state, before = copy.deepcopy(network.state_dict()), images.clone()
    made = trials(network, images, 2)
    quantized = copy.deepcopy(made[0].network.state_dict())
    sensitivities(network, images, made)
    made[0].network.head.weight.data.fill_(torch.inf)
    with pytest.raises(QuantizationError, match="^layer head: outputs at 2 bits are not finite$"):
        sensitivities(network, images, made)
    assert network.training
    assert torch.equal(images, before)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())
    assert torch.equal(made[0].network.first.weight, quantized["first.weight"])


def test_fixed_plans_follow_the_order_of_execution() -> None:
    network, images = Small(), pictures()
    assert choose_bits(parse_bits([8, 4, 3]), network, images, Recipe()) == {
        "first": 8,
        "second": 4,
        "head": 3,
    }
    bits = choose_bits(parse_bits("desc:4 last:8"), network, images, Recipe(ignore=("second",)))
    assert bits == {"first": 5, "head": 8}
    with pytest.raises(QuantizationError, match="2 given for 3 layers: first, second, head"):
        choose_bits(parse_bits([8, 4]), network, images, Recipe())


@pytest.mark.parametrize("fuse", [False, True])
def test_label_aware_bits_end_to_end(fuse: bool) -> None:  # noqa: FBT001
    network, images, recipe = Small(), pictures(), Recipe(fuse=fuse, bias_correction=True)
    bits = choose_bits(parse_bits("auto:3"), network, images, recipe, [0, 3])
    assert bits == choose_bits(parse_bits("auto:3"), network, images, recipe, [0, 3])
    result = quantize(network, images, replace(recipe, bits=bits))
    assert {layer.name: layer.bits for layer in result.layers} == bits
    assert 2 < result.mean_bits <= 3
    assert len(set(bits.values())) > 1
    roomy = choose_bits(Precision(Budget(mean=8), choices=(2, 8)), network, images, recipe, [0, 3])
    assert roomy == dict.fromkeys(bits, 8)


class Late(Small):
    """Changes in place, in the end, what was in hand at a layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.head(self.second(y).mean((2, 3)))
        return z + y.mul_(3).mean((2, 3))[:, :6]


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_runs_from_a_layer_on_lose_what_runs_from_the_images_lose(
    monkeypatch: pytest.MonkeyPatch, memory_gib: float
) -> None:
    network, images = Late(), pictures()
    made = quantize_each(network, images, [Recipe(bits=b, memory_gib=memory_gib) for b in (2, 4)])
    from_layers = sensitivities(network, images, iter(made), [1, 4])
    monkeypatch.setattr("laq.quantization.bits.sensitivity.trace", lambda *_: "no luck")
    assert sensitivities(network, images, made, [1, 4]) == from_layers
    assert list(from_layers.losses) == ["first", "second", "head"]
    assert sensitivities(network, images, []) == Sensitivities({}, {})


def test_several_budgets_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, recipe = Small(), pictures(), Recipe(bias_correction=True)
    precisions = [*map(parse_bits, ("auto:3", 5, "auto:4 last:8")), Precision(Budget(mean=5), choices=(7, 4))]
    alone = [choose_bits(p, network, images, recipe, [0, 3]) for p in precisions]
    measured: list[int] = []

    def counted(*args: Any) -> Sensitivities:
        measured.append(len(args[2]))
        return sensitivities(*args)

    monkeypatch.setattr("laq.quantization.bits.allocate.sensitivities", counted)
    assert list(choose_bits_each(precisions, network, images, recipe, [0, 3])) == alone
    assert measured == [7]
    assert choose_bits_each([], network, images, recipe) == ()
    with pytest.raises(QuantizationError, match="2 given for 3 layers: first, second, head"):
        choose_bits_each([parse_bits("auto:3"), parse_bits([8, 4])], network, images, recipe)
    assert len(measured) == 1


def folded_small() -> nn.Module:
    network = Small().eval()
    fold_batch_norms(network, Batch((pictures(1),)))
    return network


def test_what_activations_cost_is_the_divergence_with_one_point_rounded() -> None:
    network, images, classes = folded_small(), pictures(), [4, 1]
    measured = sensitivities_of_activations(network, images, Recipe(activations="auto:4"), (2, 4), classes)
    sizes: dict[str, int] = {}
    graph, _ = with_points(network, Batch((images,)))
    for name, point in points_of(graph).items():
        point.register_forward_hook(lambda _, given, __, name=name: sizes.update({name: given[0][0].numel()}))
    graph(images.clone())
    assert measured.weights == sizes
    assert list(measured.losses) == list(sizes)
    for point, losses in measured.losses.items():
        assert losses[2] > losses[4] > 0
        # Weights of so many bits are as good as floats.
        recipe = Recipe(bits=24, method="rtn", activations={point: 2})
        rounded = quantize(network, images, recipe).network
        with torch.no_grad():
            p, q = (n(images.clone())[:, classes].double().softmax(1) for n in (network, rounded))
        assert losses[2] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-3)


def test_a_budget_of_activations_is_spent_where_it_helps_most() -> None:
    """On the best of all allocations, tried one by one."""
    network, images, recipe = Small().eval(), pictures(), Recipe(bits=6, activations="auto:4.5")
    measured = sensitivities_of_activations(folded_small(), images, recipe, CHOICES, [0, 3])
    found = choose_activations(network, images, recipe, [0, 3])
    assert list(found) == list(measured.losses)

    def mean(bits: dict[str, int]) -> float:
        total = sum(measured.weights.values())
        return sum(bits[name] * count for name, count in measured.weights.items()) / total

    def loss(bits: dict[str, int]) -> float:
        return sum(measured.losses[name][b] for name, b in bits.items())

    every = (dict(zip(found, bits, strict=True)) for bits in product(CHOICES, repeat=len(found)))
    assert loss(found) == pytest.approx(min(loss(bits) for bits in every if mean(bits) <= 4.5))
    assert mean(found) <= 4.5
    result = quantize(network, images, replace(recipe, activations=found))
    assert result.recipe.activations == found
    assert choose_bits(parse_bits("auto:4"), network, images, result.recipe, [0, 3]).keys() == {
        "first", "second", "head",
    }  # fmt: skip


def test_a_budget_that_nobody_has_spent_is_told() -> None:
    with pytest.raises(
        QuantizationError, match="activations: found auto:4; a budget is spent for classes: choose_"
    ):
        quantize(Small(), pictures(), Recipe(activations="auto:4"))
    with pytest.raises(QuantizationError, match="activations: found 8; must be a budget such as auto:6"):
        choose_activations(Small(), pictures(), Recipe(activations=8))
