"""The network under test: its sources, weights and training."""

from torch import nn

from laq.network.checkpoints import load_matching
from laq.network.weights import read_foreign_weights


def load_checkpoint(network: nn.Module, name: str, sha256: str | None) -> str:
    """Load the checkpoint ``name`` into ``network``; returns the file's SHA-256."""
    state, found = read_foreign_weights(name, sha256)
    load_matching(network, state, name)
    return found
