"""The intake: nothing is acknowledged before it is safe, nothing stops it, and it holds only so much."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.events.ingest import TelemetryReceived
from libs.common.historian.point import Kind
from services.ingest.domain import units
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Series, Source
from services.ingest.domain.payload import Decoded, Point, Window, decode
from services.ingest.usecases.telemetry import MOST_UNITS, Intake, IntakeLimits, accept
from tests.waiting import until

MIB = 1024 * 1024
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class FakeBus:
    """Keeps what is published; may be told to fail or to wait."""

    def __init__(self) -> None:
        self.batches: list[TelemetryReceived] = []
        self.sizes: list[int] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(self, messages: Sequence[Message]) -> None:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.batches += [TelemetryReceived.from_message(message) for message in messages]
        self.sizes += [len(message.body) for message in messages]


class FakeRegistry:
    """Makes series as it is asked, after a moment."""

    def __init__(self) -> None:
        self.made = 0

    async def register(
        self, source: Source, kinds: dict[str, Kind], units: dict[str, str], most: int
    ) -> None:
        await asyncio.sleep(0)
        for metric, kind in kinds.items():
            if metric not in source.series and len(source.series) < most:
                self.made += 1
                source.series[metric] = Series(self.made, kind)


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


LIMITS = IntakeLimits(linger=timedelta(milliseconds=1), most_pending_points=2_000, most_metrics=3)


@pytest.fixture
async def intake(bus: FakeBus) -> AsyncIterator[Intake]:
    intake = Intake(bus.publish, FakeRegistry(), SystemClock(), LIMITS)
    intake.start()
    yield intake
    bus.gate.set()
    await intake.stop()


def a_source(shard: int = 0) -> Source:
    return Source(uuid4(), uuid4(), 1, shard, {"temp": Series(1, Kind.NUMBER)})


def read(payload: object) -> Decoded:
    now = datetime.now(UTC)
    window = Window.around(now, past=timedelta(days=1), ahead=timedelta(minutes=1))
    return decode(json.dumps(payload).encode(), now, window)


def nothing() -> None:
    pass


async def test_an_error_that_nobody_thought_of_stops_the_intake_no_more_than_a_bus_that_is_away(
    intake: Intake, bus: FakeBus
) -> None:
    bus.errors = [RuntimeError("no partition of relation log found for row"), Unavailable("away")]
    assert await accept(intake, a_source(), read({"temp": 1}), within=timedelta(seconds=5)) == []
    assert await accept(intake, a_source(), read({"temp": 2}), within=timedelta(seconds=5)) == []
    assert [len(batch) for batch in bus.batches] == [1, 1]


async def test_a_text_that_is_no_utf8_stops_nobody_s_points(intake: Intake, bus: FakeBus) -> None:
    """No reader of ours makes one; but one in the batch that all share would stop it for ever."""
    source = a_source()
    source.series["mode"] = Series(2, Kind.TEXT)
    within = timedelta(seconds=2)
    decoded = read({"mode": "run", "temp": 1})
    decoded.points[0] = decoded.points[0]._replace(value="\udcff")
    (refusal,) = await accept(intake, source, decoded, within=within)
    assert refusal.reason == "bad_text"
    strange = read({"temp": 2})
    strange.points.append(strange.points[0]._replace(metric="m\udcff"))
    (refusal,) = await accept(intake, source, strange, within=within)
    assert refusal.reason == "bad_metric_name"
    intake.refuse_message(source, "malformed", "not \udcff", b"", nothing, received_at=NOON)
    assert await accept(intake, a_source(), read({"temp": 3}), within=within) == []
    refused = [each for batch in bus.batches for each in batch.refused]
    assert [(each.metric, each.detail.isascii()) for each in refused][1:] == [
        ("m?", True),
        (None, True),
    ]
    assert b"\\udcff" in refused[0].payload
    assert sum(len(batch) for batch in bus.batches) == 3


async def test_who_watches_a_device_is_shown_what_was_taken_and_nothing_else(
    intake: Intake,
) -> None:
    source, shown = a_source(), list[Point]()
    source.watch = shown.extend
    decoded = read([{"temp": 1}, {"temp": "hot"}, {"temp": 3}])
    refusals = await accept(intake, source, decoded, within=timedelta(seconds=5))
    assert [(each.index, each.reason) for each in refusals] == [(1, "type_changed")]
    assert [point.value for point in shown] == [1, 3]
    assert decoded.points == shown


async def test_ten_times_the_wrong_readings_take_about_ten_times_as_long(intake: Intake) -> None:
    def seconds(count: int) -> float:
        decoded = read([{"temp": "hot"}] * count)
        began = time.perf_counter()
        refusals = intake.add(a_source(), decoded, nothing)
        took = time.perf_counter() - began
        assert len(refusals) == count
        return took

    few, many = (min(seconds(count) for _ in range(3)) for count in (1_000, 10_000))
    assert many / few < 30  # a hundred if each refusal copied those before it


async def test_an_acknowledgement_that_fails_keeps_nobody_else_from_theirs(intake: Intake) -> None:
    told = []

    def fail() -> None:
        raise ConnectionResetError("the socket is gone")

    intake.on_room.append(fail)
    intake.add(a_source(), read({"temp": 1}), fail)
    intake.add(a_source(), read({"temp": 1}), lambda: told.append("the neighbour"))
    await until(lambda: bool(told), "the neighbour is told")
    intake.is_full = True
    intake.add(a_source(), read({"temp": 1}), lambda: told.append("the next"))
    await until(lambda: len(told) == 2, "the next one is told")


async def test_a_flood_of_large_rubbish_fills_the_intake_by_its_bytes(
    intake: Intake, bus: FakeBus
) -> None:
    bus.gate.clear()
    for _ in range(4):
        intake.refuse_message(
            a_source(), "malformed", "not JSON", b"x" * 65_536, nothing, received_at=NOON
        )
    assert intake.is_full
    bus.gate.set()
    await until(lambda: not intake.is_full, "room again")


async def test_long_texts_fill_the_intake_by_their_bytes(intake: Intake, bus: FakeBus) -> None:
    source = a_source()
    source.series["mode"] = Series(2, Kind.TEXT)
    bus.gate.clear()
    for _ in range(60):
        intake.add(source, read({"mode": "x" * 4_000}), nothing)
    assert intake.is_full


async def test_whoever_reads_from_devices_is_told_at_once_that_it_is_enough(
    intake: Intake, bus: FakeBus
) -> None:
    said = []
    intake.on_full.append(lambda: said.append("full"))
    intake.on_room.append(lambda: said.append("room"))
    bus.gate.clear()
    for _ in range(2_100):
        intake.add(a_source(), read({"temp": 1}), nothing)
    assert said == ["full"]
    bus.gate.set()
    await until(lambda: said == ["full", "room"], "room again")


async def test_no_message_on_the_bus_grows_beyond_a_few_mebibytes(bus: FakeBus) -> None:
    limits = IntakeLimits(shards=1, most_pending_points=1_000_000)
    intake = Intake(bus.publish, FakeRegistry(), SystemClock(), limits)
    told: list[int] = []
    for number in range(40):
        done = partial(told.append, number)
        intake.refuse_message(a_source(), "malformed", "", b"x" * 262_144, done, received_at=NOON)
    intake.start()
    await until(lambda: len(told) == 40, "everything is published")
    await intake.stop()
    assert sum(bus.sizes) > 10 * MIB
    assert max(bus.sizes) < 4 * MIB
    assert told == list(range(40))


async def test_one_message_of_rubbish_does_not_become_thousands_of_entries(
    intake: Intake, bus: FakeBus
) -> None:
    readings = [1] * 5_000 + [{"ts": 1, "values": {"temp": 1}}] * 50 + [{"values": {"temp": 7}}]
    refusals = await accept(intake, a_source(), read(readings), within=timedelta(seconds=5))
    assert len(refusals) == 5_050
    [batch] = bus.batches
    assert len(batch) == 1
    entries = {entry.reason: entry for entry in batch.refused}
    assert len(entries) == len(batch.refused) == 2
    assert entries["malformed"].detail.startswith("5000 ")
    assert json.loads(entries["malformed"].payload) == [1] * 5_000
    assert json.loads(entries["too_old"].payload) == [{"ts": 1, "values": {"temp": 1}}] * 50


async def test_a_detail_never_repeats_a_whole_message(intake: Intake, bus: FakeBus) -> None:
    intake.refuse_message(a_source(), "invalid", "x" * 100_000, b"{}", nothing, received_at=NOON)
    await until(lambda: bool(bus.batches), "published")
    assert len(bus.batches[0].refused[0].detail) <= 500


async def test_what_is_refused_keeps_the_time_it_would_have_been_stored_with(
    intake: Intake, bus: FakeBus
) -> None:
    message = json.dumps([{"values": {"temp": 1}}, 2, {"values": {"temp": None}}]).encode()
    window = Window.around(NOON, past=timedelta(days=1), ahead=timedelta(days=1))
    await accept(intake, a_source(), decode(message, NOON, window), within=timedelta(seconds=5))
    intake.refuse_message(
        a_source(), "malformed", "", b"{", nothing, received_at=NOON, channel=Channel.ALERTS
    )
    await until(lambda: len(bus.batches) == 2, "published")
    noon = int(NOON.timestamp()) * 1_000_000
    entries = [entry for batch in bus.batches for entry in batch.refused]
    assert [entry.received_at for entry in entries] == [noon + 1, noon + 2, noon]
    assert [entry.channel for entry in entries] == ["telemetry", "telemetry", "alerts"]


async def test_refusals_that_share_an_entry_keep_each_its_own_time(
    intake: Intake, bus: FakeBus
) -> None:
    readings = [{"temp": 1} if n % 2 else {"values": {"temp": None}} for n in range(60)]
    window = Window.around(NOON, past=timedelta(days=1), ahead=timedelta(days=1))
    decoded = decode(json.dumps(readings).encode(), NOON, window)
    await accept(intake, a_source(), decoded, within=timedelta(seconds=5))
    [entry] = bus.batches[0].refused
    again = decode(entry.payload.replace(b"null", b"5"), NOON, window)
    noon = int(NOON.timestamp()) * 1_000_000
    assert [point.ts for point in again.points] == [noon + n for n in range(0, 60, 2)]


async def test_of_a_long_message_the_beginning_is_kept_and_how_long_it_was(bus: FakeBus) -> None:
    limits = IntakeLimits(most_refused_bytes=1_000)
    intake = Intake(bus.publish, FakeRegistry(), SystemClock(), limits)
    intake.start()
    for size in (1_000, 1_001):
        intake.refuse_message(a_source(), "malformed", "", b"x" * size, nothing, received_at=NOON)
    await intake.stop()
    [batch] = bus.batches
    kept = [(len(entry.payload), entry.cut_from) for entry in batch.refused]
    assert kept == [(1_000, None), (1_000, 1_001)]


async def test_messages_that_race_have_no_more_metrics_than_one_after_the_other(
    intake: Intake,
) -> None:
    source = a_source()
    answers = await asyncio.gather(
        *(
            accept(
                intake,
                source,
                read({f"m{sender}.{n}": 1 for n in range(3)}),
                within=timedelta(seconds=5),
            )
            for sender in range(5)
        )
    )
    assert len(source.series) == LIMITS.most_metrics
    reasons = [refusal.reason for refusals in answers for refusal in refusals]
    assert reasons == ["too_many_metrics"] * 13


async def test_what_is_refused_is_named_by_its_reading_even_behind_metrics_too_many(
    intake: Intake,
) -> None:
    readings = [
        {"values": {"a": 1, "b": 1, "c": 1, "d": 1}},
        {"values": {"e": 1, "temp": 2}},
        {"values": {"temp": "hot"}},
    ]
    refusals = await accept(intake, a_source(), read(readings), within=timedelta(seconds=5))
    assert [(refusal.index, refusal.metric, refusal.reason) for refusal in refusals] == [
        (0, "c", "too_many_metrics"),
        (0, "d", "too_many_metrics"),
        (1, "e", "too_many_metrics"),
        (2, "temp", "type_changed"),
    ]


async def test_no_series_is_made_for_a_name_that_cannot_be_shown(intake: Intake) -> None:
    source = a_source()
    said = {"temp": 1, "te\nmp": 2, "\u202eevil": 3, "te\u200bmp": 4}
    refusals = await accept(intake, source, read(said), within=timedelta(seconds=5))
    assert {(refusal.metric, refusal.reason) for refusal in refusals} == {
        (metric, "bad_metric_name") for metric in said if metric != "temp"
    }
    assert list(source.series) == ["temp"]


async def test_a_message_with_a_thousand_strange_units_looks_few_of_them_up(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: set[str] = set()

    def find_nothing(unit: str) -> None:
        looked_up.add(unit)
        raise units.UnknownUnit(unit)

    monkeypatch.setattr(units, "_parsed", find_nothing)
    readings = [{"values": {"temp": n}, "units": {"temp": f"unit{n}"}} for n in range(1_000)]
    refusals = await accept(intake, a_source(), read(readings), within=timedelta(seconds=5))
    assert [refusal.reason for refusal in refusals] == ["unknown_unit"] * 1_000
    assert len(looked_up) == MOST_UNITS


async def test_stopping_publishes_what_is_gathered_and_tells_it(bus: FakeBus) -> None:
    limits = IntakeLimits(linger=timedelta(seconds=60))
    intake = Intake(bus.publish, FakeRegistry(), SystemClock(), limits)
    intake.start()
    told: list[int] = []
    intake.add(a_source(), read({"temp": 1}), partial(told.append, 1))
    await asyncio.sleep(0)
    intake.add(a_source(), read({"temp": 2}), partial(told.append, 2))
    await intake.stop()
    assert told == [1, 2]
