"""Progress bars; where standard error is no terminal, a line every 15 seconds."""

import sys
from collections.abc import Iterable
from typing import Any, Final

from tqdm import tqdm

_LOG_SECONDS: Final = 15.0  # between two lines in a log file


def progress(steps: Iterable[Any] | None, title: str, **options: Any) -> "tqdm[Any]":
    """A bar over ``steps`` on standard error; ``options`` are tqdm's."""
    return tqdm(steps, **bar_options(title), **options)


def bar_options(title: str) -> dict[str, Any]:
    """How every bar looks, for libraries that draw their own by tqdm."""
    interval = 0.2 if sys.stderr.isatty() else _LOG_SECONDS
    return {"desc": title, "mininterval": interval, "dynamic_ncols": True}
