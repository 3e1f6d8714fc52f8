"""One pass over a graph with the activations of all networks, from one layer to the next.

Nothing is run twice, whatever the depth: at a layer the inputs of all networks are at hand. Activations
are forgotten after their last use. Only where a weight is read in several places are the nodes between the
first and the last of them run ahead, with the weight as it was, for the inputs that they get.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from laq.quantization.execution.base import (
    OUTPUTS,
    Errors,
    Execution,
    Networks,
    Pair,
    Stop,
    errors_of,
    given_by_network,
    total,
)
from laq.quantization.execution.graph import Graph, Program, Reading, Segment, StopAt
from laq.quantization.execution.layers import Layer
from laq.quantization.execution.offload import Offload, Values
from laq.quantization.execution.outputs import logits_of
from laq.quantization.threads import Pool

Found = dict[str, Errors]
Shapes = dict[str, list[torch.Size]]


class Lockstep(Execution):
    """Goes over the graph once, a segment at a time for all chunks."""

    def __init__(
        self, traced: tuple[Graph, Reading], networks: Networks, pool: Pool, offload: Offload
    ) -> None:
        super().__init__(networks, pool, offload)
        self.graph, self.reading = traced
        self.program: Program
        self._measure: bool

    def stops(self, layers: Sequence[Layer], *, measure: bool = True) -> Iterator[Stop]:
        """Advance every chunk by a segment, stop at the layers whose weights are read at its end."""
        self.program = Program(self.graph, self.reading, layers)
        chunks = range(self.chunks)
        self._measure = measure
        for segment in self.program.segments if measure else self.program.segments[:-1]:
            shapes: list[Shapes] = []
            for found, inputs in self.pool.map(partial(self._advance, segment), chunks):
                shapes.append(inputs)
                for name, errors in found.items():
                    self._add(name, errors)
            for stop in segment.stops:
                yield self._stop(stop, segment, shapes)
                if not stop.is_at(segment.end):  # what was run ahead for it is not needed any more
                    for chunk, side in product(chunks, range(len(self.networks.all()))):
                        self.offload.drop((chunk, side, 0))

    def add_bias(self, layer: Layer) -> str:
        """The parameter that all calls add, or one of the layer's module, which they add from now on."""
        return self.program.add_bias(layer, self.networks.analog)

    def _stop(self, stop: StopAt, segment: Segment, shapes: Sequence[Shapes]) -> Stop:
        layer, networks = stop.layer, len(self.networks.quantized)
        if stop.is_at(segment.end):
            found = [inputs[layer.name] for inputs in shapes]
            return Stop(layer, given_by_network(networks, found, layer, partial(self._pair, stop)))
        found = list(self.pool.map(partial(self._run_ahead, stop, segment.end), range(self.chunks)))
        return Stop(layer, given_by_network(networks, found, layer, self._pair_ahead))

    def _pair(self, stop: StopAt, chunk: int, call: int, number: int) -> Pair:
        """What a call is given in the analog and in one of the quantized networks."""
        return Pair(
            *(self._inputs(stop, call, self.offload.look((chunk, side)), side) for side in (0, number))
        )

    def _inputs(self, stop: StopAt, call: int, values: Values, side: int) -> Tensor:
        inputs: Tensor = self.program.value_of(stop.calls[call].inputs, self.networks.all()[side], values)
        return inputs

    def _pair_ahead(self, chunk: int, call: int, number: int) -> Pair:
        return Pair(*(self.offload.look((chunk, side, 0))["inputs"][call] for side in (0, number)))

    def _run_ahead(self, stop: StopAt, start: int, chunk: int) -> list[torch.Size]:
        """Keep the inputs of a layer's calls, none of which lies before ``start``; returns their shapes."""
        inputs: list[Tensor] = []
        for side, network in enumerate(self.networks.all()):
            values = copy.deepcopy(self.offload.look((chunk, side)))
            inputs, at = [], start
            for number, call in enumerate(stop.calls):
                self.program.run(range(at, call.position), network, values)
                # A copy: what follows may change it in place.
                inputs.append(self._inputs(stop, number, values, side).clone())
                at = call.position
            self.offload.put((chunk, side, 0), {"inputs": inputs})
        return [t.shape for t in inputs]

    def _advance(self, segment: Segment, chunk: int) -> tuple[Found, Shapes]:
        """Run a chunk over a segment: the errors of the calls in it, the shapes of inputs at its end."""
        sides = list(zip(self.networks.all(), self._take(segment, chunk), strict=True))
        found = Found()
        for part in self.program.parts(segment):
            positions = part
            if self._measure and (name := self.program.calls.get(part.start)) is not None:
                # At once: what follows may change a layer's outputs in place.
                here = range(part.start, part.start + 1)
                errors = errors_of(self.program.run(here, *side) for side in sides)
                found[name] = total([found[name], errors]) if name in found else errors
                positions = range(part.start + 1, part.stop)
            for side in sides:
                self.program.run(positions, *side)
        if segment.is_last:
            found[OUTPUTS] = errors_of(
                logits_of(self.program.outputs(*side), self.networks.output) for side in sides
            )
            return found, {}
        shapes = {
            stop.layer.name: [self._inputs(stop, 0, sides[0][1], 0).shape]
            for stop in segment.stops
            if stop.is_at(segment.end)
        }
        for number, (_, values) in enumerate(sides):
            self.offload.put((chunk, number), values)
        return found, shapes

    def _take(self, segment: Segment, chunk: int) -> list[Values]:
        """Every network's values; all begin with the same images."""
        numbers = range(len(self.networks.all()))
        if segment.start == 0:
            batch = self._batch(chunk, last=True)
            return [self.program.begin(batch) for _ in numbers]
        return [self.offload.take((chunk, number)) for number in numbers]
