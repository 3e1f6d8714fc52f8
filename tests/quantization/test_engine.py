"""Whole networks: every layer quantized, from the inputs that it really gets."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from laq.quantization import (
    METHODS,
    AlphabetSpec,
    QuantizationError,
    QuantizedNetwork,
    Recipe,
    choose_bits,
    layer_names,
    make_alphabet,
    quantize,
    quantize_each,
)
from laq.quantization.alphabet import ERROR_RADII
from laq.quantization.bits.spec import Budget, Precision
from laq.quantization.calibration.covariance import Inputs, choose_form
from laq.quantization.calibration.patches import Patches, Sampler
from laq.quantization.execution.offload import INPUTS, Offload
from laq.quantization.methods.solve import RoundedWeights, solve
from laq.quantization.threads import worker_pool
from tests.conftest import Branching
from tests.quantization.operations import operation_of_module
from tests.quantization.test_methods import column_loop
from tests.quantization.zoo import ARCHITECTURES, classifier, pixels


class Tricky(nn.Module):
    """Groups, depthwise, strides, dilation, padding modes, in-place operations, sharing, branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8, bias=False)
        self.shared = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), padding_mode="reflect")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        y = F.relu(self.first(x), inplace=True)
        z = self.shared(y)
        z += self.shared(self.depthwise(y))
        return self.head(torch.cat([y, z], 1).mean((2, 3)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_layer_of_the_zoo_is_left_unquantized(architecture: str) -> None:
    network = classifier(architecture)
    result = quantize(network, pixels(2), Recipe(bits=3, method="rtn"))
    assert {layer.name for layer in result.layers} == set(layer_names(network, pixels(1)))
    for layer in result.layers:
        assert layer.codes.min() >= -3
        assert layer.codes.max() <= 3
        weight = result.network.get_submodule(layer.name).weight
        assert torch.equal(weight, layer.alphabet.decode(layer.codes)), layer.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lockstep_equals_layer_by_layer_on_every_zoo_network(architecture: str) -> None:
    network = classifier(architecture)
    recipe = Recipe(bits=3, retain_rate=0.05)
    result = quantize(network, pixels(2), recipe)
    assert {layer.name for layer in result.layers} == set(layer_names(network, pixels(1)))
    for layer in result.layers:
        assert layer.codes.min() >= -3
        assert layer.codes.max() <= 3
        weight = result.network.get_submodule(layer.name).weight
        assert torch.equal(weight, layer.alphabet.decode(layer.codes)), layer.name
    # The seed of a layer's patches comes from its name.
    by_layer = as_layerwise(network, pixels(2), recipe)
    assert [layer.name for layer in by_layer.layers] == [layer.name for layer in result.layers]
    for ours, theirs in zip(result.layers, by_layer.layers, strict=True):
        assert torch.equal(ours.codes, theirs.codes), ours.name
        assert ours.relative_error == theirs.relative_error
    assert result.relative_error == by_layer.relative_error


def as_layerwise(network: nn.Module, images: Tensor, recipe: Recipe) -> QuantizedNetwork:
    """Quantize as if torch.fx had failed."""
    with untraceable():
        return quantize(network, images, recipe)


@contextmanager
def untraceable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laq.quantization.engine.trace", lambda *_: "no luck")
        with pytest.warns(UserWarning, match="no graph .* of its own"):
            yield


def tricky() -> nn.Module:
    """In float64, where no tie falls this way or that."""
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(11)
    network = Tricky().double().eval()
    torch.random.set_rng_state(torch_state)
    return network


def noise(images: int) -> Tensor:
    return torch.randn(images, 4, 10, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("method", ["rtn", "gpfq"])
def test_lockstep_equals_running_both_networks_up_to_each_layer(method: str) -> None:
    network = tricky()
    images = noise(6)
    result = quantize(network, images, Recipe(bits=3, method=method, batch_size=4))  # type: ignore[arg-type]
    by_layer = copy.deepcopy(network)
    for name in ("first", "shared", "depthwise", "head"):  # of two calls, the first one counts
        inputs, inputs_q = (calls_of(net, name, images)[0] for net in (network, by_layer))
        layer = by_layer.get_submodule(name)
        layer.weight.data = one_layer(layer, inputs, inputs_q, method)
    for (name, expected), found in zip(
        by_layer.state_dict().items(), result.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, msg=name)


def calls_of(network: nn.Module, name: str, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs and the outputs of all calls of a module."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    module = network.get_submodule(name)
    hooks = [
        module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone())),
        module.register_forward_hook(lambda _, args, output: outputs.append(output.clone())),
    ]
    with torch.no_grad():
        network(images.clone())
    for hook in hooks:
        hook.remove()
    return inputs, outputs


def one_layer(layer: nn.Module, inputs: list[Tensor], inputs_q: list[Tensor], method: str) -> Tensor:
    """Quantize group by group, with torch's own unfold as the source of the patches of all calls."""
    groups = getattr(layer, "groups", 1)
    X, X_q = (torch.cat([unfolded(layer, t) for t in calls]) for calls in (inputs, inputs_q))
    parts = []
    for W, x, x_q in zip(
        layer.weight.detach().flatten(1).chunk(groups), X.chunk(groups, 1), X_q.chunk(groups, 1), strict=True
    ):
        alphabet = make_alphabet(W[None], AlphabetSpec(bits=3))
        codes = alphabet.encode(W[None])
        if method == "gpfq":
            step = alphabet.with_step(alphabet.step[0])
            codes = column_loop(W, x, x_q, step)[None]
        parts.append(alphabet.decode(codes)[0])
    return torch.cat(parts).view_as(layer.weight)


def unfolded(layer: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return inputs
    assert isinstance(layer, nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    columns = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def test_patches_times_weights_are_the_convolution() -> None:
    conv = nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2, bias=False)
    inputs = torch.randn(3, 6, 9, 8).contiguous(memory_format=torch.channels_last)
    operation = operation_of_module(conv)
    columns = written(operation.patches(inputs, inputs, Sampler(1.0, 0, "conv").places_from(0)))
    by_columns = conv.weight.detach().view(2, 2, -1) @ columns
    truth = conv(inputs).detach().transpose(0, 1).reshape(2, 2, -1)
    torch.testing.assert_close(by_columns, truth, rtol=1e-4, atol=1e-5)
    sampler = Sampler(0.25, 0, "conv")
    kept = operation.patches(inputs, inputs, sampler.places_from(0))
    assert kept.m == 3 * round(0.25 * 5 * 8)
    assert torch.equal(written(kept), written(operation.patches(inputs, inputs, sampler.places_from(0))))
    last_two = operation.patches(inputs[1:], inputs[1:], sampler.places_from(1))
    assert torch.equal(written(kept)[..., 10:], written(last_two))
    assert torch.equal(written(kept.of_images(1, 3)), written(last_two))


def written(patches: Patches) -> Tensor:
    groups, d = patches.X.shape[0], patches.X.shape[1:4].numel()
    out = torch.empty(groups, d, patches.m)
    patches.write(patches.X, slice(None), slice(0, d), out)
    return out


def test_reported_error_and_sparsity_are_the_measured_ones() -> None:
    network, images = tricky(), noise(6)
    result = quantize(network, images, Recipe(bits=3))
    for layer in result.layers:
        outputs = [
            torch.cat([t.flatten() for t in calls_of(net, layer.name, images)[1]])
            for net in (network, result.network)
        ]
        assert layer.relative_error == pytest.approx(
            ((outputs[0] - outputs[1]).norm() / outputs[0].norm()).item(), rel=1e-4
        )
        assert layer.sparsity == (result.network.get_submodule(layer.name).weight == 0).double().mean().item()
    assert 0 < result.sparsity < 1
    with torch.no_grad():
        logits = [net(images.clone()) for net in (network, result.network)]
    assert result.relative_error == pytest.approx(
        ((logits[0] - logits[1]).norm() / logits[0].norm()).item(), rel=1e-4
    )


def test_the_callers_network_and_images_are_left_untouched() -> None:
    network, images = Tricky().train(), torch.randn(2, 4, 8, 8)
    state, before = copy.deepcopy(network.state_dict()), images.clone()
    result = quantize(network, images, Recipe(bits=2, ignore=("head",)))
    assert network.training
    assert torch.equal(images, before)
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())
    assert torch.equal(result.network.head.weight, network.head.weight)


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_of_the_caller_changes_nothing(method: str) -> None:
    recipe = Recipe(bits=3, method=method)  # type: ignore[arg-type]
    found = []
    for mode in (False, True):
        with torch.random.fork_rng(), torch.inference_mode(mode=mode):
            torch.manual_seed(0)
            network, images = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(8, 4)
            found.append(quantize(network, images, recipe))
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(*(r.layers for r in found), strict=True))
    assert found[0].relative_error == found[1].relative_error
    assert not any(parameter.is_inference() for parameter in found[1].network.parameters())


@torch.inference_mode()
def test_nor_does_it_in_choosing_bits_of_layers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    images, precision = torch.randn(4, 1, 2, 2), Precision(Budget(mean=3), choices=(2, 4))
    for fuse in (False, True):
        bits = choose_bits(precision, network, images, Recipe(method="gpfq", fuse=fuse))
        assert list(bits) == layer_names(network, images) == ["0", "3"]


@pytest.mark.parametrize("method", METHODS)
def test_the_outcome_depends_neither_on_threads_nor_on_how_often(method: str) -> None:
    options = {"iterations": 10} if "iterations" in METHODS[method].options else {}
    recipe = Recipe(bits=3, method=method, batch_size=2, options=options)  # type: ignore[arg-type]
    network, before, results = classifier("resnet20"), torch.get_num_threads(), []
    for threads in (1, 2, 5, 5):
        torch.set_num_threads(threads)
        results.append(quantize(network, pixels(7), recipe))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    state = results[0].network.state_dict()
    for result in results[1:]:
        assert all(torch.equal(t, state[name]) for name, t in result.network.state_dict().items())
        assert [layer.relative_error for layer in result.layers] == [
            layer.relative_error for layer in results[0].layers
        ]


@pytest.mark.parametrize("form", ["residual", "covariance"])
def test_batches_of_any_size_and_streams_of_them_give_the_same_codes(form: str) -> None:
    network, images = tricky(), noise(7)
    recipe = Recipe(bits=3, options={"form": form}, retain_rate=0.7)
    whole = quantize(network, images, recipe)
    streams = (images, (images[i : i + 1] for i in range(7)), [images[:5], images[5:]])
    for stream in streams:
        result = quantize(network, stream, replace(recipe, batch_size=3))
        for ours, theirs in zip(result.layers, whole.layers, strict=True):
            assert torch.equal(ours.codes, theirs.codes)
        assert result.relative_error == pytest.approx(whole.relative_error, rel=1e-9)


def test_what_does_not_fit_into_memory_goes_through_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network, images = tricky(), noise(6)
    for form in ("residual", "covariance"):
        recipe = Recipe(bits=3, batch_size=2, options={"form": form})
        held, spilled = (quantize(network, images, replace(recipe, memory_gib=m)) for m in (1.0, 0.0))
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(held.layers, spilled.layers, strict=True))
    assert list(tmp_path.iterdir()) == []


