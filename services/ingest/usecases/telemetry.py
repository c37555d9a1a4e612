"""Taking telemetry in: from a decoded payload to a batch that is durable on the bus.

Points of all devices of a shard share a batch. A batch closes 20 ms after its first point, or when
it is full; one set of batches is on its way at a time, so that under load they grow by themselves
and a device's points keep their order. Whoever brought a point is told when its batch is durable:
only then may the device be acknowledged.
"""

import asyncio
import contextlib
import json
import math
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import structlog

from libs.common.clock import Clock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.events.ingest import Gap, Refused, TelemetryReceived, Text
from libs.common.historian.point import Kind, Quality
from services.ingest.domain import declared
from services.ingest.domain.channel import Channel
from services.ingest.domain.declared import is_outside, of_kind, point_as_reading
from services.ingest.domain.device import Series, Source
from services.ingest.domain.ledger import missing_before, newest
from services.ingest.domain.payload import BAD_NAME, Decoded, Point, Refusal, as_us, show
from services.ingest.domain.profile import MetricDeclaration
from services.ingest.domain.units import (
    UnitMismatch,
    UnknownUnit,
    converter,
    is_known,
    is_ready,
)
from services.ingest.usecases.allowances import BEYOND, Allowances

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
MOST_UNITS = 64
"""Different units in one message. To look one up takes a millisecond."""
_NO_RANGES: Mapping[str, MetricDeclaration] = {}


