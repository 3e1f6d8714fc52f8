"""The MLflow store that runs go to: how it is opened, who may write, and its errors in a line each."""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Final
from urllib.parse import quote

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError

from laq.addresses import tracking_uri, without_password
from laq.errors import LaqError
from laq.files import project_root, replacing_file
from laq.track.descriptions import shortened

_SQLITE: Final = "sqlite:///"
_DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
_SETUP_LOCK: Final = 7_561_077  # PostgreSQL names advisory locks by numbers
# A store that does not answer is reported within a minute; what the user has set stays.
_SETTINGS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PGCONNECT_TIMEOUT": "10",
    "PGOPTIONS": "-c statement_timeout=60s -c lock_timeout=20s",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # saves a request per run
}


def own_run() -> str:
    """The id of the run that `mlflow run` started, if it started this process; else empty."""
    return os.environ.get("MLFLOW_RUN_ID", "")


class Store:
    """The tracking server that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root.

    Raises:
        LaqError: the store cannot be reached, or a setting of MLflow's is wrong.
    """

    def __init__(self) -> None:
        for name, value in _SETTINGS.items():
            found = os.environ.setdefault(name, value)
            if value.isdigit() and not found.isdigit():
                raise LaqError(f"{name}: found {found!r}; must be a whole number")
        for name in ("alembic", "mlflow", "mlflow.store.db.utils", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log errors that are raised anyway
        self.uri = tracking_uri()
        if wrong := re.search(r"\s|@(?=.*@)", self.uri):
            told = f"found {wrong[0]!r} within the address; write {quote(wrong[0], safe='')} for it"
            raise LaqError(f"MLFLOW_TRACKING_URI: {told}")
        with self.one_line_errors():
            path = sqlalchemy.make_url(self.uri).database if self.uri.startswith(_SQLITE) else None
            self._file = Path(path).resolve() if path else None
            self.lock = FileLock(f"{self._file}.lock") if self._file else nullcontext()
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                # Where no file can be made, such as in /proc, the lock would be waited for without end.
                Path(f"{self._file}.lock").touch()
            with self.lock:
                self.client = self._open()

    def __str__(self) -> str:
        return without_password(self.uri)

    @contextmanager
    def one_line_errors(self) -> Iterator[None]:
        """Turn what MLflow and the libraries below it raise into one line that names the store."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            reason = without_password(str(getattr(error, "orig", None) or error).partition("\n")[0])
            # This is all that sqlite knows.
            reason = reason.replace("disk I/O error", "disk I/O error (is the disk full?)")
            raise LaqError(
                f"MLflow at {self}: {reason}; nothing measured is lost: see to the store "
                "(MLFLOW_TRACKING_URI), then `laq track` sends what it lacks"
            ) from error

    def experiment(self, name: str) -> Experiment | None:
        """The experiment of this name, if there is one.

        Raises:
            LaqError: it is in the store's trash, or the store cannot be reached.
        """
        with self.one_line_errors():
            found = self.client.get_experiment_by_name(name)
        if found and found.lifecycle_stage != LifecycleStage.ACTIVE:
            restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
            remove = f"mlflow gc --experiment-ids {found.experiment_id}"
            raise LaqError(
                f"MLflow at {self}: experiment {name} was deleted; `{restore}` brings it and its runs back, "
                f"`{remove}` removes it for good"
            )
        return found

    def create_experiment(self, name: str) -> str:
        """Create an experiment; a database's artifacts lie beside its file, or at the project's root."""
        folder = (self._file.parent if self._file else project_root()) / "mlruns" / name
        place = folder.as_uri() if self.uri.startswith(_DATABASES) else None
        return str(self.client.create_experiment(name, place))

    def annotate(self, description: str, tags: Mapping[str, str], files: Sequence[Path] = ()) -> None:
        """Add a description, tags and artifacts to the run that `mlflow run` started, if it did.

        Raises:
            LaqError: the store cannot be reached or written.
        """
        if own := own_run():
            with self.one_line_errors():
                for path in files:
                    self.client.log_artifact(own, str(path))
                for name, value in {**tags, "mlflow.note.content": shortened(description)}.items():
                    self.client.set_tag(own, name, value)

    def _open(self) -> MlflowClient:
        """Connect to the store, which is set up if it is a new database."""
        if self._file and not self._file.exists():
            # Whole or not at all: MLflow cannot use a database that was left half made.
            with replacing_file(self._file) as new:
                artifacts = (self._file.parent / "mlruns").as_uri()
                SqlAlchemyStore(f"{_SQLITE}{new}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
                with closing(sqlite3.connect(new)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # else readers and writers block each other
        try:
            with ExitStack() as stack:
                if self.uri.startswith(_DATABASES):  # MLflow itself tries ten times, which takes minutes
                    engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool)
                    connected = stack.enter_context(engine.connect())
                    if engine.dialect.name == "postgresql":  # machines that set it up take turns
                        connected.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_SETUP_LOCK)))
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)
                return client
        except ValueError as error:
            raise MlflowException(
                f"{error}; MLFLOW_TRACKING_URI must be an address such as sqlite:////folder/mlflow.db or "
                "http://host:5000"
            ) from error
