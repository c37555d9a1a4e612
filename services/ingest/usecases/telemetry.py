"""Taking telemetry in: from a decoded payload to a batch that is durable on the bus.

Points of all devices of a shard share a batch. A batch closes 20 ms after its first point, or when
it is full; one set of batches is on its way at a time, so that under load they grow by themselves
and a device's points keep their order. Whoever brought a point is told when its batch is durable:
only then may the device be acknowledged.
"""

import asyncio
import contextlib
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import structlog

from libs.common.clock import Clock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.events.ingest import Refused, TelemetryReceived, Text
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Series, Source
from services.ingest.domain.payload import Decoded, Point, Refusal, as_us

log = structlog.get_logger(__name__)

Done = Callable[[], None]
"""Called when what was brought is durable."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
STOP_S = 10.0

POINT_BYTES = 100
"""What is larger than this (a text, a refused message) counts as several points."""
LARGEST_BATCH_POINTS = 20_000
"""A batch of more travels as several messages, so that none is too large for bus and reader."""
MOST_ENTRIES = 20
"""With more refusals than this in one message, those of one reason share an entry."""
LONGEST_DETAIL = 500


class SeriesRegistry(Protocol):
    """Finds or makes a device's series."""

    async def register(self, source: Source, kinds: dict[str, Kind], most: int) -> None:
        """Add the series of these metrics to `source.series`, as long as there are fewer than `most`.

        Raises Unavailable, or what is transient.
        """
        ...


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """How batches are made, and when enough is enough."""

    shards: int = 4
    linger: timedelta = timedelta(milliseconds=20)
    full_points: int = 8_000
    """A batch set of this many points leaves without waiting."""
    most_pending_points: int = 60_000
    """With more than this not yet durable, no more is read from devices until half is gone."""
    most_metrics: int = 1_000
    """How many metrics a device may have."""
    most_refused_bytes: int = 262_144
    """How much is kept of a message, or a part of one, that is refused."""


@dataclass(slots=True)
class _Batch:
    tenants: "array[int]" = field(default_factory=lambda: array("i"))
    series: "array[int]" = field(default_factory=lambda: array("i"))
    ts: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    quality: bytearray = field(default_factory=bytearray)
    texts: list[Text] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    points: int = 0
    """How large it is, counted in points."""

    def is_empty(self) -> bool:
        return not (self.quality or self.texts or self.refused)


