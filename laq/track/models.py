"""A packed network as the folder that MLflow serves: a pyfunc model without pickles."""

import copy
import tempfile
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map

from laq.architectures import NetworkDesign, packages_of
from laq.files import md5, write_json
from laq.paths import NETWORK
from laq.serving import COLUMN, DESCRIPTION, WEIGHTS, Limits
from laq.serving.pyfunc import ServedClassifier
from laq.track.run_specs import ModelSpec

_DATA: Final = "network"  # the folder of a model's own files
_SIGNATURE: Final = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), COLUMN)]),  # type: ignore[no-untyped-call]
    outputs=Schema(
        [
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)
# What loading and serving a model takes beside what its architecture needs.
_PACKAGES: Final = ("laq", "mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors", "torch")


def save_model(folder: Path, spec: ModelSpec, logged: LoggedModel) -> None:
    """Write the folder that `mlflow models serve` and ``mlflow.pyfunc.load_model`` take."""
    packages = (*_PACKAGES, *packages_of(spec.design["architecture"]))
    frame, files = _frame(tuple(spec.examples), packages)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "data").mkdir()
    write_network(folder / "data" / _DATA, spec)
    model = copy.copy(frame)
    model.artifact_path, model.run_id = logged.artifact_location, logged.source_run_id
    model.model_uuid = model.model_id = logged.model_id
    model.utc_time_created = str(
        datetime.fromtimestamp(logged.creation_timestamp / 1000, UTC).replace(tzinfo=None)
    )
    model.model_size_bytes = spec.weights.stat().st_size
    model.save(folder / MLMODEL_FILE_NAME)


@cache
def _frame(examples: tuple[str, ...], packages: tuple[str, ...]) -> tuple[Model, dict[str, bytes]]:
    """What models with the same examples and packages share: made once, for that takes longest.

    Packages are required in the versions that wrote the model.
    """
    model = Model()
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch) / "model", Path(scratch) / _DATA
        data.mkdir()
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=ServedClassifier.__module__,
            data_path=str(data),
            model_config=Limits().model_dump(),  # MLflow lets those be changed that stand here
            mlflow_model=model,
            signature=_SIGNATURE,
            input_example=pd.DataFrame({COLUMN: list(examples)}),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in packages],
        )
        return model, {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def upload(client: MlflowClient, logged: LoggedModel, folder: Path) -> LoggedModel:
    """Upload a model's files, with which it is ready."""
    # MLflow's client would first ask the server where the model's artifacts are.
    place, uri = logged.artifact_location, client.tracking_uri
    get_artifact_repository(place, tracking_uri=uri).log_artifacts(str(folder))  # type: ignore[no-untyped-call]
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def write_network(folder: Path, spec: ModelSpec) -> None:
    """Write what ``laq.serving`` loads: packed weights, and the network and classes that they are of."""
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(spec.weights.read_bytes())
    design = NetworkDesign.from_json(spec.design).beside(folder, NETWORK)
    about = {"design": design.to_json(), "classes": spec.classes, "md5": md5(folder / WEIGHTS)}
    write_json(folder / DESCRIPTION, about)
