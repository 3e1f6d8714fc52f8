"""Networks from anywhere: what they hold is found, learned from, reported and named, whichever way they run."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from laq.quantization import (
    METHODS,
    QuantizationError,
    Recipe,
    load,
    quantize,
    save,
)
from laq.quantization.execution.graph import Graph, trace
from tests.quantization.ways import WAYS, assert_same, by, error, noise, outputs_of, seeded


class Tied(nn.Module):
    """One parameter in two places, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.block = nn.Linear(6, 6)
        self.again = self.block
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.again(F.relu(self.block(y)))))


class Twice(nn.Module):
    """A layer called twice, with an operation in place between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x), inplace=True)
        y += x
        return self.head(self.conv(y[..., ::2]).mean((2, 3)))


class Own(nn.Conv2d):
    """Pads by itself, and calls the function."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        return F.conv2d(F.pad(input, (1, 0, 2, 1)), self.weight, self.bias, self.stride)


class Deeper(nn.Conv2d):
    """Overrides what torch's forward calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return super()._conv_forward(2 * input, weight, bias)


class Keywords(nn.Module):
    """Calls layers and functions by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(weight=self.weight, input=self.conv(input=x).mean((2, 3)))


class ReadsEarly(nn.Module):
    """Computes with a weight before its layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)) * self.second.weight.abs().mean(0)
        return self.head(F.relu(self.second(y)))


def strided() -> nn.Module:
    return nn.Sequential(
        Own(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Deeper(6, 4, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


def lazy(make: Callable[[], nn.Module], *shape: int) -> Callable[[], nn.Module]:
    def run() -> nn.Module:
        network = make()
        network(torch.zeros(shape))
        return network

    return run


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tied": (Tied, (30, 6)),
    "twice": (Twice, (9, 4, 6, 6)),
    "subclasses": (lazy(strided, 2, 4, 7, 8), (9, 4, 7, 8)),
    "keywords": (Keywords, (12, 4, 5, 5)),
    "early": (ReadsEarly, (30, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "recipe", [Recipe(bits=3, batch_size=4), Recipe(bits=2, method="qronos", bias_correction=True)]
)
def test_the_outcome_is_the_same_by_whichever_way_and_the_reported_error_the_real_one(
    name: str, recipe: Recipe
) -> None:
    make, shape = NETWORKS[name]
    network, images, results = seeded(make), noise(*shape), []
    if name in {"keywords", "tied"}:  # one has no bias, the other different ones
        recipe = replace(recipe, bias_correction=False)
    for way in WAYS:
        with by(way):
            results.append(quantize(network, images, recipe))
    assert_same(results)
    truth = outputs_of(network, images)
    for result in results:
        assert result.relative_error == pytest.approx(
            error(truth, outputs_of(result.network, images)), rel=1e-6
        )
    assert results[0].not_quantized == ()


def test_tied_weights_are_quantized_once_and_counted_once(tmp_path: Any) -> None:
    network, images = seeded(Tied), noise(40, 6)
    result = quantize(network, images, Recipe(bits=3))
    assert [layer.name for layer in result.layers] == ["first", "block", "head"]
    assert result.weights == 36 + 36 + 24
    assert result.network.second.weight is result.network.first.weight
    assert result.network.again is result.network.block
    # The error is that of both places.
    seen: dict[nn.Module, list[Tensor]] = {}
    pairs = [(network.first, result.network.first), (network.second, result.network.second)]
    for module in (m for pair in pairs for m in pair):
        module.register_forward_hook(lambda m, _, out: seen.setdefault(m, []).append(out))
    for net in (network, result.network):
        outputs_of(net, images)
    analog, quantized = (torch.cat([seen[pair[side]][0] for pair in pairs]) for side in (0, 1))
    assert result.layers[0].relative_error == pytest.approx(error(analog, quantized), rel=1e-6)
    save(tmp_path / "tied.safetensors", result)
    loaded = load(tmp_path / "tied.safetensors", seeded(Tied, seed=1))
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(outputs_of(loaded, images), outputs_of(result.network, images))


@pytest.mark.parametrize("method", ["gpfq", "gptq", "qronos"])
def test_a_layer_called_twice_learns_from_all_calls(method: str) -> None:
    """As a linear does from the patches of both calls, which no quantized weight has changed yet."""
    network, images, inputs = seeded(Twice), noise(12, 4, 6, 6), list[Tensor]()
    hook = network.conv.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    outputs_of(network, images)
    hook.remove()
    patches = [F.unfold(t, 3, padding=1).transpose(1, 2).flatten(0, 1) for t in inputs]
    assert len(patches) == 2
    alone = nn.Sequential(nn.Linear(36, 4)).double()
    alone[0].weight.data = network.conv.weight.data.flatten(1)
    recipe = Recipe(bits=3, method=method)
    twice = quantize(network, images, recipe).layers[0].codes.flatten(1)
    assert torch.equal(twice, quantize(alone, torch.cat(patches), recipe).layers[0].codes)
    assert not torch.equal(twice, quantize(alone, patches[0], recipe).layers[0].codes)


def test_a_weight_that_is_read_early_reports_the_real_error() -> None:
    network, images = seeded(ReadsEarly), noise(50, 6)
    result = quantize(network, images, Recipe(bits=2))
    assert result.relative_error == pytest.approx(
        error(outputs_of(network, images), outputs_of(result.network, images)), rel=1e-9
    )
    # In the order in which weights are first read.
    assert [layer.name for layer in result.layers] == ["first", "second", "head"]
    seen = []
    for net in (network, result.network):
        net.second.register_forward_hook(lambda _, args, out: seen.append(out))
        outputs_of(net, images)
    assert result.layers[1].relative_error == pytest.approx(error(*seen), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("mobilenetv3_small_050", {"conv2d": 53, "linear": 1}),
        ("tf_efficientnet_lite0", {"conv2d": 49, "linear": 1}),
        ("lcnet_035", {"conv2d": 32, "linear": 1}),
    ],
)
def test_networks_of_timm_are_quantized_whole(name: str, operations: dict[str, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=10).eval()
    images = noise(2, 3, 40, 40).float()
    result = quantize(network, images, Recipe(bits=8, method="rtn"))
    found = [layer.operation for layer in result.layers]
    assert {kind: found.count(kind) for kind in set(found)} == operations
    assert result.not_quantized == ()
    real = error(outputs_of(network, images), outputs_of(result.network, images))
    assert result.relative_error == pytest.approx(real, rel=1e-3)
    assert real < 0.2


def test_a_network_of_another_package_with_convolutions_of_its_own_is_quantized_whole() -> None:
    network = seeded(lambda: EfficientNet.from_name("efficientnet-lite0", num_classes=10)).float()
    images = noise(2, 3, 64, 64).float()
    result = quantize(network, images, Recipe(bits=6, method="rtn"))
    found = [layer.operation for layer in result.layers]
    assert {kind: found.count(kind) for kind in set(found)} == {"conv2d": 49, "linear": 1}
    assert result.not_quantized == ()
    assert all(0 < layer.relative_error < 1 for layer in result.layers)
    real = error(outputs_of(network, images), outputs_of(result.network, images))
    assert result.relative_error == pytest.approx(real, rel=1e-2)


def test_a_convolution_that_pads_by_sizes_is_exported_and_takes_any_number_of_images() -> None:
    network = nn.Sequential(
        timm.layers.Conv2dSame(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    network = seeded(lazy(lambda: network, 2, 3, 7, 7))
    images = noise(7, 3, 7, 7)
    assert "export" not in str(trace(network, batch_of(images)))
    results = [quantize(network, images, Recipe(bits=3, batch_size=size)) for size in (7, 3, 1)]
    with by("hooks"):
        results.append(quantize(network, images, Recipe(bits=3)))
    assert_same(results)
    pooled = seeded(lambda: nn.Sequential(timm.layers.Conv2dSame(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1)))
    with pytest.raises(QuantizationError, match=r"first are of size \(3, 7, 7\), later ones of \(3, 8, 8\)"):
        quantize(pooled, [images, noise(2, 3, 8, 8)], Recipe(bits=3))


def batch_of(*images: Tensor) -> Any:
    from laq.quantization.calibration.batch import Batch

    return Batch(images)


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(6, 5), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.body(x)), F.normalize(self.weight))


def pruned() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    prune.random_unstructured(network[1], "weight", 0.5)
    return network


def weight_normed(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 5), norm(nn.Linear(5, 3)))


def standardised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), timm.layers.StdConv2d(4, 2, 3), nn.Flatten())


COMPUTED: dict[str, tuple[Callable[[], nn.Module], list[str], str, tuple[int, ...]]] = {
    "weight_norm": (
        weight_normed(parametrizations.weight_norm),
        ["1.parametrizations.weight.original0", "1.parametrizations.weight.original1"],
        "remove_parametrizations", (20, 6),
    ),
    "old weight_norm": (
        weight_normed(torch.nn.utils.weight_norm), ["1.weight_g", "1.weight_v"], "remove_weight_norm", (20, 6),
    ),
    "spectral_norm": (
        weight_normed(parametrizations.spectral_norm), ["1.parametrizations.weight.original"],
        "remove_parametrizations", (20, 6),
    ),
    "prune": (pruned, ["1.weight_orig"], "prune.remove", (20, 6)),
    "cosine": (Cosine, ["weight"], "store what is computed as a parameter", (20, 6)),
    "standardised": (standardised, ["1"], "store what is computed as a parameter", (6, 3, 4, 4)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_computed_are_named_with_what_to_do(kind: str, way: str) -> None:
    make, names, remedy, shape = COMPUTED[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().eval()
    images = noise(*shape).float()
    state = copy.deepcopy(network.state_dict())
    with by(way), pytest.warns(UserWarning, match="not quantized: ") as told:
        result = quantize(network, images, Recipe(bits=4))
    assert [other.name for other in result.not_quantized] == names
    for other in result.not_quantized:
        assert "is computed from it before use" in other.reason
        assert remedy in other.reason
        assert other.reason in str(told[-1].message)
    assert len(result.layers) == 1
    real = error(outputs_of(network, images), outputs_of(result.network, images))
    assert result.relative_error == pytest.approx(real, rel=1e-3)
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())


class Holders(nn.Module):
    """Weights of many kinds, one of which is a linear's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 4))
        self.projection = nn.Parameter(torch.randn(4, 4))
        self.unused = nn.Bilinear(2, 2, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(self.embedding(x))
        return self.head((y + self.token).mean(1) @ self.projection)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_keeps_its_weights_is_named_with_the_reason(way: str) -> None:
    network, images = seeded(Holders), torch.randint(10, (12, 5), generator=torch.Generator().manual_seed(0))
    with by(way), pytest.warns(UserWarning, match="not quantized") as told:
        result = quantize(network, images, Recipe(bits=4))
    reasons = {other.name: other.reason for other in result.not_quantized}
    assert list(reasons) == [
        "token", "projection", "embedding", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "unused",
    ]  # fmt: skip
    assert "neither a convolution nor a linear" in reasons["embedding"]
    assert "never reads it" in reasons["unused"]
    assert len([w for w in told if "not quantized" in str(w.message)]) == 1
    assert [layer.name for layer in result.layers] == ["head"]
    assert result.weights == 12
    assert result.mean_bits == 4
    with by(way), warnings.catch_warnings():
        warnings.filterwarnings("error", "not quantized")
        quiet = quantize(
            network, images, Recipe(bits=4, ignore=("token", "projection", "emb*", "recurrent.*", "unused"))
        )
    assert quiet.not_quantized == result.not_quantized


class Frozen(nn.Module):
    """Weights that are no parameters, a buffer that is no weight, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randn(4, 4))
        self.register_buffer("table", torch.randn(4, 4))
        self.plain = torch.randn(4, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(F.linear(x, self.kernel), self.plain) + self.table[0])


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_no_parameters_are_named_with_what_to_do(way: str) -> None:
    with by(way), pytest.warns(UserWarning, match="not quantized: .*kernel .*plain .*nn.Parameter"):
        result = quantize(seeded(Frozen), noise(12, 4), Recipe(bits=4, method="rtn"))
    assert {other.name: other.weights for other in result.not_quantized} == {"kernel": 16, "plain": 16}
    assert [layer.name for layer in result.layers] == ["head"]


def test_a_layer_that_is_ignored_is_named_too() -> None:
    network, images = seeded(Twice), noise(4, 4, 6, 6)
    (other,) = quantize(network, images, Recipe(ignore=("head",))).not_quantized
    assert (other.name, other.weights, other.reason) == ("head", 12, "ignore names it")


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Answer:
    loss: Tensor | None
    logits: Tensor
    features: Tensor


OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor], int | str | None]] = {
    "tuple": (lambda logits, other: (logits, other), lambda out: out[0], None),
    "list": (lambda logits, other: [logits, [other]], lambda out: out[0], None),
    "dict": (lambda logits, other: {"features": other, "logits": logits}, lambda out: out["logits"], None),
    "first of a dict": (lambda logits, other: {"out": logits, "aux": other}, lambda out: out["out"], None),
    "named tuple": (lambda logits, other: Named(other, logits), lambda out: out.logits, None),
    "asked for by name": (lambda logits, other: {"a": other, "b": logits}, lambda out: out["b"], "b"),
    "asked for by index": (lambda logits, other: (other, logits), lambda out: out[1], 1),
    "nested": (
        lambda logits, other: {"a": other, "b": {"logits": logits}},
        lambda out: out["b"]["logits"],
        "b",
    ),
    "data class": (lambda logits, other: Answer(None, logits, other), lambda out: out.logits, None),
}


class Heads(nn.Module):
    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.pack = nn.Linear(6, 5), nn.Linear(5, 3), pack

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.pack(self.head(F.relu(y)), y)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_logits_are_chosen_by_rule_or_by_name(kind: str) -> None:
    pack, logits, output = OUTPUTS[kind]
    network, images = seeded(lambda: Heads(pack)), noise(30, 6)
    for way in WAYS:
        with by(way):
            result = quantize(network, images, Recipe(bits=2), output)
        found = [logits(outputs_of(net, images)) for net in (network, result.network)]
        assert result.relative_error == pytest.approx(error(*found), rel=1e-6)


def test_outputs_without_logits_are_refused_in_a_line() -> None:
    images = noise(4, 6)
    with pytest.raises(
        QuantizationError, match=r"output: found 'scores'; the network returns 'a', 'b'; name one"
    ):
        quantize(seeded(lambda: Heads(lambda a, b: {"a": a, "b": b})), images, Recipe(), "scores")
    no_logits = "no logits among the network's outputs; .* a str"
    with by("hooks"), pytest.raises(QuantizationError, match=no_logits):
        quantize(seeded(lambda: Heads(lambda *_: "none")), images, Recipe())


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, side: Tensor, scale: float = 0.5) -> Tensor:
        return self.head(F.relu(self.left(x) + scale * self.right(side)))


@pytest.mark.parametrize("way", WAYS)
def test_networks_take_several_inputs(way: str) -> None:
    network, x, side = seeded(Joined), noise(30, 6), noise(30, 3, seed=1)
    with by(way):
        whole = quantize(network, (x, side), Recipe(bits=3, batch_size=8))
        named = quantize(
            network, [{"side": side[:20], "x": x[:20]}, {"side": side[20:], "x": x[20:]}], Recipe(bits=3)
        )
    assert_same([whole, named])
    truth = outputs_of(network, x, side)
    assert whole.relative_error == pytest.approx(error(truth, outputs_of(whole.network, x, side)), rel=1e-6)


@pytest.mark.parametrize("way", ["fx", "export"])
def test_batch_norms_that_cannot_be_folded_stay_where_others_are(way: str) -> None:
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False), nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4, affine=False),
            nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4),
        )
    )  # fmt: skip
    images = noise(6, 3, 9, 9)
    with by(way):
        result = quantize(network, images, Recipe(bits=16, fuse=True))
    assert result.folded == ("1", "6")
    assert isinstance(result.network[4], nn.BatchNorm2d)
    assert error(outputs_of(network, images), outputs_of(result.network, images)) < 1e-3
    assert result.relative_error < 1e-3


def test_folding_leaves_shared_weights_and_the_biases_of_own_forwards_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.twin = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.twin.weight = self.conv.weight
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.twin(self.norm(self.conv(x)))

    images = noise(6, 3, 4, 4)
    assert quantize(seeded(Shared), images, Recipe(fuse=True)).folded == ()

    class NoBias(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
            return F.conv2d(input, self.weight)

    network = seeded(lambda: nn.Sequential(NoBias(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    with pytest.raises(
        QuantizationError, match="fuse: 0 adds no bias, so no batch norm can be folded into it"
    ):
        quantize(network, images, Recipe(fuse=True))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_networks_are_unwrapped(wrap: Callable[[nn.Module], Any], tmp_path: Any) -> None:
    network, images = seeded(Twice), noise(6, 4, 6, 6)
    expected, result = (quantize(net, images, Recipe(bits=3)) for net in (network, wrap(network)))
    assert_same([result, expected])
    assert isinstance(result.network, Twice)
    save(tmp_path / "network.safetensors", result)
    assert torch.equal(
        load(tmp_path / "network.safetensors", network).conv.weight, expected.network.conv.weight
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2),
        nn.Flatten(), nn.Linear(6 * 2 * 2, 4),
    )  # fmt: skip


BY_GRADIENTS = {"adaround", "brecq"}  # whose steps carry the last digits of any type to the codes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_quantized_like_those_in_float32(method: str, dtype: torch.dtype) -> None:
    network = seeded(convolutional).to(torch.bfloat16).float()  # weights that all types hold
    images = noise(64, 8, 6, 6).to(torch.bfloat16).float()
    options = {"iterations": 50} if "iterations" in METHODS[method].options else {}
    recipe = Recipe(bits=4, method=method, options=options)
    plain = quantize(network, images, recipe)
    result = quantize(copy.deepcopy(network).to(dtype), images.to(dtype), recipe)
    assert {p.dtype for p in result.network.parameters()} == {dtype}
    for ours, theirs in zip(result.layers, plain.layers, strict=True):
        if dtype == torch.float64 and method not in BY_GRADIENTS:
            assert (ours.codes == theirs.codes).double().mean() > 0.95, ours.name
        weight = result.network.get_parameter(ours.parameter)
        assert torch.equal(weight, ours.alphabet.decode(ours.codes).to(dtype))
    assert result.relative_error == pytest.approx(plain.relative_error, rel=0.3)


def test_batches_with_other_numbers_of_rows_count_all_of_them() -> None:
    """Sequences of 3 and of 9 rows, in batches of their own, and pictures of two sizes."""
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    short, long = noise(4, 3, 5), noise(4, 9, 5, seed=1)
    rows = torch.cat([short.flatten(0, 1), long.flatten(0, 1)])
    for form in ("residual", "covariance"):
        recipe = Recipe(bits=2, options={"form": form})  # type: ignore[arg-type]
        found, expected = quantize(network, [short, long], recipe), quantize(network, [rows], recipe)
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(found.layers, expected.layers, strict=True))
        assert found.relative_error == pytest.approx(expected.relative_error, rel=1e-9)
    pooled = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    )
    sizes = [noise(3, 3, 5, 6), noise(2, 3, 9, 7, seed=1)]
    patches = torch.cat([F.unfold(t, 3).transpose(1, 2).flatten(0, 1) for t in sizes])
    alone = nn.Sequential(nn.Linear(27, 4)).double()
    alone[0].weight.data, alone[0].bias.data = pooled[0].weight.data.flatten(1), pooled[0].bias.data
    for recipe in (
        Recipe(bits=2),
        Recipe(bits=2, options={"form": "covariance"}),
        Recipe(bits=2, method="gptq"),
    ):
        expected_codes = quantize(alone, [patches], recipe).layers[0].codes
        assert torch.equal(quantize(pooled, sizes, recipe).layers[0].codes.flatten(1), expected_codes)


def test_a_network_with_hooks_runs_with_them() -> None:
    network, images = seeded(Twice), noise(6, 4, 6, 6)
    plain = quantize(network, images, Recipe(bits=3))
    hooked = copy.deepcopy(network)
    hooked.conv.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    with pytest.warns(UserWarning, match="module conv has hooks"):
        result = quantize(hooked, images, Recipe(bits=3))
    assert result.relative_error != plain.relative_error
    real = error(outputs_of(hooked, images), outputs_of(result.network, images))
    assert result.relative_error == pytest.approx(real, rel=1e-6)


def test_values_that_are_no_numbers_are_named() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        network = seeded(Twice)
        network.conv.weight.data[0, 0, 0, 0] = bad
        with pytest.raises(QuantizationError, match="layer conv: weights are not finite"):
            quantize(network, noise(2, 4, 6, 6), Recipe())
        network = seeded(Twice)
        network.conv.bias.data[0] = bad
        with pytest.raises(QuantizationError, match="outputs of layer conv are not finite"):
            quantize(network, noise(2, 4, 6, 6), Recipe())


def test_a_graph_is_made_where_there_is_one() -> None:
    for make, shape in NETWORKS.values():
        assert isinstance(trace(seeded(make), batch_of(noise(*shape))), Graph)


class Square(nn.Module):
    """Takes pictures of one size alone, and says so deep inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        torch._assert(y.shape[2] == 2, f"the height {y.shape[2]} is not 2")
        return self.head(y.flatten(1))


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_fails_on_the_images_is_told_in_a_line(way: str) -> None:
    network = seeded(Square)
    with (
        by(way),
        pytest.raises(QuantizationError, match="the network cannot be run on .* is not 2") as caught,
    ):
        quantize(network, noise(4, 3, 5, 5), Recipe())
    assert "\n" not in str(caught.value)
    # An exported graph is one of the first images' size.
    told = "later ones of" if way == "export" else "the network cannot be run on .* is not 2"
    with by(way), pytest.raises(QuantizationError, match=told):
        quantize(network, [noise(4, 3, 4, 4), noise(4, 3, 6, 6)], Recipe())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "layer"), [("tied", "first"), ("keywords", "weight")])
def test_a_bias_that_cannot_be_corrected_is_told_in_a_line(way: str, name: str, layer: str) -> None:
    make, shape = NETWORKS[name]
    with (
        by(way),
        pytest.raises(QuantizationError, match=f"bias_correction: the calls of layer {layer} add no"),
    ):
        quantize(seeded(make), noise(*shape), Recipe(bias_correction=True))
