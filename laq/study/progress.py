"""The progress of measuring: how many cells are kept, and how long the others will take."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Final, Self

from laq.parallel import Workers
from laq.progress import progress, refreshed, told_seconds
from laq.study.cells import Cell

_BAR: Final = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}{postfix}]"


class StudyProgress:
    """A bar of the cells' estimated cost, with their number and the time that is left.

    A cell counts once it is kept, wherever it is measured. The time is that which the groups measured so
    far have taken for their cost, first of all the networks in float; before, none is told.
    """

    def __init__(self, folders: Mapping[Cell, Path], costs: Mapping[Cell, int], workers: Workers) -> None:
        self._folders, self._costs, self._workers = folders, costs, workers
        self._missing = {cell for cell in folders if not folders[cell].exists()}
        self._taken = self._paid = 0.0
        self._left = self._since = 0.0
        self._began = time.monotonic()
        kept = sum(costs[cell] for cell in folders.keys() - self._missing)
        # The sum of whole numbers is exact, so that the bar ends at 100 %.
        self._bar = progress(
            None, "study", total=sum(costs.values()), initial=kept, postfix=self._told(), bar_format=_BAR
        )
        self._lock, self._stack = Lock(), ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(refreshed(self.look))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.look()
        self._bar.close()

    def add(self, cells: tuple[Cell, ...], seconds: float, groups: int) -> None:
        """Learn from a group's ``cells`` what measuring takes; ``groups`` are left to measure."""
        with self._lock:
            self._taken += seconds
            self._paid += sum(self._costs[cell] for cell in cells)
            ways = max(1, min(self._workers.jobs, groups))
            if self._workers.scheduler:  # of whose workers the clock tells how many there are
                self._taken, ways = time.monotonic() - self._began, 1
            left = sum(self._costs[cell] for cell in self._missing.difference(cells))
            self._left, self._since = left * self._taken / max(self._paid, 1) / ways, time.monotonic()

    def look(self) -> None:
        """Count what is kept by now, and show it."""
        with self._lock:
            kept = {cell for cell in self._missing if self._folders[cell].exists()}
            self._missing -= kept
            self._bar.n += sum(self._costs[cell] for cell in kept)
            self._bar.set_postfix_str(self._told(), refresh=False)
            self._bar.refresh()

    def _told(self) -> str:
        count = f"{len(self._folders) - len(self._missing)}/{len(self._folders)} cells"
        left = self._left - (time.monotonic() - self._since)
        return f"{count}, about {told_seconds(left)} left" if self._missing and left > 0 else count
