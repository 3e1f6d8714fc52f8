"""Checkpoints from elsewhere: the weights in them, by the names that a network has for them."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from laq.errors import LaqError
from laq.quantization.options import nearest_name

# Where training programs put the weights in their checkpoints; averaged ones, which they evaluate, first.
_PLACES: Final = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "net")
# What wrappers put before the names of weights.
_PREFIXES: Final = ("module.", "_orig_mod.", "model.")
_TOLD: Final = 5  # tensors of each kind that do not fit
# What torch.load raises on files that are something else, or damaged.
_NOT_WEIGHTS: Final = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, OSError,
)  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a torch file, flat or under one of the usual names.

    Raises:
        LaqError: it holds no weights, is damaged, or holds what would run code; nothing of that is run.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _NOT_WEIGHTS as error:
        reason = str(error).partition("\n")[0]
        raise LaqError(
            f"{path}: not a file of plain weights, and nothing in it was run ({reason}); "
            "save model.state_dict() alone"
        ) from error
    while isinstance(content, dict) and not _is_state(content):
        places = [place for place in _PLACES if isinstance(content.get(place), dict)]
        content = content[places[0]] if places else None
    if content is None or not _is_state(content):
        raise LaqError(f"{path}: holds no state dict (names and tensors); save model.state_dict()")
    return {name: tensor for name, tensor in content.items() if name != "n_averaged"}


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(tensor, Tensor) for tensor in content.values())


def renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes that wrappers have put before all names, where that fits better."""
    best = dict(state)
    while prefix := next((p for p in _PREFIXES if state and all(n.startswith(p) for n in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if len(state.keys() & expected.keys()) > len(best.keys() & expected.keys()):
            best = dict(state)
    return best


def load_matching(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load weights into the network that they are of.

    Raises:
        LaqError: they are another network's; it tells which tensors do not fit.
    """
    expected = network.state_dict()
    state = renamed(state, expected)
    # Weights saved before torch counted batches lack these counters, and nothing else does.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [f"{k}{nearest_name(k, missing)}" for k in state if k not in expected]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(t.shape)}"
        for k, t in expected.items()
        if k in state and state[k].shape != t.shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
    problems = [f"{len(found)} {kind} ({_first(found)})" for kind, found in kinds if found]
    if problems:
        raise LaqError(f"{name}: weights of another network than network.architecture: {'; '.join(problems)}")
    if broken := [k for k, t in state.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise LaqError(f"{name}: holds values that are not finite in {_first(broken)}")
    network.load_state_dict(dict(state), strict=False)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_TOLD]) + (", ..." if len(names) > _TOLD else "")