class Intake:
    """Gathers points into batches and publishes them. One an event loop."""

    def __init__(
        self,
        publish: Callable[[Sequence[Message]], Awaitable[None]],
        registry: SeriesRegistry,
        clock: Clock,
        limits: IntakeLimits,
    ) -> None:
        self._publish = publish
        self._registry = registry
        self._clock = clock
        self._limits = limits
        self._open = [_Batch() for _ in range(limits.shards)]
        self._closed: list[tuple[int, _Batch]] = []
        """Batches with their shards that are too large to grow on, in order."""
        self._open_points = 0
        self._leaving_points = 0
        self._something = asyncio.Event()
        self._full = asyncio.Event()
        self._stopping = False
        self._flusher: asyncio.Task[None] | None = None
        self.is_full = False
        """Whether to stop reading from devices for now."""
        self.on_full: list[Callable[[], None]] = []
        """Called when reading must stop."""
        self.on_room: list[Callable[[], None]] = []
        """Called when reading may go on."""
        self.accepted_points = 0
        self.refused_points = 0
        self.published_batches = 0

    def start(self) -> None:
        """Begin to publish."""
        self._stopping = False
        self._flusher = asyncio.create_task(self._flush_forever(), name="ingest.intake")

    async def stop(self) -> None:
        """Publish what is gathered (10 s at most), then end. What is not durable was not acknowledged."""
        if self._flusher is None:
            return
        self._stopping = True
        self._something.set()
        self._full.set()
        _, late = await asyncio.wait([self._flusher], timeout=STOP_S)
        for task in late:
            task.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)

    def knows(self, source: Source, points: Sequence[Point]) -> bool:
        """Whether every point's series is known, so that `add` may be called without `register`."""
        series = source.series
        for point in points:  # noqa: SIM110 - a generator costs more than all the look-ups
            if point.metric not in series:
                return False
        return True

    async def register(self, source: Source, decoded: Decoded) -> None:
        """Make known the series that the points lack; refuse those beyond the device's limit.

        Raises Unavailable, or what is transient: then nothing was taken.
        """
        new = {p.metric: p.kind for p in decoded.points if p.metric not in source.series}
        if new:
            await self._registry.register(source, new, self._limits.most_metrics)
        over = new.keys() - source.series.keys()
        if over:
            detail = f"a device has at most {self._limits.most_metrics} metrics"
            decoded.refused += [
                Refusal(
                    decoded.reading_of(position),
                    point.metric,
                    "too_many_metrics",
                    detail,
                    _as_reading(point),
                )
                for position, point in enumerate(decoded.points)
                if point.metric in over
            ]
            decoded.drop(over)

    def add(self, source: Source, decoded: Decoded, done: Done) -> list[Refusal]:
        """Take the points of one message whose series are all known; call `done` when durable.

        What is refused is durable too: it goes to the quarantine with the batch. Returns all of
        it, including points whose kind is not their series' own.
        """
        batch = self._open[source.shard]
        size = len(decoded.points)
        known = source.series
        tenant = source.tenant
        refusals = list(decoded.refused)
        for position, (metric, ts, kind, value) in enumerate(decoded.points):
            series = known[metric]
            if series.kind != kind:
                refusals.append(_other_kind(decoded, position, series))
            elif kind is Kind.TEXT:
                batch.texts.append(Text(tenant, series.id, ts, str(value), Quality.GOOD))
                size += len(str(value)) // POINT_BYTES
            else:
                batch.tenants.append(tenant)
                batch.series.append(series.id)
                batch.ts.append(ts)
                batch.values.append(value)  # type: ignore[arg-type]  # a float, unless it is a TEXT
                batch.quality.append(Quality.GOOD)
        if refusals:
            self.refused_points += len(refusals)
            for refusal in _gathered(refusals, decoded.received_at):
                size += self._refuse(
                    batch,
                    source,
                    refusal,
                    msgspec.json.encode(refusal.part),
                    # As it would have been stored: each reading 1 µs after the one before.
                    received_at=decoded.received_at + refusal.index,
                )
        self.accepted_points += len(decoded.points)
        self._note_taken(source.shard, batch, size, done)
        return refusals

    def misfits(self, source: Source, decoded: Decoded) -> list[Refusal]:
        """Return the points that `add` would refuse: their kind is not their series' own."""
        return [
            _other_kind(decoded, position, series)
            for position, point in enumerate(decoded.points)
            if (series := source.series.get(point.metric)) is not None and series.kind != point.kind
        ]

    def refuse_message(
        self,
        source: Source,
        reason: str,
        detail: str,
        payload: bytes,
        done: Done,
        *,
        received_at: datetime,
        channel: Channel = Channel.TELEMETRY,
    ) -> None:
        """Put a whole message into quarantine; call `done` when that is durable."""
        batch = self._open[source.shard]
        size = self._refuse(
            batch,
            source,
            Refusal(0, None, reason, detail, None),
            payload,
            received_at=as_us(received_at),
            channel=channel,
        )
        self.refused_points += 1
        self._note_taken(source.shard, batch, size, done)

    def _refuse(
        self,
        batch: _Batch,
        source: Source,
        refusal: Refusal,
        payload: bytes,
        *,
        received_at: int,
        channel: Channel = Channel.TELEMETRY,
    ) -> int:
        """Add an entry for the quarantine; return how many points' room it takes."""
        most = self._limits.most_refused_bytes
        kept = bytes(payload[:most])
        batch.refused.append(
            Refused(
                source.tenant_id,
                source.device_id,
                refusal.reason,
                refusal.detail[:LONGEST_DETAIL],
                refusal.metric,
                kept,
                channel=channel.value,
                received_at=received_at,
                cut_from=len(payload) if len(payload) > most else None,
            )
        )
        return 1 + len(kept) // POINT_BYTES

    def _note_taken(self, shard: int, batch: _Batch, size: int, done: Done) -> None:
        batch.done.append(done)
        batch.points += size
        if batch.points > LARGEST_BATCH_POINTS:
            self._closed.append((shard, batch))
            self._open[shard] = _Batch()
        self._open_points += size
        if self._open_points >= self._limits.full_points:
            self._full.set()
        self._something.set()
        pending = self._open_points + self._leaving_points
        if pending > self._limits.most_pending_points and not self.is_full:
            self.is_full = True
            _call_all(self.on_full)

    async def _flush_forever(self) -> None:
        linger = self._limits.linger.total_seconds()
        while True:
            await self._something.wait()
            if not self._stopping and not self._full.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), linger)
            leaving = [*self._closed, *enumerate(self._open)]
            self._open, self._closed = [_Batch() for _ in self._open], []
            self._leaving_points, self._open_points = self._open_points, 0
            self._something.clear()
            self._full.clear()
            if any(batch.done for _, batch in leaving):
                if not await self._publish_until_durable(leaving):
                    return
                self._leaving_points = 0
                for _, batch in leaving:
                    _call_all(batch.done)
                self._make_room()
            if self._stopping and not self._something.is_set():
                return

    async def _publish_until_durable(self, leaving: Sequence[tuple[int, _Batch]]) -> bool:
        """Publish, as often as it takes; False if stopped before it worked."""
        at = self._clock.now()
        messages = [
            _close(batch, shard, at).to_message()
            for shard, batch in leaving
            if not batch.is_empty()
        ]
        pause_s = FIRST_PAUSE_S
        while messages:
            try:
                await self._publish(messages)
                self.published_batches += len(messages)
                return True
            except Unavailable as error:
                log.warning("telemetry waits for the bus", error=error.detail, pause_s=pause_s)
            except Exception:
                # Ours to find. Nothing was acknowledged, so that trying on loses nothing.
                log.exception("telemetry could not be published", pause_s=pause_s)
            if self._stopping:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        return True

    def _make_room(self) -> None:
        if self.is_full and self._open_points <= self._limits.most_pending_points // 2:
            self.is_full = False
            _call_all(self.on_room)


