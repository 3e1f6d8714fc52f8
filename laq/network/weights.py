"""Weights on disk: safetensors for our own, and state dicts that came from elsewhere."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from laq.architectures import Classifier, NetworkDesign, build
from laq.errors import LaqError
from laq.files import need, project_root, read_json, replacing_file
from laq.paths import DESIGN, NETWORK, WEIGHTS

_SUFFIX: Final = ".safetensors"
# What torch.load raises on files that are something else, or damaged.
_NOT_WEIGHTS: Final = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    OSError,
)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as safetensors."""
    with replacing_file(path) as partial:
        # Not save_file, whose errors of a full disk are none of the system's.
        partial.write_bytes(safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what ``save_tensors`` wrote.

    Raises:
        LaqError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(need(path))
    except SafetensorError as error:
        raise LaqError(f"{path}: not a whole safetensors file ({error})") from error


def load_network(folder: Path = NETWORK, weights: Path | None = None) -> Classifier:
    """The network of the study, or with ``weights`` another one of its design."""
    network = build(read_design(folder))
    network.load_state_dict(load_tensors(weights or folder / WEIGHTS))
    return network


def read_design(folder: Path = NETWORK) -> NetworkDesign:
    """The design of the network in ``folder``."""
    return NetworkDesign.from_json(read_json(folder / DESIGN)["design"])


def load_foreign_weights(network: nn.Module, name: str, sha256: str | None) -> str:
    """Load the state dict in the file ``name`` (.safetensors, or a torch file) into ``network``.

    Returns:
        The file's SHA-256.

    Raises:
        LaqError: the file is missing, is not the one with ``sha256``, or belongs to another network.
    """
    path = project_root() / Path(name).expanduser()
    if not path.is_file():
        raise LaqError(
            f"network.weights: no file {name!r} (from {project_root()}); put it there, name another, "
            "or train the network here with network.source: train"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 not in {None, found}:
        raise LaqError(f"{name}: SHA-256 is {found}, network.sha256 in params.yaml says {sha256}")
    _load_matching(network, _read_state(path), name)
    return found


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == _SUFFIX:
        return load_tensors(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _NOT_WEIGHTS as error:
        reason = str(error).partition("\n")[0]
        raise LaqError(f"{path}: not a file of plain weights ({reason})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise LaqError(f"{path}: holds no state dict (names and tensors); save model.state_dict()")
    return state


def _load_matching(network: nn.Module, state: dict[str, Tensor], name: str) -> None:
    expected = network.state_dict()
    # Weights saved before torch counted batches lack these counters, and nothing else does.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in expected]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(t.shape)}"
        for k, t in expected.items()
        if k in state and state[k].shape != t.shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})"
        for what, keys in (("missing", missing), ("unknown", surplus), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise LaqError(f"{name}: weights of another network than network.architecture: {'; '.join(problems)}")
    network.load_state_dict(state, strict=False)
