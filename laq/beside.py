"""Work in a thread beside the main work, which does not wait for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_PATIENCE: Final = 10.0  # seconds that the end waits for what is under way


@contextmanager
def beside(work: Callable[[threading.Event], None], after: float) -> Iterator[None]:
    """Do ``work`` while the block runs, from ``after`` seconds on.

    It gets the event that the block has ended, and should then end soon; what it is at after some seconds
    more ends with the process.
    """
    over = threading.Event()

    def later() -> None:
        if not over.wait(after):
            work(over)

    thread = threading.Thread(target=later, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_PATIENCE)