def various(network: nn.Module, **shared: Any) -> list[Recipe]:
    """Recipes that differ in all that those of one pass may differ in."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [
        Recipe(bits=3, **shared),
        Recipe(bits={name: 2 + i % 3 for i, name in enumerate(names)}, bias_correction=True, **shared),
        Recipe(
            bits=2,
            method="rtn",
            alphabet="midrise",
            granularity="layer",
            radius=1.0,
            bias_correction=True,
            **shared,
        ),
        Recipe(method="gpfq_l0", options={"threshold": 0.9, "form": "covariance"}, percentile=0.99, **shared),
        Recipe(method="sgpfq", retain_rate=0.4, options={"form": "residual"}, seed=5, **shared),
    ]


def assert_equal(result: QuantizedNetwork, expected: QuantizedNetwork) -> None:
    """All but the seconds, to the bit."""
    assert result.recipe == expected.recipe
    assert (result.folded, result.calibration) == (expected.folded, expected.calibration)
    assert result.relative_error == expected.relative_error
    state = expected.network.state_dict()
    assert result.network.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in result.network.state_dict().items())
    for ours, theirs in zip(result.layers, expected.layers, strict=True):
        assert torch.equal(ours.codes, theirs.codes), ours.name
        assert torch.equal(ours.alphabet.step, theirs.alphabet.step)
        for field in ("name", "bits", "levels", "relative_error", "flops"):
            assert getattr(ours, field) == getattr(theirs, field)


def assert_each_as_alone(network: nn.Module, images: Tensor, recipes: Sequence[Recipe]) -> None:
    results = quantize_each(network, images, recipes)
    for result, recipe in zip(results, recipes, strict=True):
        assert_equal(result, quantize(network, images, recipe))


@pytest.mark.parametrize("architecture", ["resnet20", "googlenet"])
def test_several_recipes_in_one_pass_give_what_each_gives_alone(architecture: str) -> None:
    network = classifier(architecture)
    recipes = various(network, fuse=True, batch_size=2, ignore=("body.fc",))
    assert_each_as_alone(network, pixels(3), recipes[:3] if architecture == "googlenet" else recipes)


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
@pytest.mark.parametrize("traced", [True, False])
def test_so_they_do_layer_by_layer_in_place_and_through_files(traced: bool, memory_gib: float) -> None:  # noqa: FBT001
    network, images = tricky(), noise(5)
    before = images.clone()
    with nullcontext() if traced else untraceable():
        assert_each_as_alone(network, images, various(network, batch_size=2, memory_gib=memory_gib))
    assert torch.equal(images, before)


def test_so_they_do_with_any_number_of_threads() -> None:
    network, before, results = classifier("resnet20"), torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(quantize_each(network, pixels(5), various(network, batch_size=2)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert_equal(three, one)


IMAGES_SEEN: dict[int, int] = {}  # by the copy of the network; the analog one is the first to be run


@torch.fx.wrap
def count_images(x: Tensor, of: Tensor) -> Tensor:
    IMAGES_SEEN[id(of)] = IMAGES_SEEN.get(id(of), 0) + len(x)
    return x


class Counted(nn.Module):
    """Counts the images that it is run on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mark", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(count_images(x, self.mark))


