"""A method that a program registers: everything takes it, and no file of the package knows of it."""

import linecache
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from torch import nn

from laq import report
from laq.cli import main
from laq.quantization import METHODS, Method, QuantizationError, Recipe, quantize, register
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.registry import Look, MethodOption, label_of, sort_methods, unregister
from laq.quantization.methods.solve import solve
from laq.quantization.options import number
from laq.quantization.threads import Pool, worker_pool
from laq.track.store import Store
from tests.conftest import tiny_params, write_params


def towards_zero(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """Truncate, after adding the option ``shift`` in steps; the error is that of the weights."""
    steps = problem.W / problem.alphabet.step
    codes = (steps + settings.options["shift"] * steps.sign()).trunc()
    codes = codes.clamp(problem.alphabet.low, problem.alphabet.high).to(torch.int32)
    return Solution(codes, lambda: (problem.W - problem.alphabet.decode(codes)).square().sum(-1))


TOY = Method(
    "toy",
    "Truncation towards zero",
    towards_zero,
    learns_from="nothing",
    options={"shift": MethodOption(number(least=0, most=1), 0.0)},
    look=Look("#444444", "wedge"),
)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with worker_pool() as pool:
        yield pool


@pytest.fixture
def toy() -> Iterator[Method]:
    register(TOY)
    yield TOY
    unregister("toy")


def test_a_registered_method_quantizes_with_options_of_its_own(toy: Method) -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2)), torch.rand(4, 6)
    by_shift = {
        shift: quantize(network, images, Recipe(method="toy", bits=3, radius=radius, options=options))
        for shift, options, radius in ((0, {}, 1.0), (0.5, {"shift": 0.5}, 1.0), ("best", {}, "error"))
    }
    plain, shifted = by_shift[0].layers[0], by_shift[0.5].layers[0]
    W = network[0].weight.detach()
    assert torch.equal(plain.codes, (W / plain.alphabet.step).trunc().to(torch.int32))
    rounded = quantize(network, images, Recipe(method="rtn", bits=3, radius=1.0)).layers[0]
    assert torch.equal(shifted.codes, rounded.codes)
    assert not torch.equal(plain.codes, rounded.codes)
    assert (by_shift["best"].layers[0].alphabet.step <= plain.alphabet.step).all()
    with pytest.raises(
        QuantizationError, match="options: toy: shift: found 2; must be a number at least 0, at"
    ):
        Recipe(method="toy", options={"shift": 2})


def test_a_name_is_taken_once_and_fits_into_the_names_of_files(toy: Method) -> None:
    with pytest.raises(QuantizationError, match="method 'toy' is there already"):
        register(toy)
    for name in ("float", "a-b", "../x", ""):
        with pytest.raises(QuantizationError, match="a name has letters, digits and _, and is not float"):
            register(Method(name, "a", towards_zero))
    assert sort_methods(["unheard_of", "toy", "gptq", "rtn", "toy"]) == ["rtn", "gptq", "toy", "unheard_of"]
    assert [label_of(name) for name in ("toy", "unheard_of")] == ["Truncation towards zero", "unheard_of"]


def test_code_of_a_solver_from_elsewhere_is_part_of_what_results_depend_on(
    tmp_path: Path, toy: Method
) -> None:
    assert {method.code_digest() for method in METHODS.values() if method is not toy} == {None}
    digests = []
    for line in ("x = 1", "x = 2", "x = 1"):
        module = types.ModuleType("elsewhere")
        file = tmp_path / "elsewhere.py"
        file.write_text(f"{line}\ndef solve(problem, inputs, settings): ...\n", encoding="utf-8")
        linecache.clearcache()
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)  # noqa: S102
        sys.modules["elsewhere"] = module
        module.__file__ = str(file)
        digests.append(replace(toy, solver="elsewhere:solve").code_digest())
        del sys.modules["elsewhere"]
    assert digests[0] == digests[2] != digests[1]


def test_a_process_that_has_not_registered_the_method_says_so(pool: Pool) -> None:
    register(TOY)
    recipe = Recipe(method="toy")
    unregister("toy")
    with pytest.raises(QuantizationError, match="^method: found 'toy'; must be rtn, "):
        solve(
            "layer",
            torch.ones(1, 1, 2),
            Inputs.of_rows(torch.ones(1, 3, 2), torch.ones(1, 3, 2), pool),
            recipe,
        )


def run(*command: str) -> str:
    done = CliRunner().invoke(main, list(command), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_registered_method_goes_through_the_study_the_report_and_the_command(
    toy: Method, project: Path, store: Store
) -> None:
    params = tiny_params()
    block = params["glyphs"]
    block["network"]["training"]["epochs"] = block["finetune"]["epochs"] = 0
    block["study"] |= {"methods": ["rtn", "toy"], "bases": ["original"], "bits": [3], "radius": 1.0}
    block["report"]["primary"]["method"] = "toy"
    block["study"]["options"] = {"toy": {"shift": 0.5}}
    write_params(project, params)
    for stage in ("dataset", "network", "embeddings", "divergence", "subsets", "finetune"):
        run(stage)
    run("study", "--jobs", "1")
    run("report")
    table = pd.read_csv("data/study/measurements.csv").set_index(["method", "subset"])
    # Half a step is added, so it is round-to-nearest under another name.
    scores = ["top1_sub_percent", "sparsity_percent", "relative_error_logits", "calibration"]
    pd.testing.assert_frame_equal(table.loc["toy", scores], table.loc["rtn", scores])
    text = (report.FOLDER / "report.md").read_text(encoding="utf-8")
    assert "Truncation towards zero" in text
    assert '["toy","Truncation towards zero"]' in (report.FOLDER / "page.html").read_text(encoding="utf-8")
    assert "toy" in run("quantize", "--method", "toy", "--jobs", "1", "--bits", "4", "--subset", "all")
    client = MlflowClient()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    logged = client.search_runs(ids, "params.method = 'toy' and params.bits = '4'")
    assert logged
    assert any("Truncation towards zero" in run.data.tags.get("mlflow.note.content", "") for run in logged)


def test_the_command_names_the_methods_and_the_nearest_one() -> None:
    shown = CliRunner().invoke(main, ["quantize", "--help"]).output
    assert f"[{'|'.join(METHODS)}]" in "".join(shown.split())
    done = CliRunner().invoke(main, ["quantize", "--method", "gpfg"])
    assert done.exit_code == 2
    assert "found 'gpfg'; must be rtn, gpfq, sgpfq" in done.stderr
    assert "did you mean gpfq?" in done.stderr
