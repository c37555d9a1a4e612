"""Devices that speak for others: a gateway with machines behind it that have no connection of their own."""

from dataclasses import dataclass

from libs.common.errors import Forbidden

MOST_BEHIND = 1_000
"""Devices behind one gateway."""
LONGEST_NAME = 128


class NotAGateway(Forbidden):
    """The device may speak for itself alone."""

    slug = "not_a_gateway"


class NotBehind(Forbidden):
    """The gateway may not speak for what it names."""

    slug = "not_behind_this_gateway"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a device may do for others: speak for those that are behind it, and for nobody else."""

    registers: str | None
    """The type of the devices that it may register by naming them; None: it may register none."""
    most: int
    """How many devices may be behind it before it registers no more."""


def is_a_name(name: object) -> bool:
    """Whether a gateway may call a device so."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()