def named_as_in_counted(recipe: Recipe) -> Recipe:
    if isinstance(recipe.bits, int):
        return recipe
    return replace(recipe, bits={f"network.{name}": bits for name, bits in recipe.bits.items()})


@pytest.mark.parametrize("traced", [True, False])
def test_the_analog_network_runs_once_for_all_recipes(traced: bool) -> None:  # noqa: FBT001
    network, images = tricky(), noise(5)
    runs = []
    counted = Counted(network)
    for recipes in (various(network, batch_size=2), various(network, batch_size=2)[:1]):
        IMAGES_SEEN.clear()
        with nullcontext() if traced else untraceable():
            quantize_each(counted, images, [named_as_in_counted(recipe) for recipe in recipes])
        assert len(IMAGES_SEEN) == 1 + len(recipes)
        runs.append(next(iter(IMAGES_SEEN.values())))
    assert runs[0] == runs[1]
    if traced:
        assert runs[0] == len(images)


def test_recipes_of_one_pass_agree_in_what_it_depends_on() -> None:
    network, images = tricky(), noise(2)
    for option, other in (("batch_size", 3), ("ignore", ("head",)), ("fuse", True), ("memory_gib", 1.5)):
        recipes = [Recipe(), Recipe(bits=2), replace(Recipe(), **{option: other})]  # type: ignore[arg-type]
        with pytest.raises(
            QuantizationError, match=f"^{option}: recipes of one pass must agree; found "
        ) as e:
            quantize_each(network, images, recipes)
        assert str(e.value).endswith(f"{getattr(Recipe(), option)!r} and {other!r}")
    assert quantize_each(network, images, []) == ()
    with pytest.raises(QuantizationError, match="bits: no entry for depthwise, head, shared"):
        quantize_each(network, images, [Recipe(), Recipe(bits={"first": 3})])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("traced", [True, False])
