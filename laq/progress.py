"""Progress bars; where standard error is no terminal, lines 15 seconds apart."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Final, TextIO

from tqdm import tqdm

_SECONDS, _LOG_SECONDS = 0.2, 15.0  # between two looks of a bar on a terminal, and between two lines of a log
_REFRESHED: Final = 1.0  # seconds, on a terminal


class _Lines:
    """A log for bars, each of whose looks becomes a line."""

    def __init__(self, log: TextIO) -> None:
        self._log, self._last = log, ""

    def write(self, text: str) -> None:
        """Write what a bar writes between two returns to the beginning of its line, and nothing twice."""
        if (line := text.strip()) and line != self._last:
            self._log.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        """Write now what waits."""
        self._log.flush()


def progress(steps: Iterable[Any] | None, title: str, **options: Any) -> "tqdm[Any]":
    """A bar over ``steps`` on standard error, unless there are none; ``options`` are tqdm's."""
    options.setdefault("disable", options.get("total") == 0)
    return tqdm(steps, **bar_options(title), **options)


def bar_options(title: str) -> dict[str, Any]:
    """How every bar looks, for libraries that draw their own by tqdm."""
    if sys.stderr.isatty():
        return {"desc": title, "mininterval": _SECONDS, "dynamic_ncols": True}
    return {"desc": title, "mininterval": _LOG_SECONDS, "file": _Lines(sys.stderr)}


@contextmanager
def refreshed(refresh: Callable[[], None]) -> Iterator[None]:
    """Call ``refresh`` again and again while the block runs, as a bar does only at a step."""
    ended, pause = Event(), _REFRESHED if sys.stderr.isatty() else _LOG_SECONDS

    def tick() -> None:
        while not ended.wait(pause):
            refresh()

    thread = Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def told_seconds(seconds: float) -> str:
    """A time that is not known well, as people say it."""
    if seconds < 100:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
