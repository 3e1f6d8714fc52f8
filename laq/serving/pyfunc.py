"""The classifier as MLflow's pyfunc model; MLflow's servers import this module by its name to load one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from laq.errors import LaqError
from laq.serving import Limits, SubsetClassifier, load_classifier


class RefusedRequest(MlflowException):
    """What MLflow's servers answer with status 400 and the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        """The server's answer: by now it has put the whole request before the reason, which is megabytes."""
        self.message = str(self.args[0])
        answer: str = super().serialize_as_json()  # type: ignore[no-untyped-call]
        return answer


class ServedClassifier:
    """What MLflow calls to predict."""

    def __init__(self, classifier: SubsetClassifier) -> None:
        self.classifier = classifier

    def predict(self, data: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002 (MLflow's signature)
        """As ``SubsetClassifier.predict``.

        Raises:
            RefusedRequest: the request is wrong or too large.
        """
        try:
            return self.classifier.predict(data)
        except LaqError as error:
            raise RefusedRequest(str(error)) from error


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> ServedClassifier:
    """Called by MLflow with the model's own folder and the limits that whoever loads it has set."""
    return ServedClassifier(load_classifier(Path(path), Limits.of(model_config)))
