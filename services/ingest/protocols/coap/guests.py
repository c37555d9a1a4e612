"""The devices that speak CoAP here: what is known of each, as long as it speaks."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiocoap import Message
from aiocoap.numbers import Code

from services.ingest.domain.device import Source
from services.ingest.domain.payload import Point, Refusal
from services.ingest.usecases.inlet import Inlet

MOST_LATEST = 200
"""Metrics of which a device's latest value is kept for it to read."""
LONGEST_LATEST = 256
"""Characters of a text that is kept for that."""
MOST_TOLD = 5
LONGEST_TOLD = 100
JSON = 50


@dataclass(slots=True, eq=False)
class Guest:
    """A device, by one of its credentials."""

    source: Source
    inlet: Inlet
    is_plain: bool
    """Whether it came without OSCORE or DTLS."""
    heard_at: float
    """When it last said something, by the loop's clock."""
    in_hand: int = 0
    """Messages that were taken by the fast way and are not durable yet."""
    in_hand_bytes: int = 0
    asked: int = 0
    """Its requests that are being looked at, those on the fast way apart."""
    routes: dict[bytes, None] = field(default_factory=dict)
    """The options that its telemetry is known by, the oldest first."""
    command: Message = field(default_factory=lambda: Message(code=Code.CONTENT))
    """The last one that was sent to it."""
    latest: dict[str, Point] = field(default_factory=dict)
    watchers: set[asyncio.Event] = field(default_factory=set)
    """Set when `latest` has changed."""

    def note_latest(self, points: Sequence[Point]) -> None:
        """Keep the values that were stored, for who asks for the latest."""
        latest = self.latest
        for point in points:
            known = latest.get(point.metric)
            if known is None and len(latest) >= MOST_LATEST:
                continue
            if isinstance(point.value, str) and len(point.value) > LONGEST_LATEST:
                continue
            if known is None or known.ts <= point.ts:
                latest[point.metric] = point
        for watcher in self.watchers:
            watcher.set()


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What datagrams with the same options are: a device's telemetry."""

    guest: Guest
    content_format: int | None
    """None: they do not say it, and each is looked at."""
    wants_no_answer: bool


def latest_values(guest: Guest) -> Message:
    """Return the latest values as an answer: `{"temp": {"ts": …, "value": 21.5}}`, `ts` in ms."""
    return Message(
        code=Code.CONTENT,
        content_format=JSON,
        max_age=1,
        payload=msgspec.json.encode(
            {
                metric: {"ts": point.ts / 1000, "value": _as_written(point)}
                for metric, point in guest.latest.items()
            }
        ),
    )


def _as_written(point: Point) -> object:
    return bool(point.value) if point.kind.name == "BOOL" else point.value


def changed(refused: Sequence[Refusal]) -> Message:
    """Return 2.04, with what of the message was not taken and why, the first few by name."""
    answer = Message(code=Code.CHANGED)
    if refused:
        told: dict[str, Any] = {
            "rejected": len(refused),
            "first": [
                {
                    "reading": refusal.index,
                    "metric": refusal.metric,
                    "reason": refusal.reason,
                    "detail": refusal.detail[:LONGEST_TOLD],
                }
                for refusal in refused[:MOST_TOLD]
            ],
        }
        answer.payload = msgspec.json.encode(told)
        answer.opt.content_format = JSON
    return answer
