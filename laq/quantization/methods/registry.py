"""Every method behind one call: weights, a layer's inputs and an alphabet in, codes out."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from laq.quantization.alphabet import Alphabet, AlphabetSpec, best_candidates, candidates
from laq.quantization.calibration.covariance import Inputs, choose_form, covariance_flops
from laq.quantization.methods.diffusion import gptq, qronos
from laq.quantization.methods.gpfq import Solution, covariance_errors, gpfq_covariance, gpfq_residual
from laq.quantization.methods.sequential import Problem, Rounding
from laq.quantization.recipe import Method, Recipe

_ROUNDING: Final[dict[Method, Literal["stochastic", "hard", "soft"]]] = {
    "sgpfq": "stochastic",
    "gpfq_l0": "hard",
    "gpfq_l1": "soft",
}


@dataclass(frozen=True)
class Solved:
    """A layer's codes (G, N, d), its alphabet (steps (G, N, 1)), and operations."""

    codes: Tensor
    alphabet: Alphabet
    flops: float


def solve(name: str, W: Tensor, inputs: Inputs, recipe: Recipe) -> Solved:
    """Choose the codes of a layer's weights ``W`` (G, N, d).

    Where the radius is chosen by the reconstruction error, each candidate is a set of neurons more,
    which share all matrix products with the inputs; each neuron then takes its best.
    """
    spec = recipe.alphabet_spec(name)
    trials = candidates(W, spec)
    if recipe.method == "rtn" and len(trials) == 1:
        return Solved(trials[0].encode(W), trials[0], 0.0)
    many = W.repeat(1, len(trials), 1)
    alphabet = trials[0].with_step(torch.cat([t.step for t in trials], 1))
    problem = Problem(many, alphabet, _rounding(name, many, recipe))
    solution = _run(problem, inputs, recipe)
    codes, alphabet = _take_best(solution, alphabet, spec, len(trials))
    return Solved(codes, alphabet, solution.flops)


def _rounding(name: str, W: Tensor, recipe: Recipe) -> Rounding:
    kind = _ROUNDING.get(recipe.method)
    if kind is None:
        return Rounding()
    if kind != "stochastic":
        return Rounding(kind, recipe.threshold)
    generator = np.random.default_rng([recipe.seed, zlib.crc32(name.encode())])
    return Rounding(kind, noise=torch.from_numpy(generator.random(W.shape)).to(W.device))


def _run(problem: Problem, inputs: Inputs, recipe: Recipe) -> Solution:
    if recipe.method in _BY_COVARIANCE:
        return _BY_COVARIANCE[recipe.method](problem, inputs)
    form = recipe.form
    if form == "auto":
        form = choose_form(inputs, problem.W.shape[1], recipe.memory / 2)
    return gpfq_residual(problem, inputs) if form == "residual" else gpfq_covariance(problem, inputs)


def _rtn(problem: Problem, inputs: Inputs) -> Solution:
    """Round to nearest, with the error that it makes."""
    codes = problem.alphabet.encode(problem.W)
    errors = partial(covariance_errors, problem, codes, *inputs.covariances())
    return Solution(codes, errors, covariance_flops(inputs, problem.W.shape[1]))


_BY_COVARIANCE: Final[dict[Method, Callable[[Problem, Inputs], Solution]]] = {
    "rtn": _rtn,
    "gptq": gptq,
    "qronos": qronos,
}


def _take_best(
    solution: Solution, alphabet: Alphabet, spec: AlphabetSpec, trials: int
) -> tuple[Tensor, Alphabet]:
    if trials == 1:
        return solution.codes, alphabet
    codes, steps, errors = (
        t.view(t.shape[0], trials, -1, *t.shape[2:]).transpose(0, 1)
        for t in (solution.codes, alphabet.step, solution.errors())
    )
    best = best_candidates(errors, spec)[None, ..., None]
    return (
        codes.gather(0, best.expand(1, *codes.shape[1:]))[0],
        alphabet.with_step(steps.gather(0, best)[0]),
    )
