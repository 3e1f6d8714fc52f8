"""Cross-layer equalization: channels between two convolutions get weights of like ranges on both sides.

Channel i of the first one's outputs is divided by s and the second one's weights of it are multiplied by s,
which changes nothing where what lies between is linear, or a ReLU: s = √(r₁ / r₂) makes the largest weights
r₁ and r₂ of both equal, so that a step serves all channels (Nagel et al. 2019, "Data-free quantization
through weight equalization and bias correction", ICCV). They are counted here in the largest of their layer,
which multiplies all s by one number that no grid sees, and leaves 1 for a channel that must stay.
It matters where layers share a step over channels of very different ranges, as depthwise convolutions do.

A ReLU6 cuts off at 6 whatever the scale. Channels that the calibration images bring to more than half of
that keep their scale, and others grow to half of it at most: outputs for these images are the same.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, fx, nn

from laq.quantization.calibration.batch import Batch
from laq.quantization.execution.fusion import fold_batch_norms
from laq.quantization.execution.graph import Graph, Program, Reading, graph_for, kind_of
from laq.quantization.operations.convolution import Convolution
from laq.quantization.recipe import Recipe

_RELU: Final = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", nn.ReLU})
_RELU6: Final = frozenset({F.relu6, nn.ReLU6, "relu6", "relu6_"})
_CUT: Final = 6.0
_LINEAR: Final = frozenset(
    {
        nn.Identity, F.dropout, nn.Dropout, nn.Dropout2d, "dropout", nn.ZeroPad2d,
        F.max_pool2d, nn.MaxPool2d, "max_pool2d", F.avg_pool2d, nn.AvgPool2d, "avg_pool2d",
    }
)  # fmt: skip
_SWEEPS: Final = 100
_CONVERGED: Final = 1e-4  # of scales from 1, in a sweep


@dataclass(frozen=True)
class ConvolutionPair:
    """Two convolutions, of which the second alone reads what the first computes.

    Attributes:
        first, second: the names of their weights.
        bias: that of the first one's bias, if it has one.
        groups: of the second one.
        cut: the node of a ReLU6 between them, if there is one.
    """

    first: str
    bias: str | None
    second: str
    groups: int
    cut: fx.Node | None


def fold_and_equalize(network: nn.Module, batches: Sequence[Batch], recipe: Recipe) -> tuple[str, ...]:
    """Fold batch norms and equalize, in place, where a recipe asks for it.

    Args:
        network: in evaluation mode.
        batches: the calibration images, or the first of them if nothing is to be equalized.
        recipe: that asks.

    Returns:
        The names of the batch norms that were folded.

    Raises:
        QuantizationError: the network has no graph, or a convolution takes no bias.
    """
    asked = {"activations": recipe.activations is not None, "equalize": recipe.equalize, "fuse": recipe.fuse}
    option = next((name for name, asks in asked.items() if asks), None)
    if option is None:
        return ()
    folded = fold_batch_norms(network, batches[0], option)
    if recipe.equalize:
        equalize(network, batches)
    return folded


@torch.no_grad()
def equalize(network: nn.Module, batches: Sequence[Batch]) -> None:
    """Equalize, in place, the weights of all pairs of convolutions, again and again until they stay.

    Args:
        network: in evaluation mode, its batch norms folded.
        batches: the calibration images.

    Raises:
        NoGraphError: the network has no graph.
    """
    graph = graph_for("equalize", network, batches[0])
    reading = Reading(graph, network)
    pairs = list(_pairs(network, graph, reading))
    if not pairs:
        warnings.warn("equalize: the network has no convolution that alone reads another's", stacklevel=2)
    reached = _reached(network, graph, pairs, batches)
    for _ in range(_SWEEPS):
        moved = [_equalize(network, pair, reached) for pair in pairs]
        if max(moved, default=0.0) < _CONVERGED:
            return


def _equalize(network: nn.Module, pair: ConvolutionPair, reached: dict[fx.Node, Tensor]) -> float:
    """Equalize a pair, and what its ReLU6 is ``reached`` by; tells how far the scales were from 1."""
    first, second = network.get_parameter(pair.first), network.get_parameter(pair.second)
    # (groups, outputs, inputs of a group, *kernel)
    grouped = second.view(pair.groups, -1, *second.shape[1:])
    r1 = first.abs().flatten(1).amax(1)
    r2 = grouped.abs().flatten(3).amax((1, 3)).flatten()
    r1, r2 = r1 / r1.max(), r2 / r2.max()
    s = (r1 / r2).sqrt().where((r1 > 0) & (r2 > 0), 1.0)
    if pair.cut is not None:
        most = reached[pair.cut]
        s = s.maximum(most / (_CUT / 2)).where(most < _CUT / 2, 1.0)
        reached[pair.cut] = most / s
    first.div_(s.view(-1, *(1 for _ in first.shape[1:])))
    if pair.bias is not None:
        network.get_parameter(pair.bias).div_(s)
    grouped.mul_(s.view(pair.groups, 1, -1, *(1 for _ in second.shape[2:])))
    return float((s - 1).abs().max())


def _pairs(network: nn.Module, graph: Graph, reading: Reading) -> Iterator[ConvolutionPair]:
    """All pairs, in the order of the graph, whose parameters nothing else reads."""
    convolutions = {
        graph.nodes[call.position]: (name, call.operation)
        for name, calls in reading.calls.items()
        for call in calls
        if isinstance(call.operation, Convolution)
    }
    for node, (first, _) in convolutions.items():
        *between, last = [node, *_behind(node, network)]
        if not between or last not in convolutions:
            continue
        second, operation = convolutions[last]
        bias = reading.bias_of(node)
        read = [name for name in (first, second, bias) if name is not None]
        inputs = operation.groups * operation.channels
        if inputs == len(network.get_parameter(first)) and all(
            len(reading.reads.get(n, ())) == 1 for n in read
        ):
            cuts = (one for one in between if kind_of(one, network) in _RELU6)
            yield ConvolutionPair(first, bias, second, operation.groups, next(cuts, None))


def _behind(node: fx.Node, network: nn.Module) -> Iterator[fx.Node]:
    """The nodes each of which alone reads the one before, up to one that does more than scale with it."""
    while len(node.users) == 1:
        source, node = node, next(iter(node.users))
        yield node
        if not _scales(node, source, network):
            return


def _scales(node: fx.Node, source: fx.Node, network: nn.Module) -> bool:
    """Whether a node computes each channel of its own, and scales with it, but for a cut at 6."""
    kind = kind_of(node, network)
    if kind in {F.pad, "pad"}:
        return all(value in ("constant", None, 0) for value in (*node.args[2:], *node.kwargs.values()))
    return kind in _RELU | _RELU6 | _LINEAR and node.args[0] is source


def _reached(
    network: nn.Module, graph: Graph, pairs: Sequence[ConvolutionPair], batches: Sequence[Batch]
) -> dict[fx.Node, Tensor]:
    """What each channel (c,) comes to at most, over all images, behind the ReLU6 of each pair."""
    places = {pair.cut: 1 - network.get_parameter(pair.first).dim() for pair in pairs if pair.cut is not None}
    found = dict[fx.Node, Tensor]()
    program = Program(graph, Reading(graph, network), [])
    for batch in batches if places else ():
        values = program.begin(batch)
        for position, node in enumerate(graph.nodes[:-1]):
            value = program.run(range(position, position + 1), network, values)
            if node in places:
                most = value.movedim(places[node], 0).flatten(1).amax(1)
                found[node] = most.maximum(found.get(node, most))
    return found
