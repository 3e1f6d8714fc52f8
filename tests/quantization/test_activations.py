"""Activations of few bits: rounded where integer runtimes round them, in torch as in onnxruntime."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from laq.quantization import (
    QuantizationError,
    Recipe,
    export_onnx,
    load_quantized,
    quantize,
    quantize_each,
    save,
)
from laq.quantization.activations.ranges import RANGES, ActivationGrid, Histogram
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.points import points_of, with_points
from laq.quantization.files.header import Cut
from laq.quantization.files.onnx import multiplied_in_float
from laq.quantization.files.packing import keep_rows
from tests.conftest import Branching
from tests.quantization.test_engine import one_layer
from tests.quantization.ways import assert_same, by, error, noise, seeded


class Block(nn.Module):
    """What networks are made of: a batch norm, a residual sum, pools, groups, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.third = nn.Conv2d(8, 4, 1)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(x)))
        y = F.relu(y + self.second(y))
        y = F.max_pool2d(y, 2)
        y = torch.cat([y, self.third(y)], 1)
        return self.fc(self.drop(F.adaptive_avg_pool2d(y, 1).flatten(1)))


@pytest.fixture
def block() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    network = Block()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    network.norm.running_var.fill_(0.5)
    return network.eval()


def pictures(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def samples(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(20_000, generator=generator)
    return {"normal": values, "after a relu": values.relu(), "tails": values**3, "constant": 0 * values}[kind]


@pytest.mark.parametrize("kind", ["normal", "after a relu", "tails", "constant"])
def test_histograms_of_parts_add_up_and_tell_values_to_a_hundredth(kind: str) -> None:
    X = samples(kind)
    whole = Histogram.of(X)
    one, other = (Histogram.of(part) for part in (X[:7000].half().float(), X[7000:]))
    assert torch.equal(Histogram.of(X[:7000]).plus(other).counts, whole.counts)
    assert other.plus(one).counts.equal(one.plus(other).counts)
    assert (whole.low, whole.high) == (X.min(), X.max())
    values, counts = whole.values()
    assert counts.sum() == len(X)
    found = values.repeat_interleave(counts.long())
    torch.testing.assert_close(found, X.sort().values, rtol=0.008, atol=1e-38)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "after a relu", "tails", "constant"])
def test_the_range_of_least_error_has_it_and_every_range_holds_zero(kind: str, bits: int) -> None:
    X = samples(kind)
    grids = {name: rule(Histogram.of(X), bits) for name, rule in RANGES.items()}
    errors = {name: (grid.round(X) - X).square().mean().item() for name, grid in grids.items()}
    assert errors["mse"] <= 1.03 * min(errors.values())
    for grid in grids.values():
        assert grid.highest == 2**bits - 1
        assert 0 <= grid.zero_point <= grid.highest
        assert grid.round(torch.zeros(1)).item() == 0
        assert len(grid.round(X).unique()) <= 2**bits
    if kind == "after a relu":
        assert {grid.zero_point for grid in grids.values()} == {0}


def test_the_range_by_percentiles_is_numpys_but_for_the_bins() -> None:
    X = samples("normal")
    grid = RANGES["percentile"](Histogram.of(X), 8)
    low, high = np.quantile(X.numpy(), [1e-4, 1 - 1e-4])
    assert grid.step == pytest.approx((high - low) / 255, rel=0.03)
    assert grid.zero_point == pytest.approx(-low / grid.step, rel=0.03)


def test_rounding_takes_the_nearest_value_of_the_grid() -> None:
    grid, X = ActivationGrid(0.25, 3, 15), torch.linspace(-2, 4, 600)
    values = 0.25 * (torch.arange(16) - 3)
    nearest = values[(X[:, None] - values).abs().argmin(1)]
    apart = ((X / 0.25) % 1 - 0.5).abs() > 1e-3  # where none is as near as another
    torch.testing.assert_close(grid.round(X)[apart], nearest[apart])
    assert grid.round(X.double()).dtype == torch.float64


