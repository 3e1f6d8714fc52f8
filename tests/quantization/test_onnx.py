"""ONNX files: small, and onnxruntime predicts with them what torch does."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from laq.quantization import AlphabetSpec, QuantizationError, quantize
from laq.quantization.alphabet import AlphabetKind
from laq.quantization.files.header import Cut
from laq.quantization.files.onnx import export_onnx
from laq.quantization.files.packing import float32_bytes, keep_rows, load_quantized, save
from laq.quantization.recipe import Recipe
from tests.conftest import Branching
from tests.quantization.test_packing import (
    KINDS,
    OPERATIONS,
    TOKENS,
    Kinds,
    Small,
    assert_same,
    classifier,
    pixels,
    rounded,
    rounded_kinds,
)


def run(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": images.numpy()})
    return torch.from_numpy(logits)


def assert_predicts_like(path: Path, network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        truth = network(images)
    found = run(path, images)
    assert found.shape == truth.shape
    assert (found - truth).abs().max() <= 1e-4 * truth.abs().max()
    assert torch.equal(found.argmax(1), truth.argmax(1))


def types(path: Path) -> set[str]:
    """The types of the codes."""
    model = onnx.load(path)
    onnx.checker.check_model(model)
    codes = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer if t.name in codes}


@pytest.mark.parametrize(
    ("architecture", "spec", "integers"),
    [
        ("resnet20", AlphabetSpec("twos_complement", 4), "INT4"),
        ("mobilenet_v2", AlphabetSpec("predecessor", 4), "INT8"),
        ("squeezenet", AlphabetSpec("midrise", 3), "INT4"),
    ],
)
def test_onnxruntime_predicts_what_torch_does(
    architecture: str, spec: AlphabetSpec, integers: str, tmp_path: Path
) -> None:
    result = rounded(classifier(architecture), spec)
    size = export_onnx(tmp_path / "q.onnx", result, pixels(1))
    assert size == (tmp_path / "q.onnx").stat().st_size
    assert types(tmp_path / "q.onnx") == {integers}
    for count in (1, 6):
        assert_predicts_like(tmp_path / "q.onnx", result.network, pixels(count))
    payload = result.weights * int(integers.removeprefix("INT")) / 8
    floats = float32_bytes(result.network) - 4 * result.weights + 4 * sum(len(x.codes) for x in result.layers)
    assert size <= payload + floats + 500 * len(onnx.load(tmp_path / "q.onnx").graph.node)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8, 12, 17])
def test_every_alphabet_gets_the_smallest_integers_that_hold_it(kind: str, bits: int, tmp_path: Path) -> None:
    result = rounded(Small().eval(), AlphabetSpec(kind, bits))  # type: ignore[arg-type]
    export_onnx(tmp_path / "q.onnx", result, torch.randn(2, 3, 8, 8))
    one_more = kind in {"midrise", "predecessor"}
    expected = {2: "INT4", 4: "INT8" if one_more else "INT4", 8: "INT16" if one_more else "INT8", 12: "INT16"}
    assert types(tmp_path / "q.onnx") == ({expected[bits]} if bits in expected else set())
    assert_predicts_like(tmp_path / "q.onnx", result.network, torch.randn(7, 3, 8, 8))


def test_stored_weights_are_the_networks_bit_for_bit(tmp_path: Path) -> None:
    result = rounded(Small().eval(), AlphabetSpec("midrise", 3))
    export_onnx(tmp_path / "q.onnx", result, torch.randn(2, 3, 8, 8))
    tensors = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer
    }
    codes, step = tensors["conv.codes"].astype(np.float32), tensors["conv.step"]
    assert step.shape == (5,)
    assert np.array_equal(codes * step[:, None, None, None], result.network.conv.weight.detach().numpy())
    assert "conv.weight" not in tensors


def test_a_fused_and_a_cut_network_go_from_file_to_onnx(tmp_path: Path) -> None:
    network = classifier("resnet20")
    result = quantize(network, pixels(), Recipe(bits=4, fuse=True, retain_rate=0.2))
    save(tmp_path / "q", result, cut=Cut("body.fc", (7, 2)))
    loaded = load_quantized(tmp_path / "q", network)
    export_onnx(tmp_path / "q.onnx", loaded, pixels())
    assert_predicts_like(tmp_path / "q.onnx", keep_rows(result, Cut("body.fc", (7, 2))).network, pixels(5))
    assert run(tmp_path / "q.onnx", pixels(5)).shape == (5, 2)


def test_a_plain_network_is_written_in_float32(tmp_path: Path) -> None:
    network = Small().eval()
    export_onnx(tmp_path / "q.onnx", network, torch.randn(2, 3, 8, 8))
    assert types(tmp_path / "q.onnx") == set()
    assert_predicts_like(tmp_path / "q.onnx", network, torch.randn(4, 3, 8, 8))


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "q.onnx"
    with pytest.raises(QuantizationError, match="in training mode"):
        export_onnx(file, Small(), torch.randn(2, 3, 8, 8))
    with pytest.raises(QuantizationError, match="cannot export the network .*data-dependent") as caught:
        export_onnx(file, Branching().eval(), torch.randn(2, 3))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnxscript.optimizer", None)
    with pytest.raises(QuantizationError, match=r"pip install 'laq\[onnx\]'"):
        export_onnx(file, Small().eval(), torch.randn(2, 3, 8, 8))
    assert not file.exists()


def test_every_operation_with_a_weight_is_written_as_codes(tmp_path: Path) -> None:
    result = rounded_kinds(Kinds().eval(), AlphabetSpec("midrise", 3))
    size = export_onnx(tmp_path / "q.onnx", result, TOKENS)
    assert types(tmp_path / "q.onnx") == {"INT4"}
    model = onnx.load(tmp_path / "q.onnx")
    names = {t.name for t in model.graph.initializer}
    assert {f"{layer.name}.codes" for layer in result.layers} <= names
    assert not {n for n, _ in result.network.named_parameters(remove_duplicate=False)} & names - {
        "plain_up.bias"
    }
    steps = {t.name: tuple(t.dims) for t in model.graph.initializer if t.name.endswith(".step")}
    assert steps == {
        "embed.step": (7,),
        "line.step": (6,),
        "up.step": (2, 1, 4, 1, 1, 1),
        "plain_up.step": (6,),
        "attention.in_proj_weight.step": (18,),
        "attention.out_proj.step": (6,),
        "kernel.step": (6,),
    }
    for tokens in (TOKENS, TOKENS[:1], torch.cat([TOKENS, TOKENS.flip(1)])):
        assert_predicts_like(tmp_path / "q.onnx", result.network, tokens)
    assert size < 20_000


class Multilayer(nn.Sequential):
    """What onnxruntime computes in every type but bfloat16."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["midrise", "symmetric"])
