"""How one attempt to deliver a notice ended."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Delivered:
    """The other side has taken it. `receipt` is its word: a status or the server's answer."""

    receipt: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Not taken now; may be later. `after`: the wait that the other side asked for, if any."""

    reason: str
    after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The receiver wants nothing more, ever: the channel is to be disabled."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The notice will never go this way; another attempt would end the same."""

    reason: str


Outcome = Delivered | Retry | Gone | Refused