def test_points_are_the_inputs_and_outputs_of_what_is_computed_in_integers(block: nn.Module) -> None:
    result = quantize(block, pictures(), Recipe(bits=6, activations=8))
    assert list(points_of(result.network)) == [
        "x", "relu", "conv2d_1", "relu_1", "conv2d_2", "cat", "adaptive_avg_pool2d",
    ]  # fmt: skip
    assert result.folded == ("norm",)
    assert result.on_floats == ()
    # Without grids, the graph computes what the network does.
    graph, _ = with_points(block, Batch((pictures(),)))
    assert torch.equal(graph(pictures()), block(pictures()))


def test_what_has_no_integer_form_is_named_and_rounded_before_and_behind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    result = quantize(network, pictures(), Recipe(bits=6, activations=8))
    assert list(points_of(result.network)) == ["input_1", "conv2d", "_1", "conv2d_1"]
    assert result.on_floats == ("_1",)


def test_few_bits_cost_more_than_many_and_none_cost_nothing(block: nn.Module) -> None:
    fine = {"bits": 12, "method": "rtn", "fuse": True}
    errors = [
        quantize(block, pictures(), Recipe(**fine, activations=bits)).relative_error  # type: ignore[arg-type]
        for bits in (None, 8, 6, 4, 2)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    assert errors[-1] > 0.1
    of_all = quantize(block, pictures(), Recipe(**fine, activations={"*": 4}))  # type: ignore[arg-type]
    assert of_all.relative_error == errors[3]
    some = quantize(block, pictures(), Recipe(**fine, activations={"relu*": 4, "conv2d_1": 2}))  # type: ignore[arg-type]
    grids = {name: point.grid and point.grid.highest for name, point in points_of(some.network).items()}
    assert grids == dict.fromkeys(grids) | {"relu": 15, "relu_1": 15, "conv2d_1": 3}


def test_weights_are_chosen_for_inputs_as_they_are_after_rounding() -> None:
    """GPFQ by its textbook loop, layer after layer, with rounded activations of the quantized network."""
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double().eval()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    X = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    result = quantize(network, X, Recipe(bits=3, method="gpfq", activations=3))
    first, second = network[0], network[2]
    of_inputs, of_hidden = (point.grid for point in points_of(result.network).values())
    assert of_inputs is not None
    assert of_hidden is not None
    X_q = of_inputs.round(X)
    hidden = F.relu(first(X))
    first.weight.data = one_layer(first, [X], [X_q], "gpfq")
    second.weight.data = one_layer(second, [hidden], [of_hidden.round(F.relu(first(X_q)))], "gpfq")
    torch.testing.assert_close(result.network.get_parameter("0.weight"), first.weight)
    torch.testing.assert_close(result.network.get_parameter("2.weight"), second.weight)


@pytest.mark.parametrize("bits", [8, {"relu*": 3, "*": 7}, {"cat": 5}])
def test_a_packed_file_gives_the_same_network_back(block: nn.Module, bits: Any, tmp_path: Path) -> None:
    result = quantize(block, pictures(), Recipe(bits=5, activations=bits))
    save(tmp_path / "packed", result)
    again = load_quantized(tmp_path / "packed", Block())
    assert torch.equal(again.network(pictures()), result.network(pictures()))
    assert again.recipe == result.recipe
    assert again.inputs == result.inputs
    save(tmp_path / "again", again)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "packed").read_bytes()
    cut = keep_rows(result, Cut("fc", (1, 4)))
    save(tmp_path / "cut", result, cut=Cut("fc", (1, 4)))
    few = load_quantized(tmp_path / "cut", Block()).network(pictures())
    assert torch.equal(few, cut.network(pictures()))
    torch.testing.assert_close(few, result.network(pictures())[:, [1, 4]])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("step", lambda t: t[:-1]),
        ("step", lambda t: -t),
        ("step", lambda t: t * float("nan")),
        ("zero_point", lambda t: t.int()),
        ("highest", lambda t: t // 200),
    ],
)
def test_damaged_grids_are_told_in_a_line(block: nn.Module, tmp_path: Path, name: str, change: Any) -> None:
    save(tmp_path / "packed", quantize(block, pictures(), Recipe(bits=5, activations=8)))
    tensors = load_file(tmp_path / "packed")
    key = f"activations:{name}"
    from safetensors import safe_open

    with safe_open(tmp_path / "packed", "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, key: change(tensors[key]).contiguous()}, tmp_path / "damaged", metadata)
    with pytest.raises(QuantizationError, match="damaged; write the file again") as caught:
        load_quantized(tmp_path / "damaged", Block())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("groups", [1, 2])
def test_layers_without_a_bias_get_one_for_its_correction(groups: int, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
        )

    torch.manual_seed(4)
    network, shared = make().eval(), {"bits": 3, "method": "rtn", "activations": 8}
    results = [
        quantize(network, pictures(), Recipe(**shared, bias_correction=corrects))  # type: ignore[arg-type]
        for corrects in (False, True)
    ]
    means = [
        (result.network(pictures()) - network(pictures())).mean((0, 2, 3)).abs().max() for result in results
    ]
    assert means[1] < 0.2 * means[0]
    assert network[0].bias is None
    save(tmp_path / "packed", results[1])
    again = load_quantized(tmp_path / "packed", make())
    assert torch.equal(again.network(pictures()), results[1].network(pictures()))


def optimized(path: Path) -> Counter[str]:
    """How often onnxruntime runs which operators of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{path}.optimized"
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(f"{path}.optimized").graph.node)


@pytest.mark.parametrize("bits", [7, 4])
def test_onnxruntime_computes_in_integers_what_torch_computes(
    block: nn.Module, bits: int, tmp_path: Path
) -> None:
    result = quantize(block, pictures(), Recipe(bits=bits, activations=8))
    export_onnx(tmp_path / "file.onnx", result, pictures())
    operators = optimized(tmp_path / "file.onnx")
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert operators["QGemm"] == 1
    assert not operators.keys() & {"Conv", "Add", "Concat", "Relu", "Gemm"}
    session = onnxruntime.InferenceSession(tmp_path / "file.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixels": pictures().numpy()})
    truth = result.network(pictures()).detach()
    # A sum that lies between two values of a grid may be rounded to the other one.
    step = max(point.grid.step for point in points_of(result.network).values() if point.grid)
    assert (torch.from_numpy(found) - truth).abs().max() < step
    assert (torch.from_numpy(found).argmax(1) == truth.argmax(1)).float().mean() > 0.9


def test_layers_whose_codes_are_no_int8_are_told(block: nn.Module) -> None:
    result = quantize(
        block, pictures(), Recipe(bits={"first": 7, "second": 4, "third": 4, "fc": 4}, activations=8)
    )
    few = [layer.name for layer in result.layers if layer.bits == 4]
    assert multiplied_in_float(result, "auto") == multiplied_in_float(result, "int8") == []
    assert multiplied_in_float(result, "int4") == few != []


class Padding(nn.Module):
    """Pads what convolutions see, as networks from TensorFlow do: before, within and more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.third = nn.Conv2d(8, 5, 3)
        self.fourth = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(F.pad(x, (0, 1, 0, 1))))
        y = F.relu6(self.second(F.pad(y, (1, 0, 2, 1))))
        z = F.pad(y, (1, 1, 1, 1))  # which two see
        return (self.third(z) + self.fourth(z)).mean((2, 3)) + self.third(
            F.pad(y, (1, 1, 1, 1), value=0.5)
        ).mean((2, 3))


