"""What clients of an HTTP server may make it hold, and for how long, before anybody knows who they are."""

import resource
from dataclasses import dataclass

from libs.common.addresses import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much a server bears. Beyond it a connection is refused or ended."""

    connections: int = 4_000
    """Open at once, WebSockets among them."""
    connections_per_address: int | None = None
    """Open at once from one address, WebSockets apart; None: as many as there may be."""
    proxies: tuple[Network, ...] = ()
    """Through these come many clients: to them the limit of one address does not apply."""
    head_bytes: int = 32 * 1024
    """The request line and the headers."""
    head_within_s: float = 10.0
    """From the connection, or the first byte of a later request, to the head's end."""
    body_within_s: float = 20.0
    """How long a body may take; longer by a second for each `body_rate` bytes of it."""
    body_rate: int = 500
    answer_within_s: float = 60.0
    """How long a client may take nothing of an answer that waits for it."""


def raise_open_files() -> None:
    """Let the process open as many files as it may at all; a socket is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        # Some systems say "no limit" and refuse it. What there is goes on to count.
        return


def within_open_files(wanted: int, share: float) -> int:
    """Return how many sockets of a kind there may be: as many as wanted, within a share of what the
    process may open. What the shares leave is for databases, the bus, and files.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, int(soft * share)))
