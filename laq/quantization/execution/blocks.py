"""Blocks of a network: what lies between two places of its graph where a single value is alive."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.graph import Program, Reading
from laq.quantization.execution.layers import Layer


@dataclass(frozen=True)
class GraphBlock:
    """Nodes that read the weights of some layers, which nothing outside of them reads.

    Attributes:
        nodes: their positions in the graph.
        layers: in the order in which they are first read; one at least.
        value: the name of the only value that is alive after them; None stands for the network's outputs.
    """

    nodes: range
    layers: tuple[Layer, ...]
    value: str | None


@dataclass(frozen=True)
class _Place:
    """A position before which one value alone is alive, and that value's name and shape."""

    position: int
    value: str
    shape: torch.Size


def find_blocks(
    program: Program, reading: Reading, layers: Sequence[Layer], network: nn.Module, batch: Batch
) -> list[GraphBlock]:
    """The blocks of a network, in order, which hold all layers.

    A residual block is one, for its input is alive until it is added; of a chain each layer is one. What
    follows a layer and leaves the shape as it is, such as norms and activation functions, belongs to its
    block; pooling belongs to the next one. A weight that is read in several blocks makes them one.

    Args:
        program: runs the network.
        reading: tells where weights are read.
        layers: that are quantized.
        network: any of the program's structure.
        batch: some images.
    """
    spans = [(layer, reading.reads[layer.parameter]) for layer in layers]
    blocks, before, shape = list[GraphBlock](), 0, torch.Size()
    for place in _places(program, network, batch):
        at = place.position
        if any(reads[0] < at <= reads[-1] for _, reads in spans):
            continue
        inside = tuple(layer for layer, reads in spans if before <= reads[0] < at)
        start = blocks[-1].nodes.stop if blocks else 0
        if inside:
            blocks.append(GraphBlock(range(start, at), inside, place.value))
            shape = place.shape
        elif blocks and start == before and place.shape == shape:
            blocks[-1] = replace(blocks[-1], nodes=range(blocks[-1].nodes.start, at), value=place.value)
        before = at
    if rest := tuple(layer for layer, reads in spans if reads[0] >= before):
        start = blocks[-1].nodes.stop if blocks else 0
        blocks.append(GraphBlock(range(start, len(program.nodes) - 1), rest, None))
    return blocks


def _places(program: Program, network: nn.Module, batch: Batch) -> list[_Place]:
    """Where one value alone is alive, which some images' way through the network shows."""
    values, found = program.begin(batch), list[_Place]()
    for position in range(len(program.nodes) - 1):
        program.run(range(position, position + 1), network, values)
        # Sizes and the like are alive, too, and hold nothing that is learned.
        alive = [
            name
            for name, value in values.items()
            if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
        ]
        only = values[alive[0]] if len(alive) == 1 else None
        if isinstance(only, Tensor) and only.is_floating_point():
            found.append(_Place(position + 1, alive[0], only.shape))
    return found
