"""GPFQ for sparse weights, by a penalty on their number (L0) or on their size (L1): Zhang, Zhou, Saab 2023.

The option ``threshold`` is λ, in steps of the alphabet.
"""

from dataclasses import replace

from laq.quantization.calibration.covariance import Inputs
from laq.quantization.methods import gpfq
from laq.quantization.methods.problem import LayerProblem, RoundingRule, Settings, Solution


def solve_l0(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """As GPFQ, targets of at most λ becoming zero; up to 0.5 λ changes nothing, as these round to zero."""
    rule = RoundingRule("hard", settings.options["threshold"])
    return gpfq.solve(replace(problem, rule=rule), inputs, settings)


def solve_l1(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """As GPFQ, all targets moving towards zero by λ."""
    rule = RoundingRule("soft", settings.options["threshold"])
    return gpfq.solve(replace(problem, rule=rule), inputs, settings)
