"""Operations as products of matrices, against torch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from laq.quantization import Recipe, make_alphabet, quantize
from laq.quantization.alphabet import AlphabetSpec
from laq.quantization.calibration.patches import Sampler
from laq.quantization.operations import OPERATIONS, Operation, arguments_of, operation_of

CONVOLUTIONS: list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    (torch.conv1d, (6, 2, 3), (3, 4, 11), {"stride": 2, "padding": 1, "groups": 2}),
    (torch.conv1d, (4, 4, 2), (2, 4, 9), {"padding": "same", "dilation": 3}),
    (torch.conv2d, (6, 2, 3, 2), (3, 4, 9, 8), {"stride": (2, 1), "padding": (1, 2), "groups": 2}),
    (torch.conv2d, (4, 4, 4, 3), (2, 4, 7, 9), {"padding": "same", "dilation": (1, 2)}),
    (torch.conv2d, (4, 4, 3, 3), (2, 4, 7, 9), {"padding": "valid"}),
    (torch.conv3d, (4, 2, 2, 3, 1), (2, 4, 5, 6, 4), {"stride": (1, 2, 1), "padding": 1, "groups": 2}),
    (torch.conv_transpose1d, (4, 3, 3), (2, 4, 5), {"stride": 2, "padding": 1, "output_padding": 1}),
    (
        torch.conv_transpose2d,
        (4, 3, 3, 2),
        (2, 4, 5, 6),
        {"stride": (3, 2), "padding": (1, 0), "dilation": 2},
    ),
    (torch.conv_transpose2d, (4, 3, 2, 2), (2, 4, 5, 6), {"padding": 1, "groups": 2}),
    (
        torch.conv_transpose3d,
        (4, 2, 2, 3, 2),
        (2, 4, 3, 4, 3),
        {"stride": 2, "output_padding": 1, "groups": 2},
    ),
]


def made(function: Callable[..., Tensor], weight: Tensor, options: dict[str, Any]) -> Operation:
    kind = operation_of(function)
    assert kind is not None
    arguments = arguments_of(function, (None, weight), options)
    return kind.of(kind.functions[function], arguments, weight)


@pytest.mark.parametrize(("function", "weights", "shape", "options"), CONVOLUTIONS)
def test_matrices_times_columns_are_what_torch_computes(
    function: Callable[..., Tensor], weights: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (weights, shape))
    operation = made(function, weight, options)
    matrices = operation.to_matrices(weight)
    patches = operation.patches(inputs, inputs, lambda _: None)
    columns = torch.empty(operation.groups, patches.columns, patches.m, dtype=torch.float64)
    patches.write(patches.X, slice(None), slice(0, patches.columns), columns)
    truth = function(inputs, weight, None, **options)
    assert operation.grid(inputs.shape) == truth.shape[:1] + truth.shape[2:]
    assert operation.kernel == torch.Size(weights[2:]).numel() == patches.kernel
    by_group = truth.transpose(0, 1).reshape(*matrices.shape[:2], -1)
    torch.testing.assert_close(matrices @ columns, by_group)
    assert torch.equal(operation.from_matrices(matrices, weight.shape), weight)
    # A lone image without a dimension for images is a batch of one.
    lone = operation.patches(inputs[0], inputs[0], lambda _: None)
    assert torch.equal(lone.X, operation.patches(inputs[:1], inputs[:1], lambda _: None).X)
    assert operation.grid(inputs[0].shape) == operation.grid(inputs[:1].shape)


@pytest.mark.parametrize(("function", "weights", "shape", "options"), CONVOLUTIONS)
def test_steps_broadcast_over_weights_as_they_lie(
    function: Callable[..., Tensor], weights: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    weight = torch.randn(weights, generator=torch.Generator().manual_seed(0))
    operation = made(function, weight, options)
    alphabet = make_alphabet(operation.to_matrices(weight), AlphabetSpec(bits=5))
    codes = alphabet.encode(operation.to_matrices(weight))
    expected = operation.from_matrices(alphabet.decode(codes), weight.shape)
    as_they_lie = alphabet.with_step(operation.step_over(alphabet.step, weight.shape))
    assert torch.equal(as_they_lie.decode(operation.from_matrices(codes, weight.shape)), expected)
    torch.testing.assert_close(expected, weight, atol=alphabet.step.max().item() / 2 + 1e-6, rtol=0)


@pytest.mark.parametrize(("function", "weights", "shape", "options"), CONVOLUTIONS)
def test_drawn_patches_are_some_of_all_and_the_same_for_any_batches(
    function: Callable[..., Tensor], weights: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    operation = made(function, torch.zeros(weights), options)
    sampler, all_places = Sampler(0.4, 0, "layer"), operation.grid(inputs.shape)

    def written(some: Tensor, first: int) -> Tensor:
        patches = operation.patches(some, some, sampler.places_from(first))
        assert patches.m == sampler.kept(operation.grid(some.shape))
        out = torch.empty(operation.groups, patches.columns, patches.m)
        patches.write(patches.X, slice(None), slice(0, patches.columns), out)
        return out

    drawn = written(inputs, 0)
    assert drawn.shape[2] == all_places[0] * round(0.4 * all_places[1:].numel())
    apart = [written(inputs[:1], 0), written(inputs[1:], 1)]
    assert torch.equal(drawn, torch.cat(apart, 2))


def test_every_operation_names_each_of_its_functions_once() -> None:
    functions = [function for kind in OPERATIONS for function in kind.functions]
    assert len(functions) == len(set(functions))
    assert operation_of(F.relu) is None
    assert operation_of("conv2d") is None


@pytest.mark.parametrize("method", ["rtn", "gpfq", "gptq", "qronos"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_many_bits_give_back_the_networks_outputs(method: str, dimensions: int, transposed: bool) -> None:  # noqa: FBT001
    torch.manual_seed(0)
    kind = f"Conv{'Transpose' * transposed}{dimensions}d"
    network = torch.nn.Sequential(
        getattr(torch.nn, kind)(4, 6, 2, stride=2, groups=2), torch.nn.ReLU()
    ).double()
    images = torch.randn(20, 4, *[5] * dimensions, dtype=torch.float64)
    result = quantize(network, images, Recipe(bits=16, method=method))  # type: ignore[arg-type]
    assert result.layers[0].operation == f"conv{'_transpose' * transposed}{dimensions}d"
    with torch.no_grad():
        truth, found = network(images), result.network(images)
    assert ((truth - found).norm() / truth.norm()).item() == pytest.approx(result.relative_error, rel=1e-6)
    assert result.relative_error < 1e-3
