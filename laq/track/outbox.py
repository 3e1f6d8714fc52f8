"""Results that wait for a store: kept on disk until they are sent."""

from pathlib import Path

from filelock import FileLock

from laq.errors import LaqError
from laq.files import project_root
from laq.track.runs import ResultRuns
from laq.track.store import Store


class Outbox:
    """Trees of runs in ``.laq/outbox/`` at the project's root, each a file with its root's key for a name."""

    def __init__(self) -> None:
        self.folder = project_root() / ".laq" / "outbox"

    def put(self, tree: ResultRuns) -> None:
        """Keep a tree until it is sent."""
        tree.save(self.folder / f"{tree.root.key}.json")

    def send(self, store: Store) -> int:
        """Send everything that waits, and keep it no longer; returns how many runs that were.

        Raises:
            LaqError: the store cannot be connected, or a network that is to be sent is gone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # One at a time: what another process is sending is gone when it is done.
        with FileLock(self.folder.with_suffix(".lock")):
            return sum(_send(path, store) for path in sorted(self.folder.glob("*.json")))


def _send(path: Path, store: Store) -> int:
    tree = ResultRuns.load(path)
    for network in (network for record in tree.runs for network in record.models):
        if not network.weights.exists():
            raise LaqError(f"{path}: waits to be sent, but {network.weights} is gone; remove the former")
    sent = store.send(tree).count
    path.unlink()
    return sent
