"""The door through which events arrive: transaction, inbox and commit in one place.

A service declares its handlers in `handlers.py`:

    subscriptions = Subscriptions[AlertingStore]("alerting")

    @subscriptions.on(RuleTriggered)
    async def on_rule_triggered(event: RuleTriggered, store: AlertingStore) -> None: ...

and attaches them in `app.py`. A handler runs in a transaction of the event's tenant, once for each
event however often that is delivered; what it raises is judged by `outcome_of`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import structlog
from opentelemetry import context as trace_context
from opentelemetry.propagate import extract
from sqlalchemy import text

from libs.common.bus.base import Bus, Mode, Subscription
from libs.common.db.transactions import Store, Transactions
from libs.common.events.base import Event, Message, from_message

S = TypeVar("S", bound=Store)
E = TypeVar("E", bound=Event)

Handler = Callable[[Any, S], Awaitable[None]]
"""Takes an event of the class it was declared for, and the store of the transaction."""

Listener = Callable[[Any], Awaitable[None]]
"""Takes an event of the class it was declared for, outside of any transaction."""


class Subscriptions(Generic[S]):
    """The event handlers of one service: one queue, in order."""

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
        claim = text(
            f"INSERT INTO {self._service}.inbox (subscription, event_id) VALUES (:name, :id)"  # noqa: S608 - a schema's name, from the code
            " ON CONFLICT DO NOTHING"
        )

        async def handle(messages: Sequence[Message]) -> None:
            for message in messages:
                event_class, handler = self._handlers[message.type]
                event = from_message(event_class, message)
                with traced(message):
                    async with transactions.begin(event.tenant_id) as store:
                        claimed = await store.session.execute(claim, {"name": name, "id": event.id})
                        if claimed.rowcount:  # type: ignore[attr-defined]  # a CursorResult, after an INSERT
                            await handler(event, store)

        bus.subscribe(Subscription(name, frozenset(self._handlers)), handle)


def listen(
    bus: Bus, name: str, listeners: Mapping[type[Event], Listener], *, mode: Mode = Mode.PER_REPLICA
) -> None:
    """Hear events in every replica, outside of any transaction: caches, revocation, live streams."""
    by_type = {
        event_class.type: (event_class, listener) for event_class, listener in listeners.items()
    }

    async def handle(messages: Sequence[Message]) -> None:
        for message in messages:
            event_class, listener = by_type[message.type]
            with traced(message):
                await listener(from_message(event_class, message))

    bus.subscribe(Subscription(name, frozenset(by_type), mode=mode), handle)


class traced:  # noqa: N801 - reads as a statement
    """Work within the trace that a message came from, and log with its tenant."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __enter__(self) -> None:
        carrier = {"traceparent": self._message.traceparent} if self._message.traceparent else {}
        self._token = trace_context.attach(extract(carrier))
        self._log = structlog.contextvars.bound_contextvars(
            event_id=str(self._message.id), tenant=str(self._message.tenant_id or "")
        )
        self._log.__enter__()

    def __exit__(self, *error: object) -> None:
        self._log.__exit__(None, None, None)
        trace_context.detach(self._token)