def test_a_recipe_that_fails_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    traced: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network, images, threads = Tricky().train(), torch.randn(5, 4, 8, 8), torch.get_num_threads()
    state, before = copy.deepcopy(network.state_dict()), images.clone()

    def fail_in_the_middle(name: str, W: Tensor, inputs: Inputs, recipe: Recipe) -> RoundedWeights:
        if (name, recipe.bits) == ("shared", 3):
            raise QuantizationError("enough")
        return solve(name, W, inputs, recipe)

    monkeypatch.setattr("laq.quantization.engine.solve", fail_in_the_middle)
    recipes = [Recipe(bits=bits, memory_gib=0.0) for bits in (2, 3, 4)]
    with nullcontext() if traced else untraceable(), pytest.raises(QuantizationError, match="enough"):
        quantize_each(network, images, recipes)
    assert network.training
    assert torch.get_num_threads() == threads
    assert torch.equal(images, before)
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_shared_memory_counts_once_and_a_part_is_filed_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x, large = torch.arange(20.0), torch.arange(100_000.0)
    with Offload(memory=120) as shelf:
        shelf.put((0, 0), {"x": x, "same": x, "views": (x.view(4, 5), [x[:10]])})  # 80 bytes
        shelf.put((0, 1), {"x": large[:10], "y": None})  # 40 more
        assert list(tmp_path.glob("*/*")) == []
        shelf.put((1, INPUTS), {"images": large[10:20]})
        (file,) = tmp_path.glob("*/*")
        assert file.stat().st_size < large.nbytes / 50
        assert torch.equal(shelf.take((1, INPUTS))["images"], large[10:20])
        assert not file.exists()


