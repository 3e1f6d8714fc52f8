"""What runs on a GPU, as far as a machine without one can tell."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from laq.quantization.alphabet import Alphabet
from laq.quantization.methods import sequential
from laq.quantization.methods.problem import LayerProblem

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
