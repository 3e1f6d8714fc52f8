"""Writes and reads the folder of a measured cell: scores, predictions, layers, seconds and weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laq.architectures import Classifier
from laq.errors import LaqError
from laq.files import need, read_json, write_json
from laq.network.evaluation import restrict, score
from laq.paths import WEIGHTS
from laq.quantization import QuantizedNetwork, float32_bytes, save
from laq.study.cells import FLOAT_BITS, Cell
from laq.study.outcomes import KEPT, PairedOutputs, measured_outcomes
from laq.study.selection import choosing
from laq.study.tables import CHOOSING, REPORTING
from laq.subsets.subset import Subset

SECONDS: Final = "seconds.json"
MEASUREMENT: Final = "measurement.json"
LAYERS: Final = "layers.json"
TRAINING_KL: Final = "training_kl_nats"  # KL(float || quantized) of training images, where these rank
PREDICTIONS: Final = "predictions.npy"
ALWAYS: Final = (  # measured of every network
    "top1_all_percent", "top5_all_percent", "top1_sub_percent", "top5_sub_percent", "mean_bits",
    "sparsity_percent", "size_bytes", "compression",
)  # fmt: skip


@dataclass(frozen=True)
class MeasuredLayer:
    """The measurements of a quantized layer."""

    layer: str
    bits: int
    levels: int
    weights: int
    sparsity_percent: float
    relative_error: float


@dataclass(frozen=True)
class Judged:
    """What the test images tell of a network: numbers by their columns, and what is kept of each image."""

    numbers: dict[str, float | None]
    kept: NDArray[np.void]


def judge(classes: tuple[int, ...], labels: Tensor, logits: Sequence[Tensor]) -> Judged:
    """Judge a network by its restricted outputs and those of the float network that it was made from.

    Args:
        classes: the subset's.
        labels: the classes (n,) of images, of which some may be of other classes.
        logits: of the float network and of the judged one, each (n, c).
    """
    (before, among), (after, _) = (restrict(every, labels, classes) for every in logits)
    outputs = PairedOutputs(
        among.numpy(),
        # Among equal logits the place is chosen as the scores choose it.
        (before.topk(1).indices[:, 0].numpy(), after.topk(1).indices[:, 0].numpy()),
        (before.double().log_softmax(1).numpy(), after.double().log_softmax(1).numpy()),
    )
    percent = {f"{name}_percent": value for name, value in asdict(score(logits[1], labels, classes)).items()}
    chosen = choosing(labels[torch.isin(labels, torch.tensor(classes))].numpy())
    halves = {
        name: 100 * float(outputs.right[1][rows].mean()) if rows.any() else None
        for name, rows in ((CHOOSING, chosen), (REPORTING, ~chosen))
    }
    return Judged(percent | measured_outcomes(outputs) | halves, outputs.kept())


def write_results(
    folder: Path, cell: Cell, judged: Judged, made: QuantizedNetwork | Classifier, *, keep_network: bool
) -> None:
    """Write the measurements of the cell's network, and its quantized weights if ``keep_network``."""
    if isinstance(made, QuantizedNetwork):
        seconds = made.tuning_seconds + sum(layer.seconds for layer in made.layers)
        write_json(folder / SECONDS, round(seconds, 3))
        outcome = _write_quantized(folder, made, cell.subset)
        if not keep_network:
            (folder / WEIGHTS).unlink()
    else:
        outcome = _of_float(made)
    np.save(folder / PREDICTIONS, judged.kept)
    write_json(folder / MEASUREMENT, {**judged.numbers, **outcome})


