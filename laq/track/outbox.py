"""The outbox: results that wait in ``.laq/outbox/`` at the project's root until a store has them."""

from pathlib import Path

from filelock import FileLock

from laq.errors import LaqError
from laq.files import project_root
from laq.track.runs import ResultRuns
from laq.track.store import Store


def outbox() -> Path:
    """The folder of results that wait, each a file named by its root's key."""
    return project_root() / ".laq" / "outbox"


def send_outbox(store: Store) -> int:
    """Send the results that wait, and delete each once it is sent; returns how many runs were sent.

    Raises:
        LaqError: the store cannot be reached or written, or a network that is to be sent is gone.
    """
    folder, count = outbox(), 0
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # what another process is sending is gone when it is done
        for path in sorted(folder.glob("*.json")):
            result = ResultRuns.load(path)
            for weights in [model.weights for run in result.runs for model in run.models]:
                if not weights.exists():
                    raise LaqError(f"{path}: waits to be sent, but {weights} is gone; remove the former")
            count += store.send(result).count
            path.unlink()
    return count
