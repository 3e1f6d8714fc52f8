"""The problem that a method solves for a whole network, after it has solved one for each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.graph import Graph, Reading
from laq.quantization.execution.layers import Layer
from laq.quantization.execution.outputs import Output
from laq.quantization.methods.problem import Settings
from laq.quantization.recipe import QuantizedNetwork
from laq.quantization.threads import Pool


@dataclass(frozen=True)
class NetworkProblem:
    """A network whose layers have codes, and what it is to be near to.

    Attributes:
        analog: the float network, whose batch norms are folded if the recipe says so.
        result: the quantized one, which is changed in place.
        layers: those that are quantized, in the order of ``result.layers``.
        graph: of both networks.
        reading: who reads the weights in it.
        batches: the calibration images.
        output: which of the networks' outputs are the logits.
        pool: does the work.
        settings: the method's options, the seed and the memory; there is no layer.
    """

    analog: nn.Module
    result: QuantizedNetwork
    layers: Sequence[Layer]
    graph: Graph
    reading: Reading
    batches: Sequence[Batch]
    output: Output
    pool: Pool
    settings: Settings
