"""What hubs, and the code that they bring, raise, and how it is told in a line."""

from typing import Final

# No network, no such name, arguments that they do not take.
HUB_ERRORS: Final = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
