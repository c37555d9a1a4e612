"""What every bus promises.

- `publish` returns when all messages are durable, or raises Unavailable; nothing is half-promised.
- A subscription gets every message of its types at least once, in the order they were published
  (a retried message may come later than its neighbours). *Shared*: one of a service's replicas
  gets it. *Per replica*: each does, from the moment it listens; what it missed is gone.
- A sharded subscription takes telemetry: one active consumer a shard, so that a device's points
  stay in order.
- Delivery ends in one of four outcomes, see `outcome_of`. Nothing is dropped: what cannot be
  handled lies with its reason among the dead letters of its subscription.
- An `Outbox` joins a transaction: what was written to it is published if and only if it commits.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.events.base import Message

Handle = Callable[[Sequence[Message]], Awaitable[None]]
"""Takes a batch in order. Returning means done with all of them; an exception is judged by `outcome_of`."""


class Mode(Enum):
    """Who of a service's replicas gets a message."""

    SHARED = "shared"
    PER_REPLICA = "per_replica"


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who listens to what.

    `name` is stable over releases (it names the queue, or the offset): `<service>.<purpose>`.
    `batch` is how many messages a handler is given at once at most; a batch that fails for a
    reason of its own is split, so that only the guilty message suffers.
    `attempts` is how often a message that fails is tried before it becomes a dead letter.
    `on_gap` is called when a replica may have missed messages of a per-replica subscription (the
    way to the bus was interrupted), once it hears again.
    """

    name: str
    types: frozenset[str]
    mode: Mode = Mode.SHARED
    sharded: bool = False
    batch: int = 1
    attempts: int = 5
    on_gap: Callable[[], None] | None = None


class Outbox(Protocol):
    """Messages that leave with a transaction."""

    async def write(self, connection: AsyncConnection, messages: Sequence[Message]) -> None:
        """Add the messages to the connection's open transaction. Call it last before the commit."""
        ...

    def committed(self) -> None:
        """Say that a transaction with messages has committed, so that they leave at once."""
        ...


class Bus(Protocol):
    """Carries messages between services."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Make the messages durable, then return. Raises Unavailable if that cannot be said."""
        ...

    def subscribe(self, subscription: Subscription, handle: Handle) -> None:
        """Listen from `start` on. Call before `start`."""
        ...

    def outbox(self, schema: str) -> Outbox:
        """Return the outbox of the service that owns the schema."""
        ...

    async def start(self) -> None:
        """Declare what is needed and begin to deliver."""
        ...

    async def stop(self) -> None:
        """Finish what is being handled (bounded), then stop; nothing is acknowledged unfinished."""
        ...

    async def check(self) -> None:
        """Return if the bus can be used now; raise Unavailable otherwise (readiness)."""
        ...