def test_activations_are_forgotten_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    put = Offload.put

    def counted(shelf: Offload, key: tuple[int, int], values: dict[str, object]) -> None:
        kept.append(len(values))
        put(shelf, key, values)

    monkeypatch.setattr(Offload, "put", counted)
    quantize(classifier("resnet20"), pixels(), Recipe(bits=3))
    assert max(kept) == 2  # a block's input and what is being computed of it
    assert len(kept) > 20


def test_the_form_follows_cost_and_memory() -> None:
    with worker_pool() as pool:
        tall = Inputs.of_rows(torch.ones(1, 4000, 200), torch.ones(1, 4000, 200), pool)
        assert choose_form(tall, 80, 1e9) == "residual"
        assert choose_form(tall, 1000, 1e9) == "covariance"
        need_residual, need_covariance = 4 * (80 + 2 * 200 + 2) * 4000, 24 * 200**2
        assert need_covariance < need_residual
        assert choose_form(tall, 80, need_residual - 1) == "covariance"
        wide = Inputs.of_rows(torch.ones(1, 100, 2000), torch.ones(1, 100, 2000), pool)
        assert choose_form(wide, 30000, 1e12) == "residual"
        assert choose_form(wide, 30000, 5e7) == "residual"


def test_folded_batch_norms_leave_the_same_function() -> None:
    network = classifier("resnet20")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.weight.data.uniform_(0.5, 2)
    result = quantize(network, pixels(), Recipe(bits=16, fuse=True))
    assert len(result.folded) == sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.network.modules())
    with torch.no_grad():
        torch.testing.assert_close(result.network(pixels()), network(pixels()), rtol=1e-2, atol=1e-2)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    with pytest.raises(QuantizationError, match="fuse: the network has no graph"):
        quantize(Branching(), torch.randn(4, 3), Recipe(fuse=True))


def test_a_corrected_bias_keeps_the_mean_outputs() -> None:
    network, images = tricky(), noise(6)
    result = quantize(network, images, Recipe(bits=2, method="rtn", bias_correction=True, batch_size=4))
    for name in ("first", "depthwise", "head"):
        means = [
            calls_of(net, name, images)[1][0].transpose(0, 1).flatten(1).mean(1)
            for net in (network, result.network)
        ]
        torch.testing.assert_close(means[0], means[1])
    assert result.network.depthwise.bias is not None
    assert network.depthwise.bias is None


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_the_radius_of_least_error_beats_any_fixed_one(granularity: str) -> None:
    """With one layer alone, where every radius sees the same inputs."""
    network, images = nn.Sequential(nn.Linear(40, 12)).double(), torch.randn(300, 40, dtype=torch.float64)
    for method in ("rtn", "gpfq", "qronos"):
        recipe = Recipe(bits=2, method=method, granularity=granularity, radius="error")  # type: ignore[arg-type]
        best = quantize(network, images, recipe).relative_error
        fixed = [quantize(network, images, replace(recipe, radius=r)).relative_error for r in ERROR_RADII]
        assert best <= min(fixed) + 1e-9
        assert best < max(fixed)


