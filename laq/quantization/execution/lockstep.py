"""One pass over a ``torch.fx`` graph with the activations of all networks, from one layer to the next.

Nothing is run twice, whatever the depth: at a layer the inputs of all networks are at hand. Activations
are forgotten after their last use.
"""

from collections.abc import Iterable, Iterator
from functools import partial

from torch import Tensor, fx

from laq.quantization.execution.base import OUTPUTS, Error, Execution, Networks, Pair, Stop, errors_of, totals
from laq.quantization.execution.graph import Program, Segment, first_argument
from laq.quantization.execution.offload import IMAGES, Shelf, Values
from laq.quantization.threads import Pool


class Lockstep(Execution):
    """Walks the graph once, a segment at a time for all chunks."""

    def __init__(self, graph: fx.Graph, networks: Networks, pool: Pool, shelf: Shelf) -> None:
        super().__init__(networks, pool, shelf)
        self.program = Program(graph, networks.names)

    def stops(self, chunks: Iterable[Tensor]) -> Iterator[Stop]:
        """Advance every chunk by a segment, stop at the layer that it ends at."""
        numbers = self._keep(chunks)
        for segment in self.program.segments:
            errors = totals(self.pool.map(partial(self._advance, segment), numbers))
            if segment.layer is not None:
                self.errors[segment.layer] = errors
            if segment.end.op == "output":
                self.errors[OUTPUTS] = totals(self.pool.map(partial(self._output_errors, segment), numbers))
            else:
                yield str(segment.end.target), self._by_network(partial(self._pair, segment.end))

    def _pair(self, node: fx.Node, chunk: int, number: int) -> Pair:
        """What a node is called with in the analog and in one of the quantized networks."""
        return Pair(*(first_argument(node, self.shelf.look((chunk, side))) for side in (0, number)))

    def _output_errors(self, segment: Segment, chunk: int) -> tuple[Error, ...]:
        sides = range(len(self.networks.all()))
        return errors_of(first_argument(segment.end, self.shelf.look((chunk, side))) for side in sides)

    def _advance(self, segment: Segment, chunk: int) -> tuple[Error, ...]:
        """Run a chunk over a segment; the errors of the layer at its beginning, if there is one."""
        sides = list(zip(self.networks.all(), self._take(segment, chunk), strict=True))
        nodes, errors = segment.nodes, tuple[Error, ...]()
        if segment.layer is not None:
            # At once: what follows may change a layer's outputs in place.
            errors = errors_of(self.program.run(nodes[:1], *side) for side in sides)
            nodes = nodes[1:]
        for number, (network, values) in enumerate(sides):
            self.program.run(nodes, network, values)
            self.shelf.put((chunk, number), values)
        return errors

    def _take(self, segment: Segment, chunk: int) -> list[Values]:
        """Every network's values; all begin with the same images."""
        numbers = range(len(self.networks.all()))
        if segment.layer is None:
            images = self.shelf.take((chunk, IMAGES))
            return [dict(images) for _ in numbers]
        return [self.shelf.take((chunk, number)) for number in numbers]