def test_networks_of_other_types_predict_in_them(
    kind: AlphabetKind, dtype: torch.dtype, tmp_path: Path
) -> None:
    result = rounded(Multilayer().to(dtype).eval(), AlphabetSpec(kind, 4))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layers = tuple(replace(x, alphabet=x.alphabet.with_step(x.alphabet.step.to(wide))) for x in result.layers)
    for layer in layers:
        weight = result.network.get_parameter(layer.parameter)
        weight.data.copy_(layer.alphabet.decode(layer.codes))
    export_onnx(tmp_path / "q.onnx", replace(result, layers=layers), torch.randn(2, 6, dtype=dtype))
    assert types(tmp_path / "q.onnx") == {"INT8" if kind == "midrise" else "INT4"}
    images = torch.randn(9, 6, dtype=dtype)
    with torch.no_grad():
        truth = result.network(images)
    found = run(tmp_path / "q.onnx", images)
    assert found.dtype == dtype
    assert (found - truth).abs().max() <= 8 * torch.finfo(dtype).eps * truth.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_types_that_this_runtime_has_no_convolutions_in_are_written_all_the_same(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    result = rounded(Small().to(dtype).eval(), AlphabetSpec("symmetric", 4))
    export_onnx(tmp_path / "q.onnx", result, torch.randn(2, 3, 8, 8, dtype=dtype))
    assert types(tmp_path / "q.onnx") == {"INT4"}
    reference = ReferenceEvaluator(onnx.load(tmp_path / "q.onnx"))
    images = torch.randn(5, 3, 8, 8, dtype=dtype)
    (found,) = reference.run(None, {"pixels": as_array(images)})
    with torch.no_grad():
        truth = result.network(images).double().numpy()
    # A batch norm's epsilon is a float32 in ONNX.
    close = 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    assert np.abs(found.astype(np.float64) - truth).max() <= close * np.abs(truth).max()


def as_array(images: Tensor) -> np.ndarray:
    if images.dtype == torch.bfloat16:
        return images.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return images.numpy()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "data parallel"])
def test_wrapped_networks_are_written_as_what_they_wrap(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    result = rounded(Small().eval(), AlphabetSpec())
    images = torch.randn(2, 3, 8, 8)
    export_onnx(tmp_path / "plain", result, images)
    export_onnx(tmp_path / "wrapped", replace(result, network=wrap(result.network)), images)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "wrapped").read_bytes()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = Small()

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.small(left) - self.small(right)
        return logits, logits.softmax(1)


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    result = rounded(TwoInputs().eval(), AlphabetSpec())
    images = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    export_onnx(tmp_path / "q.onnx", result, images)
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"left": images[0].numpy(), "right": images[1].numpy()})
    assert session.get_outputs()[0].name == "logits"
    with torch.no_grad():
        for ours, truth in zip(found, result.network(*images), strict=True):
            np.testing.assert_allclose(ours, truth.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_what_quantize_makes_of_every_operation_goes_from_file_to_onnx(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    network = Kinds().to(dtype).eval()
    for parameter in network.parameters():
        parameter.data /= 4
    result = quantize(network, TOKENS, Recipe(bits=4, method="rtn"))
    assert {layer.parameter for layer in result.layers} == set(OPERATIONS)
    save(tmp_path / "q", result)
    loaded = load_quantized(tmp_path / "q", Kinds().to(dtype))
    assert_same(loaded.network, result.network)
    export_onnx(tmp_path / "q.onnx", loaded, TOKENS)
    with torch.no_grad():
        truth = result.network(TOKENS)
    found = run(tmp_path / "q.onnx", TOKENS)
    close = 1e-4 if dtype == torch.float32 else 32 * torch.finfo(dtype).eps
    assert (found - truth).abs().max() <= close * truth.abs().max()
