"""Weights on disk: safetensors for our own, and state dicts that came from elsewhere."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from laq.architectures import Classifier, NetworkDesign, build
from laq.errors import LaqError
from laq.files import need, project_root, read_json, replacing_file
from laq.network.checkpoints import load_matching, read_checkpoint
from laq.paths import DESIGN, NETWORK, WEIGHTS

_SUFFIX: Final = ".safetensors"


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
    """The network of the study, or with ``weights`` another one of its design.

    Raises:
        LaqError: a file is missing, damaged or of another network.
    """
    network, path = build(read_design(folder), folder=folder), weights or folder / WEIGHTS
    load_matching(network, load_tensors(path), str(path))
    return network


@dataclass(frozen=True)
class _Record:
    """What is read of the file that a network is described by."""

    design: NetworkDesign


def read_design(folder: Path = NETWORK) -> NetworkDesign:
    """The design of the network in ``folder``.

    Raises:
        LaqError: the file is missing or damaged.
    """
    record: _Record = read_json(folder / DESIGN, _Record)
    return record.design


def read_foreign_weights(name: str, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    """The weights in the checkpoint ``name``, whose path starts from the project, and the file's SHA-256.

    Raises:
        LaqError: the file is missing, is not the one with ``sha256``, or holds no weights, or code.
    """
    path = project_root() / Path(name).expanduser()
    if not path.is_file():
        raise LaqError(
            f"network.weights: no file {name!r} (from {project_root()}); put it there, name another, "
            "or train the network here with network.source: train"
        )
    found = check_sha256(name, sha256)
    return load_tensors(path) if path.suffix == _SUFFIX else read_checkpoint(path), found


def check_sha256(name: str, sha256: str | None) -> str:
    """The SHA-256 of the file ``name``, whose path starts from the project.

    Raises:
        LaqError: it is not ``sha256``, if that is given.
    """
    found = hashlib.sha256((project_root() / Path(name).expanduser()).read_bytes()).hexdigest()
    if sha256 not in {None, found}:
        raise LaqError(f"{name}: SHA-256 is {found}, network.sha256 in params.yaml says {sha256}")
    return found
