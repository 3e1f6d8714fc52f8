"""The head of a classifier: its last Linear layer, and the choice of those of its outputs that are wanted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laq.errors import LaqError


class ChosenOutputs(nn.Module):
    """A network of which some outputs are taken, for heads that are no Linear layer: (b, …) → (b, chosen)."""

    columns: Tensor

    def __init__(self, network: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("columns", torch.tensor(list(columns)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the chosen outputs."""
        outputs: Tensor = self.network(x)[:, self.columns]
        return outputs


def classifier_head(network: nn.Module) -> nn.Linear:
    """The last Linear layer: its input are the penultimate features.

    Raises:
        LaqError: the network has no Linear layer.
    """
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not heads:
        raise LaqError("the network has no Linear layer, so no penultimate features")
    return heads[-1]


def linear_head(network: nn.Module, outputs: int) -> nn.Linear | None:
    """The last Linear layer, if it has so many outputs."""
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return heads[-1] if heads and heads[-1].out_features == outputs else None


def put_rows(network: nn.Module, rows: Sequence[int], outputs: int) -> nn.Module:
    """Keep those at ``rows`` of a network's ``outputs``: of a Linear head in place, else in a wrapper."""
    head = linear_head(network, outputs)
    if head is None:
        return ChosenOutputs(network, rows)
    with torch.no_grad():
        head.weight = nn.Parameter(head.weight[list(rows)].clone())
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[list(rows)].clone())
    head.out_features = len(rows)
    return network