class SeriesRegistry(Protocol):
    """Finds or makes a device's series."""

    async def register(
        self, source: Source, kinds: dict[str, Kind], units: dict[str, str], most: int
    ) -> None:
        """Add the series of these metrics to `source.series`, as long as there are fewer than `most`.

        A series that has no unit yet, new or old, gets the one in `units`. Raises Unavailable, or what is transient.
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
    gaps: list[Gap] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    points: int = 0
    """How large it is, counted in points."""

    def is_empty(self) -> bool:
        return not (self.quality or self.texts or self.refused or self.gaps)


class Intake:
    """Gathers points into batches and publishes them. One an event loop."""

    def __init__(
        self,
        publish: Callable[[Sequence[Message]], Awaitable[None]],
        registry: SeriesRegistry,
        clock: Clock,
        limits: IntakeLimits,
        allowances: Allowances | None = None,
    ) -> None:
        """`allowances`: what tenants may send by their plans. None: whatever they like."""
        self._allowances = allowances
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

    @staticmethod
    def fit(source: Source, decoded: Decoded) -> None:
        """Make of what the device wrote what its profile declares, before anything else is asked."""
        if source.profile is not None:
            declared.fit(source.profile, decoded)

    def knows(self, source: Source, points: Sequence[Point]) -> bool:
        """Whether all is known that `add` needs, so that it may be called without `register`."""
        if self._allowances is not None:
            allowance = self._allowances.known(source.tenant_id)
            if allowance is None or not allowance.admits(len(points)):
                return False
        series = source.series
        for metric, _, _, _, _, unit in points:
            held = series.get(metric)
            if held is None or (unit is not None and not _is_settled(unit, held)):
                return False
        return True

    async def register(self, source: Source, decoded: Decoded) -> None:
        """Make known the series and units that the points lack; refuse those beyond the device's
        limit or the tenant's plan, and new metrics whose name cannot be shown or whose unit nobody knows.

        Raises Unavailable, or what is transient: then nothing was taken.
        """
        _refuse_many_units(decoded)
        if any(point.unit is not None for point in decoded.points):
            # The first look at a unit takes long.
            await asyncio.to_thread(_look_at_units, source, list(decoded.points))
        _refuse_strange(source, decoded)
        new = {p.metric: p.kind for p in decoded.points if p.metric not in source.series}
        learnt = _units_learnt(source, decoded.points)
        if new or learnt:
            await self._registry.register(source, new, learnt, self._limits.most_metrics)
        over = new.keys() - source.series.keys()
        if over:
            detail = (
                f"a device has at most {self._limits.most_metrics} metrics,"
                " and its tenant as many as the plan allows"
            )
            decoded.refused += [
                Refusal(
                    decoded.reading_of(position),
                    point.metric,
                    "too_many_metrics",
                    detail,
                    point_as_reading(point),
                )
                for position, point in enumerate(decoded.points)
                if point.metric in over
            ]
            decoded.drop(over)
        await self._admit(source, decoded)

    def check_allowance(self, source: Source) -> None:
        """Raise QuotaSpent if the tenant can have nothing taken now by its plan."""
        if self._allowances is not None:
            self._allowances.check(source.tenant_id)

    async def _admit(self, source: Source, decoded: Decoded) -> None:
        """Refuse the points that the tenant's plan does not allow, the last ones first."""
        if self._allowances is None or decoded.is_admitted:
            return
        taken = await self._allowances.take(source.tenant_id, len(decoded.points))
        decoded.is_admitted = True
        if taken == len(decoded.points):
            return
        detail = "beyond what the tenant's plan allows; it can be replayed when there is more"
        decoded.refused += [
            Refusal(
                decoded.reading_of(position), point.metric, BEYOND, detail, point_as_reading(point)
            )
            for position, point in enumerate(decoded.points)
            if position >= taken
        ]
        decoded.keep([position < taken for position in range(len(decoded.points))])

    def add(self, source: Source, decoded: Decoded, done: Done) -> list[Refusal]:
        """Take the points of one message whose series are all known; call `done` when durable.

        What is refused is durable too: it goes to the quarantine with the batch. Returns all of
        it, including points whose kind is not their series' own. `decoded` holds the same then: as
        points what was taken, as it was taken.
        """
        if self._allowances is not None and not decoded.is_admitted:
            allowance = self._allowances.known(source.tenant_id)
            if allowance is not None:
                allowance.spend(len(decoded.points))
        batch = self._open[source.shard]
        size = len(decoded.points)
        known = source.series
        tenant = source.tenant
        refusals = decoded.refused
        misfits: set[int] = set()
        ranges = source.profile.metrics if source.profile is not None else _NO_RANGES
        for position, (metric, ts, kind, value, quality, unit) in enumerate(decoded.points):
            series = known[metric]
            if (
                series.kind != kind
                or (unit is not None and unit != series.unit)
                or (ranges and metric in ranges)
            ):
                settled = _settled(decoded, position, series, ranges.get(metric))
                if isinstance(settled, Refusal):
                    refusals.append(settled)
                    misfits.add(position)
                    continue
                decoded.points[position] = settled
                _, _, kind, value, quality, _ = settled  # noqa: PLW2901 - it takes the written one's place
            if kind is Kind.TEXT:
                if not _is_utf8(str(value)):
                    detail = f"{metric} is a text that is no UTF-8"
                    refusals.append(_refusal(decoded, position, "bad_text", detail))
                    misfits.add(position)
                    continue
                batch.texts.append(Text(tenant, series.id, ts, str(value), quality))
                size += len(str(value)) // POINT_BYTES
            else:
                batch.tenants.append(tenant)
                batch.series.append(series.id)
                batch.ts.append(ts)
                batch.values.append(value)  # type: ignore[arg-type]  # a float, unless it is a TEXT
                batch.quality.append(quality)
        if misfits:
            decoded.keep([position not in misfits for position in range(len(decoded.points))])
        if refusals:
            for refusal, points in _gathered(refusals, decoded.received_at):
                size += self._refuse(
                    batch,
                    source,
                    refusal,
                    _as_json(refusal.part),
                    # As it would have been stored: each reading 1 µs after the one before.
                    received_at=decoded.received_at + refusal.index,
                    points=points,
                )
        if decoded.gaps or decoded.seq is not None:
            _count_missing(batch, source, decoded)
        if source.watch is not None:
            source.watch(decoded.points)
        self._note_taken(source.shard, batch, size, done)
        return refusals

    @staticmethod
    def misfits(source: Source, decoded: Decoded) -> list[Refusal]:
        """Return the points that `add` would refuse, of those whose series are known: their kind or
        their unit is none of their series'.
        """
        return [
            settled
            for position, point in enumerate(decoded.points)
            if (series := source.series.get(point.metric)) is not None
            and isinstance(settled := _settled(decoded, position, series, None), Refusal)
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
        points: int = 1,
    ) -> int:
        """Add an entry for the quarantine; return how many points' room it takes."""
        most = self._limits.most_refused_bytes
        kept = bytes(payload[:most])
        batch.refused.append(
            Refused(
                source.tenant_id,
                source.device_id,
                refusal.reason,
                _as_utf8(refusal.detail[:LONGEST_DETAIL]),
                None if refusal.metric is None else _as_utf8(refusal.metric),
                kept,
                channel=channel.value,
                received_at=received_at,
                cut_from=len(payload) if len(payload) > most else None,
                points=points,
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
    points may be stored all the same; sent again with the same `ts` they are stored once. Raises
    QuotaSpent if the tenant can have nothing taken now by its plan.
    """
    if intake.is_full:
        raise Unavailable("too much is under way; send again shortly", retry_after_s=1)
    if decoded.points and not decoded.is_admitted:
        intake.check_allowance(source)
    intake.fit(source, decoded)
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


def _count_missing(batch: _Batch, source: Source, decoded: Decoded) -> None:
    """Note what the device's counter says is missing, within the message and before it."""
    missing = decoded.gaps
    if decoded.first_seq is not None and decoded.seq is not None:
        missing += missing_before(decoded.first_seq, source.last_seq)
        source.last_seq = newest(decoded.seq, source.last_seq)
    if missing:
        batch.gaps.append(Gap(source.tenant_id, source.device_id, missing))


def _gathered(refusals: Sequence[Refusal], received_at: int) -> Sequence[tuple[Refusal, int]]:
    """Return the entries for one message's refusals, and how many points each stands for.

    If there are many, there is one for each reason.

    What shares an entry keeps its own time: a reading without a `ts` gets the one it would have had.
    """
    if len(refusals) <= MOST_ENTRIES:
        return [(refusal, 1) for refusal in refusals]
    alike: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        alike.setdefault(refusal.reason, []).append(refusal)
    return [
        (
            Refusal(
                group[0].index,
                None,
                reason,
                f"{len(group)} in one message, the first: {group[0].detail}",
                [_dated(refusal.part, received_at + refusal.index) for refusal in group],
            ),
            len(group),
        )
        for reason, group in alike.items()
    ]


def _is_utf8(text: str) -> bool:
    """Whether a text can leave: one that cannot would keep all others of its batch here, for ever."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


def _as_json(part: object) -> bytes:
    try:
        return msgspec.json.encode(part)
    except UnicodeEncodeError:
        return json.dumps(part).encode()  # which writes it as \udcff


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
        gaps=batch.gaps,
    )


def _settled(
    decoded: Decoded, position: int, series: Series, declaration: MetricDeclaration | None
) -> Point | Refusal:
    """Return a point as its series holds it, or why it does not: its kind, its unit, its range."""
    written = decoded.points[position]
    point = of_kind(written, Kind(series.kind))
    if point is None:
        was, now = Kind(series.kind).name.lower(), written.kind.name.lower()
        detail = f"{written.metric} holds values of type {was}, this is {now}"
        return _refusal(decoded, position, "type_changed", detail)
    if point.kind is not Kind.NUMBER:
        return point
    value = float(point.value)
    if point.unit is not None and point.unit != series.unit:
        try:
            value = _converted(value, point.unit, series.unit)
        except UnknownUnit as error:
            return _refusal(decoded, position, "unknown_unit", str(error))
        except UnitMismatch as error:
            return _refusal(decoded, position, "unit_mismatch", str(error))
        if math.isfinite(point.value) and not math.isfinite(value):  # type: ignore[arg-type]  # a NUMBER
            detail = f"there is no such value in {series.unit}"
            return _refusal(decoded, position, "not_a_number", detail)
        point = point._replace(value=value, unit=series.unit)
    if (
        declaration is not None
        and point.quality is Quality.GOOD
        and is_outside(_in_declared_unit(value, series, declaration), declaration)
    ):
        point = point._replace(quality=Quality.UNCERTAIN)
    return point


def _converted(value: float, written: str, wanted: str | None) -> float:
    convert = converter(written, wanted)
    if convert is None:
        return value
    try:
        return convert(value)
    except (ValueError, ArithmeticError):
        return math.nan


def _in_declared_unit(value: float, series: Series, declaration: MetricDeclaration) -> float:
    if declaration.unit is None or series.unit is None or declaration.unit == series.unit:
        return value
    try:
        return _converted(value, series.unit, declaration.unit)
    except (UnknownUnit, UnitMismatch):
        # The series is older than the profile, and measures something else: no range holds for it.
        return math.nan


def _is_settled(unit: str, held: Series) -> bool:
    """Whether a value in this unit can be taken into the series at once."""
    if unit == held.unit or held.kind != Kind.NUMBER:
        return True
    return is_ready(unit, held.unit) and (held.unit is not None or not is_known(unit))


def _look_at_units(source: Source, points: Sequence[Point]) -> None:
    for point in points:
        if point.unit is None or point.kind is not Kind.NUMBER:
            continue
        for wanted in (None, _wanted_unit(source, point)):
            with contextlib.suppress(UnknownUnit, UnitMismatch):
                converter(point.unit, wanted)


def _wanted_unit(source: Source, point: Point) -> str | None:
    """Return the unit that a point's series has, or is to have if there is any but the point's own."""
    held = source.series.get(point.metric)
    if held is not None and held.unit is not None:
        return held.unit
    declaration = source.profile.metrics.get(point.metric) if source.profile is not None else None
    return None if declaration is None else declaration.unit


def _refuse_many_units(decoded: Decoded) -> None:
    """Refuse the points in units beyond those that one message may have."""
    units = dict.fromkeys(point.unit for point in decoded.points if point.unit is not None)
    if len(units) > MOST_UNITS:
        over = set(list(units)[MOST_UNITS:])
        detail = f"at most {MOST_UNITS} different units in one message"
        _refuse_all(decoded, "unknown_unit", detail, [p.unit in over for p in decoded.points])


def _refuse_strange(source: Source, decoded: Decoded) -> None:
    """Refuse new metrics with a name that cannot be shown, or in a unit that nobody knows: no series
    is made for them.
    """
    new = [point.metric not in source.series for point in decoded.points]
    if not any(new):
        return
    strange = [
        is_new and not point.metric.isprintable()
        for is_new, point in zip(new, decoded.points, strict=True)
    ]
    _refuse_all(decoded, "bad_metric_name", BAD_NAME, strange)
    for unit in {point.unit for point in decoded.points if point.unit is not None}:
        if not is_known(unit):
            detail = f"no unit is called {show(unit)}"
            _refuse_all(
                decoded,
                "unknown_unit",
                detail,
                [
                    point.unit == unit
                    and point.kind is Kind.NUMBER
                    and point.metric not in source.series
                    for point in decoded.points
                ],
            )


def _refuse_all(decoded: Decoded, reason: str, detail: str, refused: Sequence[bool]) -> None:
    """Refuse the points at whose position stands True."""
    if any(refused):
        decoded.refused += [
            _refusal(decoded, position, reason, detail)
            for position, is_refused in enumerate(refused)
            if is_refused
        ]
        decoded.keep([not is_refused for is_refused in refused])


def _units_learnt(source: Source, points: Sequence[Point]) -> dict[str, str]:
    """Return the units of series that have none yet: the profile's, else the first that is named."""
    learnt: dict[str, str] = {}
    for point in points:
        held = source.series.get(point.metric)
        if (
            point.unit is not None
            and point.metric not in learnt
            and point.kind is Kind.NUMBER
            and (held is None or (held.unit is None and held.kind == Kind.NUMBER))
            and is_known(point.unit)
        ):
            learnt[point.metric] = _wanted_unit(source, point) or point.unit
    return learnt


def _refusal(decoded: Decoded, position: int, reason: str, detail: str) -> Refusal:
    point = decoded.points[position]
    return Refusal(
        decoded.reading_of(position), point.metric, reason, show(detail), point_as_reading(point)
    )
