"""Whole networks: every layer quantized, from the inputs that it really gets."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from laq.network.zoo import ZOO, Design, build
from laq.quantization import (
    QuantizationError,
    Recipe,
    gpfq,
    layer_names,
    make_alphabet,
    quantize,
    restore,
    to_tensors,
)
from laq.quantization.patches import input_rows

SMALLEST_SIDE = {"alexnet": 64, "vgg16": 32, "vgg16_bn": 32}


def classifier(architecture: str, classes: int = 10) -> nn.Module:
    side = SMALLEST_SIDE.get(architecture, 40)
    return build(Design(architecture, classes, side, (0.5,) * 3, (0.25,) * 3), seed=1)


def pixels(count: int = 4) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()


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


@pytest.mark.parametrize("architecture", sorted(ZOO))
def test_no_layer_of_the_zoo_is_left_unquantized(architecture: str) -> None:
    network = classifier(architecture)
    result = quantize(network, pixels(2), Recipe(bits=3, retain_rate=0.05))
    assert {layer.name for layer in result.layers} == set(layer_names(network))
    for layer in result.layers:
        assert layer.codes.min() >= -3
        assert layer.codes.max() <= 3
        weight = result.network.get_submodule(layer.name).weight
        assert torch.equal(weight, layer.codes * layer.step), layer.name


@pytest.mark.parametrize("method", ["rtn", "gpfq"])
def test_lockstep_equals_running_both_networks_up_to_each_layer(method: str) -> None:
    network = Tricky().eval()
    images = torch.randn(6, 4, 10, 10, generator=torch.Generator().manual_seed(4))
    result = quantize(network, images, Recipe(bits=3, method=method))  # type: ignore[arg-type]
    by_layer = copy.deepcopy(network)
    for name in ("first", "depthwise", "shared", "head"):
        inputs, inputs_q = (first_input(net, name, images) for net in (network, by_layer))
        layer = by_layer.get_submodule(name)
        layer.weight.data = one_layer(layer, inputs, inputs_q, method)
    for (name, expected), found in zip(
        by_layer.state_dict().items(), result.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, msg=name)


def first_input(network: nn.Module, name: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        network(images.clone())
    hook.remove()
    return seen[0]


def one_layer(layer: nn.Module, inputs: Tensor, inputs_q: Tensor, method: str) -> Tensor:
    """Quantize group by group, with torch's own unfold as the source of patches."""
    groups = getattr(layer, "groups", 1)
    X, X_q = (unfolded(layer, t) for t in (inputs, inputs_q))
    parts = []
    for W, x, x_q in zip(
        layer.weight.detach().flatten(1).chunk(groups), X.chunk(groups, 1), X_q.chunk(groups, 1), strict=True
    ):
        alphabet = make_alphabet(W, "symmetric", 3)
        codes = alphabet.encode(W)
        if method == "gpfq":
            codes = gpfq(W[None], x[None], x_q[None], alphabet.view(1, *W.shape))[0]
        parts.append(alphabet.decode(codes))
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
    rows = input_rows(conv, 1.0, torch.Generator())(inputs)
    by_rows = rows @ conv.weight.view(2, 2, -1).mT
    truth = conv(inputs).permute(0, 2, 3, 1).reshape(-1, 2, 2).transpose(0, 1)
    torch.testing.assert_close(by_rows, truth, rtol=1e-4, atol=1e-5)
    sampled = input_rows(conv, 0.25, torch.Generator())
    assert sampled(inputs).shape[1] == round(0.25 * rows.shape[1])
    assert torch.equal(sampled(inputs), sampled(inputs))


def test_reported_error_and_sparsity_are_the_measured_ones() -> None:
    network, images = Tricky().eval(), torch.randn(6, 4, 10, 10)
    result = quantize(network, images, Recipe(bits=3))
    for layer in result.layers:
        outputs = [
            net.get_submodule(layer.name)(first_input(net, layer.name, images))
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


def test_stored_tensors_restore_the_network_bit_for_bit() -> None:
    network = classifier("mobilenet_v2")
    for bits in (3, 12):
        result = quantize(network, pixels(), Recipe(bits=bits, retain_rate=0.2))
        tensors, copied = to_tensors(result), copy.deepcopy(network)
        restore(copied, tensors)
        assert torch.equal(copied(pixels()), result.network(pixels()))
        kinds = {t.dtype for name, t in tensors.items() if name.startswith("codes:")}
        assert kinds <= ({torch.int8} if bits == 3 else {torch.int8, torch.int16})


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


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_what_cannot_be_quantized_is_named() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(QuantizationError, match="never run, so not quantized: spare"):
        quantize(Unused(), x, Recipe())
    assert len(quantize(Unused(), x, Recipe(ignore=("spare",))).layers) == 1
    with pytest.raises(QuantizationError, match="'nothing' matches no layer; layers: used, spare"):
        quantize(Unused(), x, Recipe(ignore=("nothing",)))
    with pytest.raises(QuantizationError, match="cannot trace"):
        quantize(Branching(), x, Recipe())
    with pytest.raises(QuantizationError, match="layer used: outputs are not finite") as caught:
        quantize(Unused(), torch.full((4, 3), torch.nan), Recipe(ignore=("spare",)))
    assert "\n" not in str(caught.value)
    with pytest.raises(QuantizationError, match="no layer to quantize"):
        quantize(Unused(), x, Recipe(ignore=("*",)))


class OwnPadding(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        return super().forward(F.pad(input, (1, 1, 1, 1)))


def test_layers_that_compute_in_their_own_way_are_refused_by_name() -> None:
    network, images = nn.Sequential(OwnPadding(3, 4, 3), nn.Conv2d(4, 2, 3)), torch.randn(2, 3, 6, 6)
    with pytest.raises(QuantizationError, match="layer 0: OwnPadding computes in its own way"):
        quantize(network, images, Recipe())
    assert [layer.name for layer in quantize(network, images, Recipe(ignore=("0",))).layers] == ["1"]
