"""Results that wait for a store: kept on disk until they are sent."""

from laq.files import project_root
from laq.track.record import Tree
from laq.track.store import Store


class Outbox:
    """Trees of runs in ``.laq/outbox/`` at the project's root, each a file with its root's key for a name."""

    def __init__(self) -> None:
        self.folder = project_root() / ".laq" / "outbox"

    def put(self, tree: Tree) -> None:
        """Keep a tree until it is sent."""
        tree.save(self.folder / f"{tree.root.key}.json")

    def send(self, store: Store) -> int:
        """Send everything that waits, and keep it no longer; returns how many runs that were."""
        sent = 0
        for path in sorted(self.folder.glob("*.json")):
            sent += store.deliver(Tree.load(path)).sent
            path.unlink(missing_ok=True)
        return sent
