"""An exported ONNX file as a model of MLflow's onnx flavour, which is served without laq and torch."""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import mlflow.onnx
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from laq.track.models import upload
from laq.track.store import Store, own_run

NAME: Final = "onnx"  # of the model in its run
_PACKAGES: Final = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")  # what loading and serving takes
_CPU: Final = ["CPUExecutionProvider"]  # integers are computed there


def log_onnx(store: Store, path: Path) -> None:
    """Add the file at ``path`` as a model to the run that `mlflow run` started, if there is one.

    Its input and output are the file's own; its metadata are what the file says of itself.

    Raises:
        LaqError: the store cannot be reached or written.
    """
    if own := own_run():
        import onnx  # noqa: PLC0415 (an extra of its own, which wrote the file)

        content = onnx.load(path)
        told = {held.key: json.loads(held.value) for held in content.metadata_props}
        with store.one_line_errors(), tempfile.TemporaryDirectory() as scratch:
            experiment = store.client.get_run(own).info.experiment_id
            logged = store.client.create_logged_model(experiment, NAME, own, model_type="quantized")
            folder = Path(scratch) / "model"
            mlflow.onnx.save_model(
                content,
                str(folder),
                mlflow_model=_described(logged),
                signature=_signature(content.graph),
                pip_requirements=[f"{name}=={version(name)}" for name in _PACKAGES],
                onnx_execution_providers=_CPU,
                metadata=told,
                save_as_external_data=False,
            )
            upload(store.client, logged, folder)
            store.client.log_outputs(own, [LoggedModelOutput(logged.model_id, 0)])


def _described(logged: LoggedModel) -> Model:
    """What says in the folder which model it is."""
    return Model(
        artifact_path=logged.artifact_location,
        run_id=logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )


def _signature(graph: Any) -> ModelSignature:
    """The types and shapes of a graph's inputs and outputs; -1 is how many images there are."""
    inputs, outputs = (Schema([_spec(value) for value in values]) for values in (graph.input, graph.output))
    return ModelSignature(inputs, outputs)


def _spec(value: Any) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype  # noqa: PLC0415 (as above)

    held = value.type.tensor_type
    sides = tuple(side.dim_value or -1 for side in held.shape.dim)
    return TensorSpec(np.dtype(tensor_dtype_to_np_dtype(held.elem_type)), sides, value.name)
