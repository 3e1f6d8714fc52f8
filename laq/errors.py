"""The one exception that means: the input is wrong, and here is what to do."""


class LaqError(Exception):
    """Bad input, described in one line: what was found, what is allowed and what to do.

    The command line prints the message and exits with code 2.
    """
