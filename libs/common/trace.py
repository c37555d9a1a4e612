"""The trace a piece of work belongs to, as W3C `traceparent`, carried from door to door."""

import os
import re
from contextvars import ContextVar, Token

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?\Z")
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current_traceparent() -> str | None:
    """Return the `traceparent` of the work under way, to be handed on with calls and messages."""
    return _current.get()


def enter_trace(traceparent: str | None) -> Token[str | None]:
    """Make it the current trace, or none; hand the result to `leave_trace` when the work is done."""
    return _current.set(traceparent)


def leave_trace(token: Token[str | None]) -> None:
    """Return to the trace that was current before."""
    _current.reset(token)


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the 32 hex digits of the trace id, or None if the header is missing or not valid.

    Source: W3C Trace Context, section 3.2 (all-zero ids and version ff are invalid).
    """
    if traceparent is None:
        return None
    match = _TRACEPARENT.match(traceparent)
    if match is None:
        return None
    trace_id, parent_id = match.groups()
    if trace_id == "0" * 32 or parent_id == "0" * 16:
        return None
    return trace_id


def new_traceparent(trace_id: str) -> str:
    """Return the header that begins a trace with this id (32 hex digits), marked as sampled."""
    return f"00-{trace_id}-{os.urandom(8).hex()}-01"
