"""What an operator may order a device to do."""

from collections.abc import Callable

Params = dict[str, object]
OnCommand = Callable[[str, Params], object]
"""Does a command, given its name and parameters; returns its result, raises CommandFailed."""


class CommandFailed(Exception):
    """The device cannot do what it was asked; the text says why."""
