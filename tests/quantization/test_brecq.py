"""BRECQ: blocks are found in the graph, and the layers of one are rounded together, better than one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from laq.quantization import QuantizationError, QuantizedNetwork, Recipe, Tuning, load, quantize, save
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.base import in_float32
from laq.quantization.execution.blocks import find_blocks
from laq.quantization.execution.graph import Graph, Program, Reading, trace
from laq.quantization.execution.offload import Offload
from laq.quantization.methods.brecq import Reconstruction
from laq.quantization.methods.network_problem import NetworkProblem
from laq.quantization.methods.problem import Settings
from laq.quantization.threads import as_workers, worker_pool
from tests.quantization.zoo import classifier


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1) for _ in "12")
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x + self.b(self.relu(self.a(x))))
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(self.b(self.a(x).relu()))
        return y, y + 1


def residual(channels: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Residual(channels).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def traced(network: nn.Module, images: Tensor) -> tuple[Graph, Reading]:
    graph = trace(network, Batch((images,)))
    assert isinstance(graph, Graph)
    return graph, Reading(graph, network)


def blocks(network: nn.Module, images: Tensor) -> list[list[str]]:
    graph, reading = traced(network.eval(), images)
    layers = reading.structure.layers
    found = find_blocks(Program(graph, reading, layers), reading, layers, network, Batch((images,)))
    assert [block.nodes.start for block in found] == [0, *(block.nodes.stop for block in found[:-1])]
    return [[layer.name for layer in block.layers] for block in found]


@contextmanager
def reconstruction(
    network: nn.Module, images: Tensor, recipe: Recipe
) -> Iterator[tuple[Reconstruction, QuantizedNetwork]]:
    """A network whose layers are at the nearest levels, before any block has learned."""
    nearest = quantize(network, images, Recipe(bits=recipe.bits, method="rtn"))
    graph, reading = traced(network, images[:2])
    settings = Settings(
        options={"iterations": 1, "batch_size": 32, "rate": 0.05, "fisher": True, **recipe.options}
    )
    with as_workers(), worker_pool() as pool, Offload(1e9) as offload:
        layers = reading.structure.layers
        problem = NetworkProblem(
            network, nearest, layers, graph, reading, [Batch((images,))], None, pool, settings
        )
        yield Reconstruction(problem, offload), nearest


def test_a_block_is_what_one_value_enters_and_leaves() -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)
    )
    assert blocks(chain, noise(2, 3, 8, 8)) == [["0"], ["4"]]
    nested = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(4), nn.Flatten(), nn.Linear(64, 2))
    assert blocks(nested, noise(2, 3, 4, 4)) == [["0"], ["1.a", "1.b"], ["3"]]
    assert blocks(Tied(), noise(2, 4)) == [["a", "b"]]
    found = blocks(classifier("resnet20"), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [len(block) for block in found] == [
        1,
        2,
        2,
        2,
        3,
        2,
        2,
        3,
        2,
        2,
        1,
    ]  # 3 with a shortcut of its own


def test_norms_and_activation_functions_are_within_a_block_and_pooling_is_not() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)
    )
    graph, reading = traced(network.eval(), noise(2, 3, 4, 4))
    layers = reading.structure.layers
    first, second = find_blocks(
        Program(graph, reading, layers), reading, layers, network, Batch((noise(2, 3, 4, 4),))
    )
    names = [node.name for node in graph.nodes]
    assert (first.value, second.value) == (names[first.nodes.stop - 1], names[-2])
    assert str(graph.nodes[first.nodes.stop - 1].target) == "2"


@pytest.mark.parametrize("fisher", [False, True])
def test_gradients_are_those_of_autograd(*, fisher: bool) -> None:
    network, images = nn.Sequential(residual(4), nn.Conv2d(4, 3, 1)).double(), noise(5, 4, 5, 5).double()
    recipe = Recipe(bits=3, method="brecq", options={"fisher": fisher})
    with reconstruction(network, images, recipe) as (made, nearest):
        block = made.blocks[0]
        made.problem.pool.run(lambda group: made._advance(block, 0, group), made.groups)
        made.unit(block)
        weights = {layer.name: layer.alphabet.decode(layer.codes) * 1.1 for layer in nearest.layers[:2]}
        for name, weight in weights.items():
            made.set_weights(f"{name}.weight", weight)
        found = made.gradients(block, 0)
        weighed = made.offload.look((0, 2))["weights"]
    block_module = network[0]
    with torch.no_grad():
        target = block_module(images.clone())
    relaxed = {f"{n.partition('.')[2]}.weight": w.detach().requires_grad_() for n, w in weights.items()}
    errors = functional_call(block_module, relaxed, (images.clone(),)) - target
    expected = torch.autograd.grad((weighed * errors.square()).sum() / 2, list(relaxed.values()))
    assert all(torch.allclose(ours, theirs, rtol=1e-9) for ours, theirs in zip(found, expected, strict=True))
    assert (weighed.std() > 0) == fisher
    assert torch.allclose(weighed.flatten(1).mean(1), torch.ones(5).double())


def test_fisher_information_is_the_squared_gradient_of_the_divergence() -> None:
    network, images = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), noise(8, 6)
    with reconstruction(network, images, Recipe(bits=2, method="brecq")) as (made, nearest):
        made.unit(made.blocks[0])
        found = made.offload.look((0, 2))["weights"]
    rounded = nearest.layers[0].alphabet.decode(nearest.layers[0].codes)
    output = (images @ rounded.T + network.get_parameter("0.bias")).relu().detach().requires_grad_()
    p, q = network(images).softmax(1).detach(), network[2](output).softmax(1)
    (gradient,) = torch.autograd.grad((p * (p / q).log()).sum(), output)
    squares = gradient.square()
    assert torch.allclose(found, (squares / squares.mean(1, keepdim=True) + 1) / 2, rtol=1e-3)


def test_the_unit_of_errors_of_one_layer_is_that_of_adaround() -> None:
    network, images = nn.Linear(60, 40), noise(200, 60, seed=3)
    recipe = Recipe(bits=3, method="brecq", options={"fisher": False})
    with reconstruction(network, images, recipe) as (made, nearest):
        unit = made.unit(made.blocks[0])
    energy, step = images.square().mean(), nearest.layers[0].alphabet.step
    assert unit == pytest.approx(float(40 / 40 * energy * step.square().mean()), rel=0.1)


def error(network: nn.Module, result: QuantizedNetwork, images: Tensor) -> float:
    with torch.no_grad():
        return float((network(images.clone()) - result.network(images.clone())).square().sum())


def three(network: nn.Module, images: Tensor, held_out: Tensor, **options: Any) -> tuple[float, float, float]:
    """The errors on other images by BRECQ, AdaRound layer by layer, and rounding to nearest."""
    own = {"brecq": {"fisher": False, "iterations": 300}, "adaround": {"iterations": 300}, "rtn": {}}
    found = (
        error(network, quantize(network, images, Recipe(method=m, options=o, **options)), held_out)
        for m, o in own.items()
    )
    brecq, adaround, nearest = found
    return brecq, adaround, nearest


def test_a_layer_alone_learns_what_adaround_does() -> None:
    torch.manual_seed(0)
    network, mixing = nn.Linear(24, 20), noise(24, 24)
    images, held_out = ((noise(320, 24, seed=seed) @ mixing).relu() for seed in (1, 2))
    brecq, adaround, nearest = three(network, images, held_out, bits=3)
    assert brecq < 0.8 * nearest
    assert brecq == pytest.approx(adaround, rel=0.15)


@pytest.mark.parametrize("bits", [2, 3])
def test_a_residual_block_learns_more_than_its_layers_one_by_one(bits: int) -> None:
    network, images, held_out = residual(), noise(48, 6, 6, 6), noise(48, 6, 6, 6, seed=1)
    brecq, adaround, nearest = three(network, images, held_out, bits=bits)
    assert brecq < adaround < nearest


def test_the_outcome_goes_by_the_seed_and_not_by_batches(tmp_path: Path) -> None:
    network, images = nn.Sequential(residual(4), nn.Flatten(), nn.Linear(64, 3)), noise(20, 4, 4, 4)
    options = {"iterations": 20, "batch_size": 8}
    for parameter in network[0].parameters():
        parameter.requires_grad = False
    before = [parameter.clone() for parameter in network.parameters()]
    recipe = Recipe(bits=2, method="brecq", options=options)
    recipes = recipe, replace(recipe, batch_size=3, memory_gib=0), replace(recipe, seed=1)
    plain, cut, other = (quantize(network, images, recipe) for recipe in recipes)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(plain.layers, cut.layers, strict=True))
    assert any(not torch.equal(a.codes, b.codes) for a, b in zip(plain.layers, other.layers, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert [p.requires_grad for p in plain.network.parameters()] == [
        p.requires_grad for p in network.parameters()
    ]
    for layer in plain.layers:
        weight = plain.network.get_parameter(layer.parameter)
        assert torch.equal(weight, layer.alphabet.decode(layer.codes))
    save(tmp_path / "network.safetensors", plain)
    loaded = load(tmp_path / "network.safetensors", network)
    assert torch.equal(loaded(images), plain.network(images))


def test_it_learns_with_rounded_activations_and_before_a_tuning() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), residual(4), nn.Flatten(), nn.Linear(64, 3)
    )
    network, images = network.eval(), noise(32, 3, 6, 6)
    options = {"iterations": 100}
    ours, nearest = (
        quantize(network, images, Recipe(bits=2, method=method, options=own, activations=4))
        for method, own in (("brecq", options), ("rtn", {}))
    )
    assert ours.relative_error < nearest.relative_error
    tuning = Tuning(loss="all", steps=4, batch_size=8)
    tuned = quantize(network, images, Recipe(bits=2, method="brecq", options={"iterations": 5}, tune=tuning))
    assert tuned.tuned is not None
    assert tuned.tuned.learned == 28


def test_outputs_of_no_use_to_a_divergence_and_images_of_zero_do_no_harm() -> None:
    recipe = Recipe(bits=2, method="brecq", options={"iterations": 5})
    assert quantize(Tied(), noise(9, 4), recipe).relative_error < 1
    zeros = quantize(
        nn.Sequential(residual(3), nn.Conv2d(3, 1, 4), nn.Flatten()), torch.zeros(9, 3, 4, 4), recipe
    )
    assert all(in_float32(p).isfinite().all() for p in zeros.network.parameters())


def test_a_network_without_a_graph_gets_one_line() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    network[0].register_forward_hook(lambda module, args, output: output)
    with pytest.raises(
        QuantizationError, match=r"method: brecq finds blocks in the network's graph, and there is none"
    ):
        quantize(network, noise(4, 4), Recipe(method="brecq"))
