"""For those who quantize in a run of their own: a line that logs a quantized network to it."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric

from laq.paths import WEIGHTS
from laq.quantization import QuantizedNetwork, float32_bytes, save
from laq.study.results import measured_layers
from laq.track.specs_of_results import LONGEST_PARAM

_PER_LAYER: Final = ("bits", "relative_error", "sparsity_percent")
_LAYERS: Final = "layers.json"


def log(result: QuantizedNetwork, name: str = "") -> None:
    """Log a quantized network to the active MLflow run, which MLflow starts if there is none.

    The run gets the recipe as parameters; the mean bits of a weight, the size in KiB, how many times smaller
    that is than float, the sparsity and the outputs' relative error as metrics; bits, error and sparsity of
    each layer as metrics whose step is the layer's place; a table of the layers (``layers.json``); and the
    packed network (``network.safetensors``), which ``laq.quantization.load`` reads.

    Args:
        result: what ``laq.quantization.quantize`` gave.
        name: goes before all of these and a slash, where a run has several networks.

    Raises:
        MlflowException: the store cannot be reached or written, or the run has other parameters of this name.

    Examples:
        >>> import mlflow, torch
        >>> from laq.quantization import Recipe, quantize
        >>> from laq.track import log
        >>> result = quantize(torch.nn.Linear(8, 2), torch.rand(16, 8), Recipe(bits=3))
        >>> with mlflow.start_run() as run:
        ...     log(result, "small")
        >>> mlflow.get_run(run.info.run_id).data.metrics["small/mean_bits"]
        3.0
    """
    run = mlflow.active_run() or mlflow.start_run()
    prefix = f"{name}/" if name else ""
    with tempfile.TemporaryDirectory() as folder:
        size = save(Path(folder) / WEIGHTS, result)
        mlflow.log_artifact(f"{folder}/{WEIGHTS}", name or None)
    layers = pd.DataFrame(map(asdict, measured_layers(result)))
    mlflow.log_table(layers, f"{prefix}{_LAYERS}")
    mlflow.log_params({f"{prefix}{key}": str(v)[:LONGEST_PARAM] for key, v in asdict(result.recipe).items()})
    mlflow.log_metrics(
        {
            f"{prefix}mean_bits": result.mean_bits,
            f"{prefix}size_kib": size / 1024,
            f"{prefix}compression": float32_bytes(result.network) / size,
            f"{prefix}sparsity_percent": 100 * result.sparsity,
            f"{prefix}relative_error": result.relative_error,
        }
    )
    # One request: a database file takes long over single ones.
    MlflowClient().log_batch(run.info.run_id, metrics=list(_by_layer(layers, prefix, run.info.start_time)))


def _by_layer(layers: pd.DataFrame, prefix: str, when: int) -> Iterator[Metric]:
    for measure in _PER_LAYER:
        for place, value in enumerate(layers[measure]):
            yield Metric(f"{prefix}layers/{measure}", float(value), when, place)
