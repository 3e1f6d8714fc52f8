"""The one exception that means: the input is wrong, and here is what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class LaqError(Exception):
    """Bad input, described in one line: what was found, what is allowed and what to do.

    The command line prints the message and exits with code 2.
    """


@contextmanager
def within(section: str) -> Iterator[None]:
    """Inside the block the keys that a ``LaqError`` begins with are those of a section of ``params.yaml``.

    Raises:
        LaqError: what the block raises, its key with the section's before it.
    """
    try:
        yield
    except LaqError as error:
        raise LaqError(f"{section}.{error}") from error