def _of_float(network: Classifier) -> dict[str, Any]:
    """The measurements of a float network, by the same names as those of quantized ones."""
    weights = [w for w in network.parameters() if w.dim() > 1]  # leaves out biases and batch norms
    zeros = sum(w.numel() - int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    return {
        "mean_bits": float(FLOAT_BITS),
        "levels": None,
        "sparsity_percent": 100 * zeros,
        "size_bytes": float32_bytes(network),
        "compression": 1.0,
    }


def measured_layers(result: QuantizedNetwork) -> list[MeasuredLayer]:
    """The measurements of a network's layers, in the order of execution."""
    return [
        MeasuredLayer(
            layer=layer.name,
            bits=layer.bits,
            levels=layer.levels,
            weights=layer.codes.numel(),
            sparsity_percent=100 * layer.sparsity,
            relative_error=layer.relative_error,
        )
        for layer in result.layers
    ]


def _write_quantized(folder: Path, result: QuantizedNetwork, subset: Subset) -> dict[str, Any]:
    """Write the quantized weights and the layers' measurements; returns those of the whole network."""
    size = save(folder / WEIGHTS, result, {"classes": list(subset.names_in_order)})
    layers = measured_layers(result)
    write_json(folder / LAYERS, [asdict(layer) for layer in layers])
    # These columns exist only in tables of networks that keep some weights in float, or that a GPU made.
    kept = "; ".join(f"{o.name} ({o.weights} weights): {o.reason}" for o in result.not_quantized)
    return {
        **({"not_quantized": kept} if kept else {}),
        **({"quantized_on": result.device} if result.device != "cpu" else {}),
        "mean_bits": result.mean_bits,
        "levels": layers[0].levels if len({layer.levels for layer in layers}) == 1 else None,
        "sparsity_percent": 100 * result.sparsity,
        "size_bytes": size,
        "compression": float32_bytes(result.network) / size,
        "relative_error_mean": sum(layer.relative_error for layer in result.layers) / len(layers),
        "relative_error_logits": result.relative_error,
        **_measured_beside(result),
    }


def _measured_beside(result: QuantizedNetwork) -> dict[str, Any]:
    """The error on images held back, and what tuning did; the columns exist only where these are."""
    if result.held_back_error is None:
        return {}
    found: dict[str, Any] = {"relative_error_held_back": result.held_back_error}
    if result.tuned is None:
        return found
    return found | {
        "tuned": int(result.tuned.taken),
        "held_back_before_nats": result.tuned.divergence_before,
        "held_back_after_nats": result.tuned.divergence_after,
        "codes_moved_percent": 100 * result.tuned.codes_moved / result.weights,
        "tuning_passes": result.tuned.passes,
    }


def read_measurement(folder: Path) -> dict[str, Any]:
    """The cell's scores and the other measurements of the whole network.

    Raises:
        LaqError: the file is missing or damaged.
    """
    measurement: dict[str, Any] = _read(folder / MEASUREMENT, dict[str, int | float | str | None])
    for name in ALWAYS:
        if not isinstance(found := measurement.get(name), int | float) or not isfinite(found):
            where = f"{folder / MEASUREMENT}: {name}"
            raise LaqError(f"{where}: found {found!r}; must be a number; {_remedy(folder)}")
    return measurement


def read_predictions(folder: Path) -> NDArray[np.void]:
    """What is kept of the test images of the cell's subset (n,), of type ``outcomes.KEPT``.

    Raises:
        LaqError: the file is missing or damaged.
    """
    path = need(folder / PREDICTIONS, _remedy(folder))
    try:
        kept = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise LaqError(f"{path}: not a whole .npy file; {_remedy(folder)}") from error
    if not isinstance(kept, np.ndarray) or kept.dtype != KEPT:
        raise LaqError(f"{path}: must hold the predictions of a cell; {_remedy(folder)}")
    return kept


def read_seconds(folder: Path) -> float | None:
    """The seconds that choosing the cell's codes took; None for a float network.

    Raises:
        LaqError: the file is damaged.
    """
    path = folder / SECONDS
    return float(_read(path, float)) if path.exists() else None


def layer_rows(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """The measurements of the cell's layers, a row each; empty for a float network.

    Raises:
        LaqError: the file is damaged.
    """
    path = folder / LAYERS
    layers = _read(path, list[MeasuredLayer]) if path.exists() else []
    return [{"cell": cell.name, **asdict(layer)} for layer in layers]


def _read(path: Path, kind: Any) -> Any:
    return read_json(path, kind, _remedy(path.parent))


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and run the command again"