def test_convolutions_pad_themselves_where_zeros_are_padded_before_them(tmp_path: Path) -> None:
    torch.manual_seed(2)
    result = quantize(Padding().eval(), pictures(), Recipe(bits=7, activations=8))
    export_onnx(tmp_path / "file.onnx", result, pictures())
    nodes = onnx.load(tmp_path / "file.onnx").graph.node
    pads = [
        list(a.ints) for node in nodes if node.op_type == "Conv" for a in node.attribute if a.name == "pads"
    ]
    assert pads[:2] == [[0, 0, 1, 1], [3, 2, 2, 1]]
    assert sum(node.op_type == "Pad" for node in nodes) == 2
    session = onnxruntime.InferenceSession(tmp_path / "file.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixels": pictures(9).numpy()})
    truth = result.network(pictures(9)).detach()
    step = max(point.grid.step for point in points_of(result.network).values() if point.grid)
    assert (torch.from_numpy(found) - truth).abs().max() < step


def test_biases_are_integers_in_the_step_of_the_products(block: nn.Module, tmp_path: Path) -> None:
    result = quantize(block, pictures(), Recipe(bits=7, activations=8))
    export_onnx(tmp_path / "file.onnx", result, pictures())
    graph = onnx.load(tmp_path / "file.onnx").graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    decoded = {
        node.output[0]: [held.get(name) for name in node.input]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3
    for node, layer in zip(convolutions, result.layers, strict=False):
        (_, X_step, _), (codes, W_step, zero), (bias, step) = (decoded[name] for name in node.input)
        assert (codes.dtype, bias.dtype) == (np.int8, np.int32)
        assert not zero.any()
        assert np.array_equal(codes, layer.codes.numpy())
        np.testing.assert_allclose(step, X_step * W_step, rtol=1e-6)
        truth = result.network.get_parameter(f"{layer.name}.bias").detach().numpy()
        assert (np.abs(bias * step - truth) <= step / 2 * 1.001).all()


def test_weights_that_overflow_without_vnni_are_refused_but_for_others(
    block: nn.Module, tmp_path: Path
) -> None:
    result = quantize(block, pictures(), Recipe(bits=8, activations=8))
    with pytest.raises(QuantizationError, match=r"layer first has 8 bits, .* quantize with at most 7 bits"):
        export_onnx(tmp_path / "file.onnx", result, pictures())
    assert not list(tmp_path.iterdir())
    export_onnx(tmp_path / "file.onnx", result, pictures(), vnni=True)
    assert optimized(tmp_path / "file.onnx")["QLinearConv"] == 3


def test_codes_of_four_bits_are_small_or_fast(block: nn.Module, tmp_path: Path) -> None:
    result = quantize(block, pictures(), Recipe(bits=4, activations=8))
    sizes = [export_onnx(tmp_path / f"{s}.onnx", result, pictures(), s) for s in ("int4", "int8", "auto")]  # type: ignore[arg-type]
    assert sizes[0] < sizes[1] == sizes[2]
    assert optimized(tmp_path / "int8.onnx")["QLinearConv"] == 3


def test_recipes_of_one_pass_may_differ_in_bits_of_activations(block: nn.Module) -> None:
    recipes = [Recipe(bits=5, activations=8), Recipe(bits=3, activations={"*": 4}, activation_range="minmax")]
    for recipe, result in zip(recipes, quantize_each(block, pictures(), recipes), strict=True):
        alone = quantize(block, pictures(), recipe)
        assert torch.equal(result.network(pictures()), alone.network(pictures()))
    with pytest.raises(QuantizationError, match="activations: recipes of one pass must all have bits"):
        quantize_each(block, pictures(), [Recipe(fuse=True), Recipe(activations=8)])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"activations": 9},
            "activations: found 9; must be none, a whole number from 2 to 8, a mean of these such as auto:6, or a map",
        ),
        ({"activations": {"*": 1}}, "activations: found {'*': 1}; must be none"),
        (
            {"activations": "auto:9"},
            "activations: found 'auto:9'; must be none, a whole number from 2 to 8, a mean",
        ),
        ({"activations": "6"}, "activations: found '6'; must be none"),
        ({"activations": {}}, "activations: found {}; must be none"),
        (
            {"activation_range": "mes"},
            "activation_range: found 'mes'; must be minmax, percentile, mse; did you mean mse?",
        ),
    ],
)
def test_options_that_are_not_allowed_are_told(options: dict[str, Any], line: str) -> None:
    with pytest.raises(QuantizationError) as caught:
        Recipe(**options)
    assert str(caught.value).startswith(line)


