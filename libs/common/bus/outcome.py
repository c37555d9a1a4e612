"""What becomes of a message whose handler raised: one judgement for every bus and every subscriber."""

from enum import Enum

import asyncpg
import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from libs.common.errors import AppError, Conflict, NotFound, TooManyRequests, Unavailable

TRANSIENT_SQLSTATES = ("08", "25006", "40001", "40P01", "53", "55P03", "57P", "58")
"""Connection lost, a standby, serialisation failure, deadlock, out of resources, a lock not had in
time, shutting down, an error of the system below."""


class Outcome(Enum):
    """What to do with the message."""

    DONE = "done"
    RETRY = "retry"
    """Try again a bounded number of times while others pass, then dead-letter."""
    PAUSE = "pause"
    """What we stand on is away: stop taking messages and try this one again until it is back."""
    DEAD_LETTER = "dead_letter"


def outcome_of(error: BaseException) -> Outcome:
    """Judge an error that a handler raised."""
    if is_transient(error):
        return Outcome.PAUSE
    if isinstance(error, Conflict):
        return Outcome.DONE
    if isinstance(error, NotFound):
        return Outcome.RETRY
    if isinstance(error, AppError | msgspec.MsgspecError):
        return Outcome.DEAD_LETTER
    return Outcome.RETRY


def is_transient(error: BaseException) -> bool:
    """Whether the same work may well succeed later, with nothing changed but time."""
    if isinstance(error, Unavailable | TooManyRequests | PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or is_transient_sqlstate(_sqlstate(error.orig))
    if isinstance(error, asyncpg.PostgresError):
        return is_transient_sqlstate(error.sqlstate)
    # An InternalClientError is what the driver says when a connection is lost in mid-operation.
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def is_transient_sqlstate(sqlstate: str | None) -> bool:
    """Whether a SQLSTATE says "later" rather than "never"."""
    return sqlstate is not None and sqlstate.startswith(TRANSIENT_SQLSTATES)


def _sqlstate(orig: BaseException | None) -> str | None:
    state = getattr(orig, "sqlstate", None)
    return state if isinstance(state, str) else None
