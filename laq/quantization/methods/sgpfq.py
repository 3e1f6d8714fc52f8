"""SGPFQ: GPFQ with stochastic rounding (Zhang and Saab 2023)."""

import zlib
from dataclasses import replace

import numpy as np
import torch

from laq.quantization.calibration.covariance import Inputs
from laq.quantization.methods import gpfq
from laq.quantization.methods.problem import LayerProblem, RoundingRule, Settings, Solution


def solve(problem: LayerProblem, inputs: Inputs, settings: Settings) -> Solution:
    """As GPFQ, every target becoming the level below or above, the likelier the nearer.

    What is drawn depends on the seed and the layer's name.
    """
    generator = np.random.default_rng([settings.seed, zlib.crc32(settings.layer.encode())])
    noise = torch.from_numpy(generator.random(problem.W.shape)).to(problem.W.device)
    rule = RoundingRule("stochastic", noise=noise)
    return gpfq.solve(replace(problem, rule=rule), inputs, settings)