class Attentive(nn.Module):
    """A block of a transformer, which torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Sized(nn.Module):
    """Computes with sizes, calls its input as Python calls a function, and has outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(256, 3)

    def forward(self, input: Tensor, *, shift: Tensor) -> dict[str, Tensor]:  # noqa: A002
        y = F.relu(self.conv(input))
        y = y * (y.shape[2] / y.size(3)) + shift
        return {"logits": self.fc(y.view(y.size(0), y.size(1) * y.size(2) * y.size(3)))}


@pytest.mark.parametrize("make", [Block, Padding])
def test_a_graph_that_torch_exports_has_the_points_that_fx_finds(make: type[nn.Module]) -> None:
    network, X = seeded(make), noise(24, 3, 8, 8)
    results = []
    for way in ("fx", "export"):
        with by(way):
            results.append(quantize(network, X, Recipe(bits=4, method="gpfq", activations=6)))
    assert_same(results)
    fx, exported = (list(points_of(result.network).values()) for result in results)
    assert [point.grid for point in fx] == [point.grid for point in exported]
    assert [len(result.on_floats) for result in results] == [len(results[0].on_floats)] * 2
    torch.testing.assert_close(results[0].network(X), results[1].network(X))


def test_attention_is_rounded_around_what_has_no_integer_form(tmp_path: Path) -> None:
    network, X = seeded(Attentive).float(), noise(32, 5, 8).float()
    graph, on_floats = with_points(network, Batch((X,)))
    assert torch.equal(graph(X), network(X))
    assert on_floats == ("scaled_dot_product_attention", "mean")
    result = quantize(network, X, Recipe(bits=7, activations=8))
    assert list(points_of(result.network)) == [
        "x", "layer_norm", "linear", "scaled_dot_product_attention", "linear_1", "add", "mean",
    ]  # fmt: skip
    assert error(network(X), result.network(X)) < 0.05
    save(tmp_path / "packed", result)
    again = load_quantized(tmp_path / "packed", Attentive())
    assert torch.equal(again.network(X), result.network(X))
    export_onnx(tmp_path / "file.onnx", result, X)
    session = onnxruntime.InferenceSession(tmp_path / "file.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixels": X[:9].numpy()})
    step = max(point.grid.step for point in points_of(result.network).values() if point.grid)
    assert (torch.from_numpy(found) - result.network(X[:9])).abs().max() < step


