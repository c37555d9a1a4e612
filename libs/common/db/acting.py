"""On whose behalf the work under way is done, as the database is told: for the audit trail, and for row-level security.

The door that knows the caller says it (`libs.common.auth.permission`), and every transaction begun
afterwards in the same context carries it. Work on nobody's behalf (an event, a tick of the clock)
has none: it is not limited, and what it changes is not put down to a person.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from uuid import UUID

from libs.common.errors import Forbidden
from libs.common.events.audit import NOBODY, AuditActor


@dataclass(frozen=True, slots=True)
class Acting:
    """Who acts. `groups` are those that `sec.groups()` gives.

    `groups` are the roots of the device groups that the caller is limited to; None: all devices.
    """

    actor: AuditActor
    groups: frozenset[UUID] | None = None
    tenant_id: UUID | None = None
    """The tenant that the caller came in by."""
    changes: bool = False
    """Whether what is written is their change: then `sec.actor()` names them, and it is recorded.

    What is written while somebody only reads is the platform's own book-keeping.
    """


_acting: ContextVar[Acting | None] = ContextVar("acting", default=None)


def acting_now() -> Acting | None:
    """Return who acts; None: nobody in particular."""
    return _acting.get()


def actor_now() -> AuditActor:
    """Return who acts, as the audit trail has it."""
    caller = _acting.get()
    return NOBODY if caller is None else caller.actor


def act_as(acting: Acting | None) -> Token[Acting | None]:
    """Let the transactions begun from here on carry this; `act_no_more` ends it."""
    return _acting.set(acting)


def act_no_more(token: Token[Acting | None]) -> None:
    """Let things be as they were before."""
    _acting.reset(token)


def is_limited() -> bool:
    """Whether who acts is limited to some groups of devices."""
    caller = _acting.get()
    return caller is not None and caller.groups is not None


def check_unlimited(why_not: str) -> None:
    """Raise Forbidden, with the reason, if who acts is limited to some groups of devices."""
    if is_limited():
        raise Forbidden(why_not)


@contextmanager
def acting(as_: Acting | None) -> Iterator[None]:
    """Let the transactions begun within carry this; None: on nobody's behalf."""
    token = act_as(as_)
    try:
        yield
    finally:
        act_no_more(token)
