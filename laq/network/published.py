"""The weights that are published beside results: those that the network's source does not give."""

from pathlib import Path

import torch
from torch import Tensor

from laq.architectures import build, make_body
from laq.errors import LaqError
from laq.network.checkpoints import load_matching, renamed
from laq.network.weights import load_tensors, read_design, read_foreign_weights, save_tensors
from laq.paths import NETWORK, WEIGHTS
from laq.sections.network import Network


def publish_weights(folder: Path, params: Network) -> None:
    """Write the study's weights to ``folder``, without those that its source gives as they are.

    Of a network that is used as it comes nothing is written, of a new head on pretrained features the head.

    Raises:
        LaqError: the stage ``network`` has not run, or the source does not give its weights any more.
    """
    given = _given_weights(params, NETWORK)
    weights = load_tensors(NETWORK / WEIGHTS)
    own = {n: w for n, w in weights.items() if n not in given or not torch.equal(given[n], w)}
    if own:
        save_tensors(folder / WEIGHTS, own)


def has_own_weights(params: Network) -> bool:
    """Whether the network was trained for the study, so that its source does not give all weights."""
    return params.source == "train" or params.transfer is not None


def restore_weights(published: Path, params: Network, folder: Path) -> None:
    """Write the weights of a published study to ``folder``, where the network's design lies already.

    Raises:
        LaqError: weights are missing or of another network.
    """
    given, path = _given_weights(params, folder), published / WEIGHTS
    own = load_tensors(path) if path.exists() else {}
    if not own and (not given or has_own_weights(params)):
        raise LaqError(f"{path}: not found; the study's network is in no other file, and is needed there")
    network = build(read_design(folder), folder=folder)
    load_matching(network, {**given, **own}, str(path))
    save_tensors(folder / WEIGHTS, network.state_dict())


def _given_weights(params: Network, folder: Path) -> dict[str, Tensor]:
    """The weights that the source of the network in ``folder`` gives, by the classifier's names for them."""
    if params.source == "train":
        return {}
    design = read_design(folder)
    if params.weights is None:
        body = make_body(design.architecture, design.arguments, pretrained=True, folder=folder)
        state = body.state_dict()
    else:
        names = build(design, folder=folder).body.state_dict()
        state = renamed(read_foreign_weights(params.weights, params.sha256)[0], names)
    return {f"body.{name}": tensor for name, tensor in state.items()}
