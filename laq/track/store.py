"""The MLflow store that results go to, each once, and its errors, each in one line."""

import logging
import os
import re
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random

from laq.errors import LaqError
from laq.files import digest, project_root
from laq.track.registry import register_champions
from laq.track.runs import ResultRuns
from laq.track.sending import Sender, adopt_own_run

_SQLITE: Final = "sqlite:///"
_DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
_SETUP_LOCK: Final = 7_561_077  # PostgreSQL names advisory locks by numbers
# A store that does not answer is reported within a minute; what the user has set stays.
_TIMEOUTS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PGCONNECT_TIMEOUT": "10",
}
# What errors say of something that another machine has just deleted or created.
_INTERFERENCE: Final = re.compile("NOT_EXIST|ALREADY_EXISTS|INVALID_|IntegrityError|UniqueViolation")


@dataclass(frozen=True)
class Sent:
    """How many of a result's runs were sent now, and the ids of all of its runs by key."""

    count: int
    ids: dict[str, str]
    experiment_id: str


class Store:
    """The tracking server that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root.

    Raises:
        LaqError: the store cannot be reached, or a setting of MLflow's is wrong.
    """

    def __init__(self) -> None:
        for name, value in _TIMEOUTS.items():
            if not os.environ.setdefault(name, value).isdigit():
                raise LaqError(f"{name}: found {os.environ[name]!r}; must be a whole number")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # saves a request per run
        for name in ("alembic", "mlflow", "mlflow.store.db.utils", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log errors that are raised anyway
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{project_root() / 'mlflow.db'}"
        if re.search("://.*@.*@", self.uri):
            raise LaqError(
                f"MLflow at {self}: more than one @ in MLFLOW_TRACKING_URI; write %40 for one in a password"
            )
        with self.one_line_errors(), self._locked():
            self.client = _open_client(self.uri)

    def __str__(self) -> str:
        return _without_password(self.uri)

    @contextmanager
    def one_line_errors(self) -> Iterator[None]:
        """Turn what MLflow and the libraries below it raise into one line that names the store."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            reason = _without_password(str(getattr(error, "orig", None) or error).partition("\n")[0])
            # This is all that sqlite knows.
            reason = reason.replace("disk I/O error", "disk I/O error (is the disk full?)")
            raise LaqError(
                f"MLflow at {self}: {reason}; nothing measured is lost: see to the store "
                "(MLFLOW_TRACKING_URI), then `laq track` sends what it lacks"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes of this machine out: two that create a sqlite store at once break it."""
        lock = Path(tempfile.gettempdir()) / f"laq-{digest([os.getuid(), self.uri])[:16]}.lock"
        if self.uri.startswith(_SQLITE):
            database = _database_file(self.uri)
            database.parent.mkdir(parents=True, exist_ok=True)
            lock = database.with_name(f"{database.name}.lock")
        with FileLock(lock):
            yield

    def send(self, result: ResultRuns) -> Sent:
        """Send the runs and models of a result that the store lacks, and register the best models.

        Raises:
            LaqError: the store cannot be reached or written; what was sent until then stays.
        """
        with self.one_line_errors(), self._locked():
            return self._send(result, set())

    @retry(
        retry=retry_if_exception(
            lambda error: bool(_INTERFERENCE.search(f"{getattr(error, 'error_code', '')} {error}"))
        ),
        stop=stop_after_attempt(8),
        wait=wait_random(0, 0.5),
        reraise=True,
    )
    def _send(self, result: ResultRuns, sent: set[str]) -> Sent:
        """Send a result; ``sent`` gets the keys of the runs that were missing."""
        experiment_id = adopt_own_run(self.client, result) or self._experiment_id(result.experiment)
        sender = Sender(self.client, experiment_id, result)
        sent.update(sender.send())
        register_champions(self.client, result, sender.models)
        return Sent(len(sent), {key: run.info.run_id for key, run in sender.runs.items()}, experiment_id)

    def _experiment_id(self, name: str) -> str:
        """The id of the experiment, which is created if it does not exist.

        Artifacts of a database lie beside its file, or at the project's root; servers have a place of
        their own.
        """
        if found := self.client.get_experiment_by_name(name):
            return str(found.experiment_id)
        beside = _database_file(self.uri).parent if self.uri.startswith(_SQLITE) else project_root()
        artifacts = (beside / "mlruns" / name).as_uri() if self.uri.startswith(_DATABASES) else None
        return str(self.client.create_experiment(name, artifacts))


def _open_client(uri: str) -> MlflowClient:
    """Connect to a store, which is set up if it is a new database.

    A database is tried first, for MLflow itself tries ten times, which takes minutes; and two machines
    that set up a PostgreSQL database take turns.
    """
    if uri.startswith(_SQLITE) and not _database_file(uri).exists():
        _create_database(_database_file(uri))
    with ExitStack() as stack:
        if uri.startswith(_DATABASES):
            engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
            connection = stack.enter_context(engine.connect())
            sqlalchemy.inspect(connection).get_table_names()
            if engine.dialect.name == "postgresql":
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_SETUP_LOCK)))
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def _create_database(path: Path) -> None:
    """Create a sqlite store under a temporary name: MLflow cannot use one that was left half made."""
    new = path.with_name(f"{path.name}.new-{uuid.uuid4().hex[:8]}")  # MLflow keeps connections by name
    try:
        SqlAlchemyStore(f"{_SQLITE}{new}", (path.parent / "mlruns").as_uri()).engine.dispose()  # type: ignore[no-untyped-call]
        with closing(sqlite3.connect(new)) as connection:
            # Otherwise readers and writers block each other, and a commit waits for the disk thrice.
            connection.execute("PRAGMA journal_mode=WAL")
        new.rename(path)
    finally:
        for left in path.parent.glob(f"{path.name}.new*"):
            left.unlink()


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _configure_connection(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            # Waits for the disk less: should the power fail, the last runs are missing, and sent again.
            connection.execute("PRAGMA synchronous=NORMAL")
    elif type(connection).__module__.startswith("psycopg") and "PGOPTIONS" not in os.environ:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SET statement_timeout = '60s'; SET lock_timeout = '20s'")
        connection.commit()


def _database_file(uri: str) -> Path:
    return Path(sqlalchemy.make_url(uri).database or "").resolve()


def _without_password(text: str) -> str:
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text))