async def accept(
    intake: Intake, source: Source, decoded: Decoded, *, within: timedelta
) -> list[Refusal]:
    """Take a message in and return when it is durable, with what of it went to quarantine.

    Raises Unavailable if that is not known within the time given, or if the platform is full. The
    points may be stored all the same; sent again with the same `ts` they are stored once.
    """
    if intake.is_full:
        raise Unavailable("too much is under way; send again shortly", retry_after_s=1)
    if not intake.knows(source, decoded.points):
        await intake.register(source, decoded)
    durable = asyncio.get_running_loop().create_future()

    def done() -> None:
        if not durable.done():
            durable.set_result(None)

    refusals = intake.add(source, decoded, done)
    try:
        await asyncio.wait_for(durable, within.total_seconds())
    except TimeoutError:
        raise Unavailable("the points are not safe yet; send again", retry_after_s=2) from None
    return refusals


def _call_all(callbacks: Sequence[Callable[[], None]]) -> None:
    for call in callbacks:
        try:
            call()
        except Exception:
            # One connection's trouble must not reach the others.
            log.exception("a callback of the intake failed")


def _gathered(refusals: Sequence[Refusal], received_at: int) -> Sequence[Refusal]:
    """Return the entries for one message's refusals: if there are many, one for each reason.

    What shares an entry keeps its own time: a reading without a `ts` gets the one it would have had.
    """
    if len(refusals) <= MOST_ENTRIES:
        return refusals
    alike: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        alike.setdefault(refusal.reason, []).append(refusal)
    return [
        Refusal(
            group[0].index,
            None,
            reason,
            f"{len(group)} in one message, the first: {group[0].detail}",
            [_dated(refusal.part, received_at + refusal.index) for refusal in group],
        )
        for reason, group in alike.items()
    ]


def _dated(part: object, ts: int) -> object:
    if isinstance(part, dict) and "values" in part and "ts" not in part:
        return {"ts": ts / 1000, **part}
    return part


def _close(batch: _Batch, shard: int, at: datetime) -> TelemetryReceived:
    return TelemetryReceived(
        at=at,
        shard=shard,
        tenants=batch.tenants.tobytes(),
        series=batch.series.tobytes(),
        ts=batch.ts.tobytes(),
        values=batch.values.tobytes(),
        quality=bytes(batch.quality),
        texts=batch.texts,
        refused=batch.refused,
    )


def _other_kind(decoded: Decoded, position: int, series: Series) -> Refusal:
    point = decoded.points[position]
    was, now = Kind(series.kind).name.lower(), point.kind.name.lower()
    return Refusal(
        decoded.reading_of(position),
        point.metric,
        "type_changed",
        f"{point.metric} holds values of type {was}, this is {now}",
        _as_reading(point),
    )


def _as_reading(point: Point) -> dict[str, object]:
    value = bool(point.value) if point.kind is Kind.BOOL else point.value
    return {"ts": point.ts / 1000, "values": {point.metric: value}}
