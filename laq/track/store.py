"""The MLflow store that results go to, each once, and its errors, each in one line."""

import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random

from laq.addresses import outbox, tracking_uri, usual_uri, without_password
from laq.errors import LaqError
from laq.files import project_root
from laq.track.registry import register_champions
from laq.track.runs import ResultRuns
from laq.track.sending import CONTENT, KEY, RESULT, Sender
from laq.track.views import save_views

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
    """How many of a result's runs were sent now, and the ids of all of its runs by key, the root's first."""

    count: int
    ids: dict[str, str]
    experiment_id: str

    @property
    def page(self) -> str:
        """The page of the root below a server's address."""
        return f"/#/experiments/{self.experiment_id}/runs/{next(iter(self.ids.values()))}"


class Store:
    """The tracking server that ``MLFLOW_TRACKING_URI`` names, or sqlite at the project's root.

    Raises:
        LaqError: the store cannot be reached, or a setting of MLflow's is wrong.
    """

    def __init__(self) -> None:
        for name, value in _TIMEOUTS.items():
            if not os.environ.setdefault(name, value).isdigit():
                raise LaqError(f"{name}: found {os.environ[name]!r}; must be a whole number")
        os.environ.setdefault("PGOPTIONS", "-c statement_timeout=60s -c lock_timeout=20s")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # saves a request per run
        for name in ("alembic", "mlflow", "mlflow.store.db.utils", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log errors that are raised anyway
        self.uri = tracking_uri()
        if re.search("://.*@.*@", self.uri):
            raise LaqError(
                f"MLflow at {self}: more than one @ in MLFLOW_TRACKING_URI; write %40 for one in a password"
            )
        if re.search(r"\s", self.uri):
            raise LaqError("MLFLOW_TRACKING_URI: found white space in it; write %20 for a space")
        with self.one_line_errors():
            path = sqlalchemy.make_url(self.uri).database if self.uri.startswith(_SQLITE) else None
            self._file = Path(path).resolve() if path else None
            with self._locked():
                try:
                    self.client = _open_client(self.uri, self._file)
                except ValueError as error:
                    raise LaqError(
                        f"MLflow at {self}: {error}; MLFLOW_TRACKING_URI must be an address such as "
                        "sqlite:////folder/mlflow.db or http://host:5000"
                    ) from error

    def __str__(self) -> str:
        return without_password(self.uri)

    def where_to_look(self, places: Mapping[str, str]) -> str:
        """The addresses of places below a server's, a line each, with what serves them if none does."""
        server, command = str(self).rstrip("/"), ""
        if not self.uri.startswith("http"):
            # `mlflow run` names the usual one to what it starts.
            where = "" if self.uri == usual_uri() else ' --backend-store-uri "$MLFLOW_TRACKING_URI"'
            server, command = "http://127.0.0.1:5000", f" (while `mlflow ui --workers 1{where}` runs)"
        return "\n".join(f"{what}: {server}{place}{command}" for what, place in places.items())

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

    def contents(self, experiment: str, key: str) -> str | None:
        """The tag of a finished result that says what it holds, if there is one of this key.

        Raises:
            LaqError: the store cannot be reached.
        """
        if not (found := self.experiment(experiment)):
            return None
        with self.one_line_errors():
            asked = f"tags.`{KEY}` = '{key}' and attributes.status = 'FINISHED'"
            runs = self.client.search_runs([found.experiment_id], asked)
        return next((run.data.tags.get(CONTENT) for run in runs), None)

    def send(self, result: ResultRuns) -> Sent:
        """Send the runs and models of a result that the store lacks, and register the best models.

        Raises:
            LaqError: the store cannot be reached or written; what was sent until then stays.
        """
        with self.writing():
            return self._send(result, set())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write in this block, alone where the store is a file.

        Raises:
            LaqError: the store cannot be reached or written.
        """
        with self.one_line_errors(), self._locked():
            yield

    def sender(self, result: ResultRuns) -> Sender:
        """What sends single runs of a result, in an experiment that has its views.

        Raises:
            LaqError: the store cannot be reached or written.
        """
        with self.writing():
            experiment_id = self._experiment_id(result)
            save_views(self.client, self.client.get_experiment(experiment_id))
            return Sender(self.client, experiment_id, result)

    def send_outbox(self) -> list[Sent]:
        """Send the results that wait, and delete each once it is sent; returns what was sent of each.

        Raises:
            LaqError: the store cannot be reached or written, or a network that is to be sent is gone.
        """
        folder, sent = outbox(), list[Sent]()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # what another process is sending is gone when it is done
            for path in sorted(folder.glob("*.json")):
                result = ResultRuns.load(path)
                for weights in [model.weights for run in result.runs for model in run.models]:
                    if not weights.exists():
                        raise LaqError(f"{path}: waits to be sent, but {weights} is gone; remove the former")
                sent.append(self.send(result))
                path.unlink()
        return sent

    def _locked(self) -> AbstractContextManager[Any]:
        """Keep other processes away from a sqlite file: two that create one at once break it."""
        if not self._file:
            return nullcontext()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{self._file}.lock")
        lock.touch()  # where no file can be made, such as in /proc, FileLock waits for ever
        return FileLock(lock)

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
        experiment_id = self._experiment_id(result)
        sender = Sender(self.client, experiment_id, result)
        sent.update(sender.send())
        register_champions(self.client, result, sender.models)
        save_views(self.client, self.client.get_experiment(experiment_id))
        ids = {spec.key: sender.runs[spec.key].info.run_id for spec in result.runs}
        return Sent(len(sent), ids, experiment_id)

    def _experiment_id(self, result: ResultRuns) -> str:
        """The experiment of the run that `mlflow run` started, which becomes the root; else the result's own.

        If that does not exist, it is created. Artifacts of a database lie beside its file, or at the
        project's root; servers have a place of their own.
        """
        if result.own_run:
            everywhere = [experiment.experiment_id for experiment in self.client.search_experiments()]
            for run in self.client.search_runs(everywhere, f"attributes.run_id = '{result.own_run}'"):
                tags = [RunTag(name, result.root.key) for name in (KEY, RESULT)]
                self.client.log_batch(result.own_run, tags=tags)
                return str(run.info.experiment_id)
        if found := self.experiment(result.experiment):
            return str(found.experiment_id)
        beside = self._file.parent if self._file else project_root()
        is_database = self.uri.startswith(_DATABASES)
        artifacts = (beside / "mlruns" / result.experiment).as_uri() if is_database else None
        return str(self.client.create_experiment(result.experiment, artifacts))


def _open_client(uri: str, file: Path | None) -> MlflowClient:
    """Connect to a store, which is set up if it is a new database.

    A database is tried first, for MLflow itself tries ten times, which takes minutes; and two machines
    that set up a PostgreSQL database take turns.
    """
    if file and not file.exists():
        _create_database(file)
    with ExitStack() as stack:
        if uri.startswith(_DATABASES):
            engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
            connection = stack.enter_context(engine.connect())
            if engine.dialect.name == "postgresql":
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_SETUP_LOCK)))
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def _create_database(path: Path) -> None:
    """Create a sqlite store in a folder of its own: MLflow cannot use one that was left half made."""
    prefix = f"{path.name}.new-"
    for left in path.parent.glob(f"{prefix}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
        new = Path(folder) / path.name
        SqlAlchemyStore(f"{_SQLITE}{new}", (path.parent / "mlruns").as_uri()).engine.dispose()  # type: ignore[no-untyped-call]
        with closing(sqlite3.connect(new)) as connection:
            # Otherwise readers and writers block each other, and a commit waits for the disk thrice.
            connection.execute("PRAGMA journal_mode=WAL")
        new.rename(path)


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _configure_connection(connection: Any, _: Any) -> None:
    is_sqlite = isinstance(connection, sqlite3.Connection)
    if is_sqlite and connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        # Waits for the disk less: should the power fail, the last runs are missing, and sent again.
        connection.execute("PRAGMA synchronous=NORMAL")
