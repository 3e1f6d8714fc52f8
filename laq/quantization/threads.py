"""Threads that take one piece of work each and one core each.

Work is cut the same way however many threads there are, every piece is computed on one core, and
results come back in order: so sums over them are the same to the last bit on any machine. It is also
the faster way: one layer of a small network has too little work to share out among cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Pool:
    """As many threads as torch was told to use (``torch.set_num_threads``)."""

    def __init__(self, executor: ThreadPoolExecutor, workers: int) -> None:
        self._executor = executor
        self.workers = workers

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results in order; no more are in the making or waiting than twice the threads."""
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(self._executor.submit(function, item))
                if len(waiting) >= 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def run(self, function: Callable[[_Item], None], items: Iterable[_Item]) -> None:
        """Call it for all of them."""
        for _ in self.map(function, items):
            pass


@contextmanager
def as_workers() -> Iterator[None]:
    """Neither gradients nor inference mode, whose tensors workers, which are not in it, could not change."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


@contextmanager
def worker_pool(most: int | None = None) -> Iterator[Pool]:
    """A pool of ``most`` threads at most; while it is open, torch keeps to one thread outside of it too."""
    threads = torch.get_num_threads()
    workers = min(threads, most or threads)
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers, initializer=_keep_to_one_core) as executor:
            yield Pool(executor, workers)
    finally:
        torch.set_num_threads(threads)


def _keep_to_one_core() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
