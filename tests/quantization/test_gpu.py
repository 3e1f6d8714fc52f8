"""What runs on a GPU, as far as a machine without one can tell."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laq.quantization import METHODS, QuantizationError, Recipe, quantize
from laq.quantization.alphabet import Alphabet
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.execution import devices
from laq.quantization.execution.devices import chosen_device, full_precision
from laq.quantization.execution.lockstep import Lockstep
from laq.quantization.execution.offload import INPUTS
from laq.quantization.methods import sequential
from laq.quantization.methods.cholesky import cholesky, cholesky_at_once
from laq.quantization.methods.problem import LayerProblem
from laq.quantization.methods.solve import solve
from laq.quantization.threads import worker_pool
from tests.quantization.operations import operation_of_module

triton = pytest.importorskip("triton")


def test_kernels_equal_compiled_code_in_tritons_interpreter() -> None:
    # The interpreter is chosen before Triton is imported.
    tests = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_gpus_and_fuses_no_products_with_sums(capability: int) -> None:
    from laq.quantization.methods.triton_kernels import _round_columns

    doubles, floats = ("H", "a", "v", "levels", "E"), ("W", "noise", "steps")
    types = dict.fromkeys(doubles, "*fp64") | dict.fromkeys(floats, "*fp32") | {"codes": "*i32"}
    sizes = {"ROWS": 16, "BLOCK": 64}
    signature = {n: types.get(n, "constexpr" if n in sizes else "i32") for n in _round_columns.arg_names}
    source = triton.compiler.ASTSource(_round_columns, signature, sizes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    assert "fma.rn.f64" not in compiled.asm["ptx"]


def test_a_gpu_without_kernels_rounds_by_torch_and_that_is_said_once() -> None:
    weight = torch.ones(1, 1, 1, device="meta")
    problem = LayerProblem(weight, Alphabet(weight, -1, 1))
    sequential._kernels_of.cache_clear()
    # There is none here, which is what a GPU that is too old comes to.
    nowhere = torch.device("cuda", 7)
    with pytest.warns(
        UserWarning, match="cuda:7: Triton's kernels do not run on this GPU .* rounded by torch"
    ):
        assert sequential._kernels_of(nowhere) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sequential._kernels_of(nowhere) is None
    assert sequential._block_rounding(problem).func is sequential._round_block_vectorized  # type: ignore[attr-defined]
    sequential._kernels_of.cache_clear()


def network_and_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return network.eval(), torch.rand(9, 2, 4, 4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A GPU that is the CPU under another name; the list has the devices that were chosen."""
    chosen: list[torch.device] = []

    def choose(*asked: Any) -> torch.device:
        chosen.append(chosen_device(*asked))
        return torch.device("cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "chosen_device", choose)
    return chosen


def test_a_gpu_is_taken_where_one_is_asked_for_or_the_work_is_worth_it(
    gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = network_and_images()
    recipe = Recipe(3, "qronos", fuse=True)
    expected = quantize(network, images, recipe)
    for asked in ("cpu", None):
        quantize(network, images, recipe, device=asked)  # type: ignore[arg-type]
    assert gpu == []
    found = [quantize(network, images, recipe, device=asked) for asked in ("cuda", "auto")]  # type: ignore[arg-type]
    monkeypatch.setattr(devices, "_WORTH_A_GPU", 1)
    found.append(quantize(network, images, recipe, device="auto"))
    assert [device.type for device in gpu] == ["cuda", "cpu", "cuda"]
    for result in found:
        assert (result.calibration, result.device) == (expected.calibration, "cpu")
        for one, other in zip(result.layers, expected.layers, strict=True):
            assert torch.equal(one.codes, other.codes)


def test_a_gpu_that_has_not_enough_memory_gets_half_of_each_batch_once(
    gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = network_and_images()
    recipe, given, room = Recipe(3, fuse=True, batch_size=4), list[int](), 2

    def advance(self: Lockstep, segment: Any, chunk: int) -> Any:
        size = self.offload.look((chunk, INPUTS))["batch"][0][0] if segment.start == 0 else images[:1]
        given.append(len(size))
        if len(size) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return advance_all(self, segment, chunk)

    advance_all = Lockstep._advance
    expected = quantize(network, images, replace(recipe, batch_size=2))
    monkeypatch.setattr(Lockstep, "_advance", advance)
    with pytest.warns(
        UserWarning, match="cpu has too little memory for batches of 4 images; trying half of each"
    ):
        found = quantize(network, images, recipe, device="cuda")
    assert {4, 2, 1} == set(given)
    assert found.calibration == expected.calibration
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(one.codes, other.codes)
    room = 1
    with (
        pytest.warns(UserWarning, match="trying half"),
        pytest.raises(
            QuantizationError, match="^device: .* too little memory .* set batch_size lower, [^\n]*$"
        ),
    ):
        quantize(network, images, recipe, device="cuda")


def test_a_gpu_where_there_is_none_is_refused_in_a_line() -> None:
    network, images = network_and_images()
    with pytest.raises(
        QuantizationError, match=r"^device: found cuda, but torch sees no GPU here; set it to auto or cpu$"
    ):
        quantize(network, images, Recipe(), device="cuda")
    with pytest.raises(
        QuantizationError, match="device: found 'cudo'; must be auto, cpu, cuda; did you mean cuda"
    ):
        quantize(network, images, Recipe(), device="cudo")  # type: ignore[arg-type]
    assert quantize(network, images, Recipe(), device="auto").device == "cpu"


def test_products_are_in_full_precision_for_as_long_as_a_gpu_quantizes() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with full_precision():
            assert matmul.fp32_precision == "ieee"
            assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
        assert matmul.fp32_precision == "tf32"
        assert (cudnn.allow_tf32, cudnn.deterministic) == (True, False)
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "groups": 2}, {"padding": (0, 2)}])
@pytest.mark.parametrize("method", METHODS)
def test_methods_stay_on_the_device_of_their_weights_and_take_no_columns_one_by_one(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors on the meta device have no values, and do not mix with those of the CPU.
    layer = operation_of_module(nn.Conv2d(16, 8, 3, **options))
    W = layer.to_matrices(torch.empty(8, 16 // layer.groups, 3, 3, device="meta"))
    images = torch.empty(2, 16, 7, 5, device="meta")
    patches = layer.patches(images, images, lambda _: None)

    def one_by_one(*_: object) -> None:
        raise AssertionError("each column is a launch of its own")

    for module in ("gpfq", "low_rank"):
        monkeypatch.setattr(f"laq.quantization.methods.{module}.round_by_residual", one_by_one)
    with worker_pool() as pool:
        inputs = Inputs([lambda: patches], [patches.m], layer.groups, W.shape[2], 9, pool, layer.has_shifts)
        solved = solve("layer", W, inputs, Recipe(3, method, radius="error"))
    assert layer.has_shifts == (options == {"padding": 1})
    assert (solved.codes.device.type, solved.codes.shape) == ("meta", W.shape)


def test_a_factor_in_one_call_equals_the_one_by_panels() -> None:
    X = torch.randn(2, 150, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = X @ X.mT
    with worker_pool() as pool:
        torch.testing.assert_close(cholesky_at_once(H.clone()).triu(), cholesky(H, pool).triu())
