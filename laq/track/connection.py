"""How the store is connected, and what is said when it is not: in one line, whatever failed."""

import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from laq.errors import LaqError

# `mlflow run` names its run here; starting and ending a run deletes the variable.
OWN_RUN: Final = os.environ.get("MLFLOW_RUN_ID", "")
SQLITE: Final = "sqlite:///"
DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
_SETTING_UP: Final = 7_561_077  # PostgreSQL knows locks by numbers
# A store that is gone, or never answers, is told in a minute at most; the user's own settings go first.
_PATIENCE: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PGCONNECT_TIMEOUT": "10",
}
# MLflow writes a line or a whole traceback of its own for what is told in one line here.
_TALKATIVE: Final = {
    "alembic": logging.ERROR,
    "mlflow": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,
    "urllib3": logging.ERROR,
}


def configure_mlflow() -> None:
    """Make MLflow patient but not for ever, and keep it from talking."""
    for name, value in _PATIENCE.items():
        if not os.environ.setdefault(name, value).isdigit():
            raise LaqError(f"{name}: found {os.environ[name]!r}; must be a whole number")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a request more for every run
    for name, level in _TALKATIVE.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def connected(uri: str) -> Iterator[None]:
    """Connect to a database first: MLflow itself tries ten times, for minutes and with many words."""
    if not uri.startswith(DATABASES):
        yield
        return
    if uri.startswith(SQLITE) and not database_file(uri).exists():
        _make_database(database_file(uri))
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        sqlalchemy.inspect(connection).get_table_names()
        if engine.dialect.name == "postgresql":
            # Two machines that set up a new database at once are in each other's way.
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(_SETTING_UP)))
        yield
    engine.dispose()


def _make_database(path: Path) -> None:
    """Make a new sqlite store under another name first: one that was left half made is never usable."""
    new = path.with_name(f"{path.name}.new-{uuid.uuid4().hex[:8]}")  # MLflow keeps connections by name
    try:
        made = SqlAlchemyStore(f"{SQLITE}{new}", (path.parent / "mlruns").as_uri())  # type: ignore[no-untyped-call]
        made.engine.dispose()
        with closing(sqlite3.connect(new)) as connection:
            # Otherwise readers and writers stop each other, and a commit waits for the disk thrice.
            connection.execute("PRAGMA journal_mode=WAL")
        new.rename(path)
    finally:
        for left in path.parent.glob(f"{path.name}.new*"):
            left.unlink()


@event.listens_for(Engine, "connect")
def _tune(connection: Any, _: Any) -> None:
    """Settle how long a database may take."""
    if isinstance(connection, sqlite3.Connection):
        with closing(connection.execute("PRAGMA journal_mode")) as mode:
            wal = mode.fetchone() == ("wal",)
        if wal:
            # Waits for the disk less: should the power fail, the last runs are missing, and sent again.
            connection.execute("PRAGMA synchronous=NORMAL").close()
    elif type(connection).__module__.startswith("psycopg") and "PGOPTIONS" not in os.environ:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SET statement_timeout = '60s'; SET lock_timeout = '20s'")
        connection.commit()


def database_file(uri: str) -> Path:
    """The file of a sqlite store."""
    return Path(sqlalchemy.make_url(uri).database or "").resolve()


def without_password(text: str) -> str:
    """The text with every password in an address of a store left out."""
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text))


@contextmanager
def one_line_errors(store: str) -> Iterator[None]:
    """Turn what MLflow and the stores below it raise into one line that names the store."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = without_password(str(getattr(error, "orig", None) or error).partition("\n")[0])
        reason = reason.replace("disk I/O error", "disk I/O error (is the disk full?)")  # all sqlite knows
        raise LaqError(
            f"MLflow at {store}: {reason}; nothing measured is lost: see to the store "
            "(MLFLOW_TRACKING_URI), then `laq track` sends what it lacks"
        ) from error
