"""BRECQ, which learns the roundings of all layers of a block together (Li et al. 2021).

Layers are first rounded to the nearest levels, which also chooses their alphabets. Then, block by block, Adam
moves all weights of a block between the levels below and above them (``soft_rounding``), so that the block's
output for inputs from the quantized network is near to the float network's. Squared errors are weighted by
the diagonal of the Fisher information of the output (section 3.3 and algorithm 1), estimated as in the
authors' code: by squared gradients of KL(float ‖ quantized) of the network's probabilities, quantized up to
the block and in floats after it. With ``fisher: false`` all weights are 1.

What is as in the paper: what a block learns from and towards, the soft rounding, its regularizer and their
schedule, Adam, 32 images at a time, a block for each residual block. What is not, and why:

- The paper knows blocks by the classes of their modules. Here a block lies between two places of the graph
  where a single value is alive (``execution.blocks``), so that any network has some. Of what has no shortcut,
  such as some blocks of mobile networks, each layer is one.
- 500 iterations at a rate of 0.05 stand for 20,000 at 0.001: the numbers behind the roundings can get as far,
  in a fortieth of the time.
- Squared gradients differ by orders of magnitude between images, of which few would count. Each image's are
  divided by their mean, and 1 is added; the authors' code adds 1 to gradients, too, before it squares them.
- Images are drawn in groups of eight that stay together: a group's activations can be read from a file, and
  threads share the work in the same way however many there are.
- λ is 1 beside an error without a unit, as for AdaRound here. The unit is the error that the block's weights
  make when each moves at random by up to half a step. For a layer alone that is AdaRound's own unit.
- Ranges of activations are those that the recipe chooses, and are not learned; weights learn with inputs and
  activations that are rounded.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby
from operator import attrgetter
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.base import in_float32
from laq.quantization.execution.blocks import GraphBlock, find_blocks
from laq.quantization.execution.graph import Program
from laq.quantization.execution.offload import Offload, Values
from laq.quantization.execution.outputs import logits_of
from laq.quantization.methods.network_problem import NetworkProblem
from laq.quantization.methods.soft_rounding import TINY, SoftCodes, schedule
from laq.quantization.options import QuantizationError
from laq.quantization.recipe import QuantizedLayer

GROUP: Final = 8  # images that stay together
_LEAST: Final = 1e-30  # of an image's mean Fisher information
_VARIANCE: Final = 1 / 12  # of what moves by up to half a step
_ANALOG: Final = 0  # keys of activations: of the float network, and so on
_QUANTIZED: Final = 1
_WEIGHTS: Final = 2  # of a block's errors, and its output as layers were first rounded


def refine(problem: NetworkProblem) -> tuple[QuantizedLayer, ...]:
    """Learn the codes of the quantized network block by block, and set its weights.

    At most half of the recipe's memory holds activations; those of one block are kept at a time. Biases stay
    as they are, those that ``bias_correction`` has shifted too. Operations are counted for the first rounding
    alone: what learning took is in the layers' seconds, a block's by its layers' weights.

    Returns:
        The layers as they are now, in the order of ``problem.result.layers``.

    Raises:
        QuantizationError: outputs are not finite.
    """
    layers = {layer.parameter: layer for layer in problem.result.layers}
    with Offload(problem.settings.memory) as offload:
        reconstruction = Reconstruction(problem, offload)
        for block in reconstruction.blocks:
            begin = time.perf_counter()
            soft = reconstruction.learn(block)
            seconds = time.perf_counter() - begin
            weights = sum(layer.weights for layer in block.layers)
            for layer in block.layers:
                old, share = layers[layer.parameter], layer.weights / weights
                layers[layer.parameter] = replace(
                    old, codes=soft[layer.parameter].codes(), seconds=old.seconds + share * seconds
                )
    return tuple(layers.values())


def groups_of(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The images in groups, whatever batches they came in; of each only such that are alike in shape."""
    for _, alike in groupby(batches, attrgetter("kind")):
        yield from Batch.joined(list(alike)).parts(GROUP)