@pytest.mark.parametrize("way", ["fx", "export"])
def test_sizes_are_no_activations_and_outputs_keep_their_names(way: str, tmp_path: Path) -> None:
    network = Sized().eval()
    X = {"input": pictures(), "shift": torch.ones(24, 4, 8, 8)}
    with by(way):
        result = quantize(network, X, Recipe(bits=8, activations=8))
        save(tmp_path / "packed", result)
        again = load_quantized(tmp_path / "packed", Sized())
    truth, found = network(**X)["logits"], result.network(**X)["logits"]
    assert error(truth, found) < 0.05
    assert torch.equal(again.network(**X)["logits"], found)


def test_a_network_without_a_graph_is_told(block: nn.Module) -> None:
    for options in ({"activations": 8}, {"fuse": True}):
        with pytest.raises(QuantizationError) as caught:
            quantize(Branching(), torch.ones(4, 3), Recipe(**options))  # type: ignore[arg-type]
        line = rf"{next(iter(options))}: the network has no graph \(.*\); leave {next(iter(options))} out"
        assert re.fullmatch(line, str(caught.value))
    with pytest.raises(QuantizationError, match="activations: 'conv.x' matches no point; points: x, relu, "):
        quantize(block, pictures(), Recipe(activations={"conv.x": 8}))
