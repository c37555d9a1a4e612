"""The door through which events arrive: transaction, inbox and commit in one place.

A service declares its handlers in `handlers.py`:

    subscriptions = Subscriptions[AlertingStore]("alerting")

    @subscriptions.on(RuleTriggered)
    async def on_rule_triggered(event: RuleTriggered, store: AlertingStore) -> None: ...

and attaches them in `app.py`. A handler runs in a transaction of the event's tenant, once for each
event however often that is delivered; what it raises is judged by `outcome_of`.

Several events of a tenant that come together share a transaction: one commit, and if a handler
raises, none of them was handled and the bus brings them again in smaller batches, so that only the
guilty one suffers. Of one tenant's events one transaction is at work at a time, in all replicas: handlers
need not mind that a trigger and its clearing may meet.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import TextClause, text

from libs.common.bus.base import Bus, Mode, Subscription
from libs.common.db.transactions import Store, Transactions
from libs.common.events.base import Event, Message, from_message
from libs.common.trace import enter_trace, leave_trace, trace_id_of

S = TypeVar("S", bound=Store)
E = TypeVar("E", bound=Event)

Handler = Callable[[Any, S], Awaitable[None]]
"""Takes an event of the class it was declared for, and the store of the transaction."""

Listener = Callable[[Any], Awaitable[None]]
"""Takes an event of the class it was declared for, outside of any transaction."""

BATCH = 32
"""Events taken at once. More make a commit cheaper, and keep a tenant's rows locked for longer."""

_Heard = Sequence[tuple[Message, Event]]


class Subscriptions(Generic[S]):
    """The event handlers of one service: one queue, in order for each tenant."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._handlers: dict[str, tuple[type[Event], Handler[S]]] = {}

    def on(
        self, event_class: type[E]
    ) -> Callable[[Callable[[E, S], Awaitable[None]]], Callable[[E, S], Awaitable[None]]]:
        """Declare the handler of an event class."""

        def declare(
            handler: Callable[[E, S], Awaitable[None]],
        ) -> Callable[[E, S], Awaitable[None]]:
            if event_class.type in self._handlers:
                raise ValueError(f"{self._service} handles {event_class.type} twice")
            self._handlers[event_class.type] = (event_class, handler)
            return handler

        return declare

    def attach(self, bus: Bus, transactions: Transactions[S]) -> None:
        """Subscribe the handlers as the service's shared queue `<service>.events`."""
        name = f"{self._service}.events"
        claim = _claim(self._service)

        async def handle(messages: Sequence[Message]) -> None:
            by_tenant: dict[UUID, list[tuple[Message, Event]]] = {}
            for message in messages:
                event_class, _ = self._handlers[message.type]
                event = from_message(event_class, message)
                by_tenant.setdefault(event.tenant_id, []).append((message, event))
            for tenant_id, heard in by_tenant.items():
                await handle_of(tenant_id, heard)

        async def handle_of(tenant_id: UUID, heard: _Heard) -> None:
            async with transactions.begin(tenant_id) as store:
                claimed = await store.session.scalars(
                    claim,
                    {
                        "turn": f"{name}:{tenant_id}",
                        "name": name,
                        "ids": [event.id for _, event in heard],
                    },
                )
                new = set(claimed)
                for message, event in heard:
                    if event.id not in new:
                        continue
                    new.remove(event.id)  # it may be in the batch twice
                    _, handler = self._handlers[message.type]
                    with traced(message):
                        await handler(event, store)
                        # The next one finds what this one wrote, and nothing remembered.
                        await store.session.flush()
                        store.session.expunge_all()

        bus.subscribe(Subscription(name, frozenset(self._handlers), batch=BATCH), handle)


def _claim(schema: str) -> TextClause:
    """Return the statement that waits for the tenant's turn, and marks and returns what is new."""
    return text(
        f"""
        WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended(:turn, 0)))
        INSERT INTO {schema}.inbox (subscription, event_id)
        SELECT :name, id FROM turn, unnest(cast(:ids AS uuid[])) AS id
        ON CONFLICT DO NOTHING RETURNING event_id
        """  # noqa: S608 - a schema's name, from the code
    )


def listen(
    bus: Bus,
    name: str,
    listeners: Mapping[type[Event], Listener],
    *,
    mode: Mode = Mode.PER_REPLICA,
    on_gap: Callable[[], None] | None = None,
) -> None:
    """Hear events in every replica, outside of any transaction: caches, revocation, live streams.

    `on_gap` is as in Subscription.
    """
    by_type = {
        event_class.type: (event_class, listener) for event_class, listener in listeners.items()
    }

    async def handle(messages: Sequence[Message]) -> None:
        for message in messages:
            event_class, listener = by_type[message.type]
            with traced(message):
                await listener(from_message(event_class, message))

    bus.subscribe(Subscription(name, frozenset(by_type), mode=mode, on_gap=on_gap), handle)


class traced:  # noqa: N801 - reads as a statement
    """Work within the trace that a message came from, and log with its tenant."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __enter__(self) -> None:
        message = self._message
        self._token = enter_trace(message.traceparent)
        self._log = structlog.contextvars.bound_contextvars(
            event_id=str(message.id),
            tenant=str(message.tenant_id or ""),
            trace_id=trace_id_of(message.traceparent),
        )
        self._log.__enter__()

    def __exit__(self, *error: object) -> None:
        self._log.__exit__(None, None, None)
        leave_trace(self._token)