class Reconstruction:
    """The float and the quantized network on their way from block to block, with all groups of images.

    Attributes:
        blocks: in the order in which they must learn.
    """

    def __init__(self, problem: NetworkProblem, offload: Offload) -> None:
        self.problem = problem
        self.networks = (problem.analog, problem.result.network)
        self.program = Program(problem.graph, problem.reading, problem.layers)
        self.offload = offload
        self.counts = list[int]()  # images of each group
        self._generator = torch.Generator().manual_seed(problem.settings.seed)
        self._alphabets = {layer.parameter: layer.alphabet for layer in problem.result.layers}
        for number, batch in enumerate(groups_of(problem.batches)):
            for side in (_ANALOG, _QUANTIZED):
                offload.put((number, side), self.program.begin(batch))
            self.counts.append(batch.count)
        first = problem.batches[0].map(lambda t: t[:2])
        self.blocks = find_blocks(self.program, problem.reading, problem.layers, problem.analog, first)
        self._references = list[Tensor]()
        if problem.settings.options["fisher"]:
            self._references = list(problem.pool.map(self._reference, self.groups))

    @property
    def groups(self) -> range:
        """The groups' numbers."""
        return range(len(self.counts))

    def learn(self, block: GraphBlock) -> dict[str, SoftCodes]:
        """Learn the codes of a block's layers, and take both networks to its end."""
        pool, soft = self.problem.pool, dict[str, SoftCodes]()
        pool.run(partial(self._advance, block, _ANALOG), self.groups)
        for name in (layer.parameter for layer in block.layers):
            weights = self.problem.analog.get_parameter(name).detach()
            soft[name] = SoftCodes(in_float32(weights), self._alphabets[name])
        unit = self.unit(block)
        with self._learning(block):
            self._iterate(block, soft, unit)
        for name, own in soft.items():
            self.set_weights(name, own.alphabet.decode(own.codes()))
        pool.run(partial(self._advance, block, _QUANTIZED), self.groups)
        for group in self.groups:
            self.offload.drop((group, _WEIGHTS))
        return soft

    def set_weights(self, parameter: str, weights: Tensor) -> None:
        """Give the quantized network weights."""
        with torch.no_grad():
            self.networks[_QUANTIZED].get_parameter(parameter).copy_(weights)

    def gradients(self, block: GraphBlock, group: int) -> list[Tensor]:
        """Of half of the weighted squared errors, summed over a group, by each layer's weights."""
        network = self.networks[_QUANTIZED]
        weights = [network.get_parameter(layer.parameter) for layer in block.layers]
        target = self._value(block, _ANALOG, self.offload.look((group, _ANALOG)))
        with torch.enable_grad():
            output = self._output(block, group)
            error = in_float32(output.detach()) - in_float32(target)
            by_output = (error * self.offload.look((group, _WEIGHTS))["weights"]).to(output)
            found = torch.autograd.grad(output, weights, by_output, allow_unused=True)
        return [
            torch.zeros_like(in_float32(w)) if g is None else in_float32(g)
            for w, g in zip(weights, found, strict=True)
        ]

    @contextmanager
    def _learning(self, block: GraphBlock) -> Iterator[None]:
        """Have a block's weights take gradients, which may be frozen."""
        weights = [self.networks[_QUANTIZED].get_parameter(layer.parameter) for layer in block.layers]
        frozen = [weight for weight in weights if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad = True
        yield
        for weight in frozen:
            weight.requires_grad = False

    def _iterate(self, block: GraphBlock, soft: dict[str, SoftCodes], unit: float) -> None:
        options, pool = self.problem.settings.options, self.problem.pool
        drawn = -(-options["batch_size"] // GROUP)
        for sharpness in schedule(options["iterations"]):
            now = {name: own.now() for name, own in soft.items()}
            for name, own in soft.items():
                self.set_weights(name, own.weights(now[name]))
            some = torch.randperm(len(self.counts), generator=self._generator)[:drawn].tolist()
            parts = list(pool.map(partial(self.gradients, block), some))
            scale = 2 / (unit * sum(self.counts[group] for group in some))
            for (name, own), gradients in zip(soft.items(), zip(*parts, strict=True), strict=True):
                by_h = scale * reduce(torch.add, gradients) * own.alphabet.step
                own.learn(now[name], by_h, sharpness, options["rate"])

    def unit(self, block: GraphBlock) -> float:
        """Keep the weights of errors of each group; the error of an image where weights move at random.

        Each weight of the quantized network moves by up to half a step. The error is divided by the variance
        of these moves and by the number of weights.
        """
        pool = self.problem.pool
        pool.run(partial(self._weigh, block), self.groups)
        for layer in block.layers:
            alphabet = self._alphabets[layer.parameter]
            weights = in_float32(self.networks[_QUANTIZED].get_parameter(layer.parameter))
            moves = torch.rand(weights.shape, generator=self._generator).sub(0.5).to(weights)
            self.set_weights(layer.parameter, weights + moves * alphabet.step)
        moved = sum(pool.map(partial(self._moved, block), self.groups)) / sum(self.counts)
        return max(moved / _VARIANCE / sum(layer.weights for layer in block.layers), TINY)

    def _weigh(self, block: GraphBlock, group: int) -> None:
        """Keep the weights of a group's errors, and its output as it is now."""
        output = self._output(block, group)
        weights = self._fisher(block, group) if self._references else torch.ones_like(in_float32(output))
        self.offload.put((group, _WEIGHTS), {"weights": weights, "output": output})

    def _moved(self, block: GraphBlock, group: int) -> float:
        """By how much a group's output differs from what was kept of it."""
        kept = self.offload.take((group, _WEIGHTS))
        difference = in_float32(self._output(block, group)) - in_float32(kept["output"])
        self.offload.put((group, _WEIGHTS), {"weights": kept["weights"]})
        return float((difference.double().square() * kept["weights"]).sum())

    def _fisher(self, block: GraphBlock, group: int) -> Tensor:
        """The Fisher information of the block's output, each image's divided by its mean, and 1; halved."""
        values = copy.deepcopy(self.offload.look((group, _QUANTIZED)))
        self.program.run(block.nodes, self.networks[_QUANTIZED], values)
        output = self._value(block, _QUANTIZED, values).detach().requires_grad_()
        with torch.enable_grad():
            logits = output
            if block.value is not None:
                values[block.value] = output.clone()  # operations in place must not reach it
                logits = self._logits(block.nodes.stop, values)
            q, p = _log_probabilities(logits), self._references[group]
            loss = F.kl_div(q, p, reduction="sum", log_target=True)
            (gradient,) = torch.autograd.grad(loss, output)
        if not gradient.isfinite().all():
            names = ", ".join(layer.name for layer in block.layers)
            raise QuantizationError(
                f"gradients by the outputs of the block of {names} are not finite; check weights and images, "
                "or set the method's option fisher to false"
            )
        images = in_float32(gradient).square().reshape(len(gradient), -1)
        relative = images / images.mean(1, keepdim=True).clamp(min=_LEAST)
        return ((relative + 1) / 2).view_as(gradient)

    def _reference(self, group: int) -> Tensor:
        return _log_probabilities(self._logits(0, copy.deepcopy(self.offload.look((group, _ANALOG)))))

    def _logits(self, start: int, values: Values) -> Tensor:
        """The float network's logits, from the node at ``start`` on."""
        self.program.run(range(start, len(self.program.nodes) - 1), self.problem.analog, values)
        return logits_of(self.program.outputs(self.problem.analog, values), self.problem.output)

    def _output(self, block: GraphBlock, group: int) -> Tensor:
        """The quantized network's output of a block."""
        values = copy.deepcopy(self.offload.look((group, _QUANTIZED)))
        self.program.run(block.nodes, self.networks[_QUANTIZED], values)
        return self._value(block, _QUANTIZED, values)

    def _value(self, block: GraphBlock, side: int, values: Values) -> Tensor:
        """A block's output among the values that are there at its end."""
        if block.value is None:
            return logits_of(self.program.outputs(self.networks[side], values), self.problem.output)
        value: Tensor = values[block.value]
        return value

    def _advance(self, block: GraphBlock, side: int, group: int) -> None:
        """Take a network from a block's beginning to its end."""
        values = self.offload.take((group, side))
        self.program.run(block.nodes, self.networks[side], values)
        self.offload.put((group, side), values)


def _log_probabilities(logits: Tensor) -> Tensor:
    logits = in_float32(logits)
    return (logits if logits.dim() > 1 else logits[:, None]).log_softmax(1)