def test_bits_may_differ_by_layer() -> None:
    network = classifier("resnet20")
    bits = {name: 2 + i % 3 for i, name in enumerate(layer_names(network, pixels(1)))}
    result = quantize(network, pixels(), Recipe(bits=bits))
    assert {layer.name: layer.bits for layer in result.layers} == bits
    assert [layer.levels for layer in result.layers[:3]] == [2**b - 1 for b in list(bits.values())[:3]]
    assert 2 < result.mean_bits < 4
    with pytest.raises(QuantizationError, match="bits: no entry for body.fc"):
        quantize(network, pixels(), Recipe(bits={n: b for n, b in bits.items() if n != "body.fc"}))


def test_the_same_seed_gives_the_same_codes_and_another_one_does_not() -> None:
    network = classifier("resnet20")
    runs = [quantize(network, pixels(), Recipe(bits=3, retain_rate=0.3, seed=seed)) for seed in (0, 0, 1)]
    codes = [torch.cat([layer.codes.flatten() for layer in run.layers]) for run in runs]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_what_cannot_be_quantized_is_named() -> None:
    x = torch.randn(4, 3)
    with pytest.warns(UserWarning, match=r"not quantized: spare \(6 weights\): the network never reads it"):
        result = quantize(Unused(), x, Recipe())
    assert [layer.name for layer in result.layers] == ["used"]
    assert result.not_quantized[0].name == "spare"
    assert quantize(Unused(), x, Recipe(ignore=("spare",))).not_quantized == result.not_quantized
    with pytest.raises(QuantizationError, match="'nothing' matches no layer; layers: used, spare"):
        quantize(Unused(), x, Recipe(ignore=("nothing",)))
    with pytest.raises(QuantizationError, match="layer layer: some images do not reach it"), pytest.warns():
        quantize(Branching(), torch.tensor([[1.0, 1, 1], [-1, -1, -1]]), Recipe(batch_size=1))
    bad = x.clone()
    bad[2, 1] = torch.inf
    with pytest.raises(QuantizationError, match="calibration image 2 holds values that are not finite"):
        quantize(Unused(), bad, Recipe(ignore=("spare",), batch_size=2))
    with pytest.raises(QuantizationError, match="no calibration images"):
        quantize(Unused(), x[:0], Recipe(ignore=("spare",)))
    broken = Unused()
    broken.used.weight.data[0, 0] = torch.nan
    with pytest.raises(QuantizationError, match="layer used: weights are not finite"):
        quantize(broken, x, Recipe(ignore=("spare",)))
    broken.used.weight.data[0, 0] = 1e38
    with pytest.raises(QuantizationError, match="outputs of layer used are not finite") as caught:
        quantize(broken, 100 * x.abs() + 100, Recipe(ignore=("spare",)))
    assert "\n" not in str(caught.value)
    with pytest.raises(QuantizationError, match="no layer to quantize: the network has none"):
        quantize(nn.Sequential(nn.BatchNorm1d(3)), x, Recipe())
    with pytest.raises(QuantizationError, match="no layer to quantize: ignore covers them all"):
        quantize(Unused(), x, Recipe(ignore=("*",)))


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("bits", 99, "2 to 24"),
        ("bits", {"head": 1}, "2 to 24"),
        ("bits", "4", "a map of layers to such"),
        ("method", "awq", "rtn, gpfq, sgpfq"),
        ("alphabet", "ternary", "symmetric, twos_complement"),
        ("granularity", "group", "channel, layer"),
        ("radius", -0.5, "auto, mse, error, or a number above 0"),
        ("radius", "large", "auto, mse, error"),
        ("percentile", 99.0, "above 0, at most 1"),
        ("retain_rate", 0.0, "above 0, at most 1"),
        ("batch_size", 0, "a whole number above 0"),
        ("memory_gib", -1.0, "at least 0"),
        ("seed", "a", "a whole number"),
    ],
)
def test_options_that_are_none_are_named_with_what_is_allowed(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(QuantizationError) as caught:
        Recipe(**{option: value})
    assert str(caught.value).startswith(f"{option}: found {value!r}; must be ")
    assert allowed in str(caught.value)
