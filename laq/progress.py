"""Progress bars: what is done, what is left; one line now and then where nobody watches."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 15.0  # between two lines in a log file


def progress(steps: Iterable[Any] | None, title: str, **options: Any) -> "tqdm[Any]":
    """A bar over ``steps`` on standard error; ``options`` are tqdm's."""
    interval = 0.2 if sys.stderr.isatty() else _LOG_SECONDS
    return tqdm(steps, title, mininterval=interval, dynamic_ncols=True, **options)
