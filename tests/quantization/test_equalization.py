"""Cross-layer equalization changes weights, and no output; ranges of channels are alike thereafter."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from laq.quantization import (
    QuantizationError,
    Recipe,
    choose_bits,
    load_quantized,
    parse_bits,
    quantize,
    quantize_each,
    save,
)
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.equalization import equalize
from tests.conftest import Branching
from tests.quantization.ways import by, error, noise, seeded


class Depthwise(nn.Module):
    """An inverted bottleneck upon a stem, with one module for the activations of all places."""

    def __init__(self, cut: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, bias=False)
        self.expand = nn.Conv2d(6, 8, 1)
        self.pad = nn.ZeroPad2d(1)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.project = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.cut = cut()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.cut(self.expand(x))
        y = self.cut(self.deep(self.pad(y)))
        return self.fc((x + self.norm(self.project(y))).mean((2, 3)))


def uneven(make: Callable[[], nn.Module], spread: float = 3.0) -> nn.Module:
    """In float64, with ranges of channels far apart, which what reads them makes up for."""
    network = seeded(make)
    with torch.no_grad():
        for layer, reader in ((network.expand, network.deep), (network.deep, network.project)):
            scales = noise(8, seed=4).mul(spread).exp2()
            layer.weight.mul_(scales[:, None, None, None])
            layer.bias.mul_(scales)
            reader.weight.div_(scales.view(reader.groups, -1)[:, :, None, None])
    return network


def images(count: int = 24) -> list[Batch]:
    return [Batch((part,)) for part in noise(count, 3, 8, 8).split(10)]


def textbook(first: Tensor, bias: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step of the paper's, channel by channel, for a second convolution whose inputs are not grouped."""
    before = first.abs().max(), second.abs().max()
    for i in range(len(first)):
        r1, r2 = first[i].abs().max(), second[:, i].abs().max()
        s = (r1 * r2).sqrt() / r2
        first[i], bias[i], second[:, i] = first[i] / s, bias[i] / s, second[:, i] * s
    # One number for all channels changes nothing.
    t = (before[0] / before[1]).sqrt()
    first, bias, second = first * t, bias * t, second / t
    return first, bias, second


@pytest.mark.parametrize("way", ["fx", "export"])
def test_outputs_are_the_same_and_ranges_are_alike(way: str) -> None:
    network = uneven(Depthwise)
    truth, X = network(noise(9, 3, 8, 8)), noise(9, 3, 8, 8)
    with by(way):
        equalize(network, images())
    assert error(truth, network(X)) < 1e-12
    ranges = [layer.weight.abs().amax((1, 2, 3)) for layer in (network.expand, network.deep)]
    others = [network.deep.weight.abs().amax((1, 2, 3)), network.project.weight.abs().amax((0, 2, 3))]
    for one, other in zip(ranges, others, strict=True):
        torch.testing.assert_close(one / one.max(), other / other.max(), rtol=0.01, atol=0)


def test_two_convolutions_are_equalized_as_the_paper_says() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3)).double().eval()
    kept = [t.detach().clone() for t in (network[0].weight, network[0].bias, network[2].weight)]
    equalize(network, images())
    for found, truth in zip(
        (network[0].weight, network[0].bias, network[2].weight), textbook(*kept), strict=True
    ):
        torch.testing.assert_close(found.data, truth)


def test_groups_and_pools_keep_their_channels() -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2, groups=2), nn.AvgPool2d(2)]
    network = nn.Sequential(*layers, nn.Conv2d(4, 3, 1, bias=False)).double().eval()
    before = network.state_dict()["3.weight"].clone()
    truth = network(noise(5, 3, 8, 8))
    equalize(network, images())
    assert error(truth, network(noise(5, 3, 8, 8))) < 1e-12
    assert not torch.equal(network[3].weight, before)


def test_what_reads_a_channel_beside_leaves_it_as_it_is() -> None:
    """A residual sum, a SiLU, a weight that is called twice, padding with ones: none of them scales."""

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 1) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y = y + self.b(y)
            y = F.silu(self.c(y))
            y = self.d(F.pad(self.d(y), (1, 1, 1, 1), value=1.0))
            return self.e(F.pad(y, (1, 1, 1, 1), "replicate")).mean((2, 3))

    network = seeded(Bound)
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.warns(
        UserWarning, match="equalize: the network has no convolution that alone reads another's"
    ):
        equalize(network, images())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_a_relu6_cuts_off_the_same_values_of_the_calibration_images() -> None:
    network = uneven(lambda: Depthwise(nn.ReLU6))
    X = torch.cat([batch.args[0] for batch in images()])
    truth, before = network(X), network.expand.weight.detach().clone()
    most = network.cut(network.expand(network.stem(X))).amax((0, 2, 3))
    equalize(network, images())
    assert error(truth, network(X)) < 1e-12
    assert (most > 3).any()
    assert (most < 3).any()
    changed = (network.expand.weight != before).any(1).flatten()
    assert not (changed & (most >= 3)).any()
    assert (changed & (most < 3)).any()
    assert network.cut(network.expand(network.stem(X))).amax((0, 2, 3))[most < 3].max() <= 3 * (1 + 1e-9)


def test_one_step_for_a_layer_loses_less_after_it(tmp_path: Path) -> None:
    network, X = uneven(Depthwise), noise(24, 3, 8, 8)
    plain = Recipe(bits=4, method="rtn", granularity="layer", fuse=True, ignore=("stem", "fc"))
    results = [quantize(network, X, recipe) for recipe in (plain, replace(plain, equalize=True))]
    assert results[1].recipe.fuse
    assert results[1].folded == ("norm",)
    assert results[1].relative_error < 0.7 * results[0].relative_error
    save(tmp_path / "packed", results[1])
    again = load_quantized(tmp_path / "packed", Depthwise().double())
    assert torch.equal(again.network(X), results[1].network(X))
    assert again.recipe.equalize


def test_bits_are_allocated_to_weights_as_they_are_thereafter() -> None:
    network, X = uneven(Depthwise), noise(24, 3, 8, 8)
    shared = Recipe(granularity="layer", equalize=True)
    bits = choose_bits(parse_bits("auto:4"), network, X, shared)
    equalized = uneven(Depthwise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from laq.quantization.execution.equalization import fold_and_equalize

        fold_and_equalize(equalized, [Batch((X,))], shared)
    assert bits == choose_bits(parse_bits("auto:4"), equalized, X, Recipe(granularity="layer"))


def test_a_network_without_a_graph_and_recipes_that_differ_are_told() -> None:
    with pytest.raises(
        QuantizationError, match=r"equalize: the network has no graph \(.*\); leave equalize out"
    ):
        quantize(Branching(), torch.ones(4, 3), Recipe(equalize=True))
    with pytest.raises(
        QuantizationError, match="equalize: recipes of one pass must agree; found True and False"
    ):
        quantize_each(Depthwise(), torch.ones(4, 3, 8, 8), [Recipe(equalize=True), Recipe(fuse=True)])
