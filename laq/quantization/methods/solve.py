"""One call for every method: a layer's weights, its inputs and a recipe in, codes out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from laq.quantization.alphabet import Alphabet, AlphabetSpec, best_candidates, candidates
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.methods.problem import LayerProblem, Settings, Solution
from laq.quantization.methods.registry import find_method
from laq.quantization.options import check
from laq.quantization.recipe import Recipe


@dataclass(frozen=True)
class RoundedWeights:
    """A layer's codes (G, N, d), int32, its alphabet (steps (G, N, 1)), and operations that they took."""

    codes: Tensor
    alphabet: Alphabet
    flops: float


def solve(name: str, W: Tensor, inputs: Inputs, recipe: Recipe) -> RoundedWeights:
    """Choose the codes of the weights ``W`` (G, N, d) of the layer called ``name``.

    Where the radius is chosen by the reconstruction error, each candidate is a set of neurons more,
    which share all matrix products with the inputs; each neuron then takes its best.

    Raises:
        QuantizationError: the method is not registered in this process.
    """
    spec, method = recipe.alphabet_spec(name), check("method", recipe.method, find_method)
    trials = candidates(W, spec)
    alphabet = trials[0]
    if len(trials) > 1:
        W = W.repeat(1, len(trials), 1)
        alphabet = alphabet.with_step(torch.cat([trial.step for trial in trials], 1))
    problem = LayerProblem(W, alphabet)
    settings = Settings(name, method.settings(recipe.options), recipe.seed, recipe.memory / 2)
    solution: Solution = method.load()(problem, inputs, settings)
    if len(trials) == 1:
        return RoundedWeights(solution.codes, alphabet, solution.flops)
    codes, alphabet = _best(solution, alphabet, spec, len(trials))
    return RoundedWeights(codes, alphabet, solution.flops + solution.flops_of_errors())


def _best(solution: Solution, alphabet: Alphabet, spec: AlphabetSpec, trials: int) -> tuple[Tensor, Alphabet]:
    """Each neuron's codes and alphabet of least error, among those of all trials."""
    codes, steps, errors = (
        t.view(t.shape[0], trials, -1, *t.shape[2:]).transpose(0, 1)
        for t in (solution.codes, alphabet.step, solution.errors())
    )
    best = best_candidates(errors, spec)[None, ..., None]
    return (
        codes.gather(0, best.expand(1, *codes.shape[1:]))[0],
        alphabet.with_step(steps.gather(0, best)[0]),
    )
