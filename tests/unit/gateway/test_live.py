"""Who hears what."""

import json
from array import array
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from libs.common.errors import TooManyRequests
from libs.common.events.base import Message
from libs.common.events.ingest import TelemetryReceived
from services.gateway.domain.live import AlertUpdate, DeviceUpdate, Kind, Wish, narrowed
from services.gateway.store.lookups import Series
from services.gateway.usecases.live import BYTES_WAITING, TRY_LATER, Connection, Live, Most
from services.gateway.usecases.places import Places

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ALL = frozenset(Kind)
PUMP, PRESS = uuid4(), uuid4()
SITE, LINE, ELSEWHERE = uuid4(), uuid4(), uuid4()
MANY = Most(1_000, 1_000, 1_000)


class Historian:
    """Knows series 1 and 2 of tenant 1, and counts how often it is asked."""

    def __init__(self, tenant_id: UUID) -> None:
        self.tenant_id = tenant_id
        self.asked: list[list[int]] = []
        self.places = {PUMP: frozenset({SITE, LINE}), PRESS: frozenset({ELSEWHERE})}

    async def describe_series(self, ids: Sequence[int]) -> list[Series]:
        self.asked.append(list(ids))
        devices = {1: PUMP, 2: PRESS}
        return [Series(i, self.tenant_id, devices[i], "temp", 0) for i in ids if i in devices]

    async def places_of(
        self, tenant_id: UUID, device_ids: Collection[UUID]
    ) -> dict[UUID, frozenset[UUID]]:
        return {device: self.places[device] for device in device_ids if device in self.places}


def a_batch(*series: int) -> Message:
    count = len(series)
    return TelemetryReceived(
        at=NOW,
        shard=0,
        tenants=array("i", [1] * count).tobytes(),
        series=array("i", series).tobytes(),
        ts=array("q", [0] * count).tobytes(),
        values=array("d", [1.5] * count).tobytes(),
        quality=bytes(count),
    ).to_message()


def a_connection(
    tenant_id: UUID, allowed: frozenset[Kind] = ALL, reach: frozenset[UUID] | None = None
) -> Connection:
    return Connection(tenant_id, uuid4(), uuid4(), allowed, reach)


async def test_while_nobody_is_connected_nothing_is_even_decoded() -> None:
    live = Live(Historian(uuid4()), MANY)
    await live.hear_telemetry([Message(id=uuid4(), type="x", source="x", time=NOW, body=b"junk")])


async def test_a_series_is_looked_up_once() -> None:
    tenant = uuid4()
    historian = Historian(tenant)
    live = Live(historian, MANY)
    connection = a_connection(tenant)
    live.join(connection)
    await live.hear_telemetry([a_batch(1, 2), a_batch(2, 1)])
    assert historian.asked == [[1, 2]]
    points = json.loads(await connection.next())["points"]
    assert [p["device_id"] for p in points] == [str(PUMP), str(PRESS)]
    assert points[0]["ts"] == "1970-01-01T00:00:00Z"


async def test_each_hears_the_devices_and_kinds_they_asked_for() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    pump, press, alerts = (a_connection(tenant) for _ in range(3))
    for connection in (pump, press, alerts):
        live.join(connection)
    live.subscribe(pump, narrowed(Wish(devices=[PUMP]), ALL))
    live.subscribe(press, narrowed(Wish(devices=[PRESS]), ALL))
    live.subscribe(alerts, narrowed(Wish(types=[Kind.ALERT]), ALL))
    await live.hear_telemetry([a_batch(1)])
    await live.tell(tenant, DeviceUpdate("updated", PRESS, NOW, {}))
    await live.tell(tenant, AlertUpdate("opened", uuid4(), None, NOW, {}))
    assert json.loads(await pump.next())["type"] == "telemetry_update"
    assert json.loads(await press.next())["type"] == "device_update"
    assert json.loads(await alerts.next())["type"] == "alert"
    # An alert that is about no device is everyone's.
    assert json.loads(await pump.next())["type"] == "alert"


async def heard_devices(live: Live, connection: Connection, *batch: int) -> list[str]:
    """Return whose points the connection is sent of a batch; an update marks the batch's end."""
    await live.hear_telemetry([a_batch(*batch)])
    await live.tell(connection.tenant_id, AlertUpdate("opened", uuid4(), None, NOW, {}))
    frame = json.loads(await connection.next())
    if frame["type"] != "telemetry_update":
        return []
    assert json.loads(await connection.next())["type"] == "alert"
    return [point["device_id"] for point in frame["points"]]


async def test_what_one_subscribes_to_holds_from_the_next_batch_on() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    first, second = a_connection(tenant), a_connection(tenant)
    live.join(first)
    assert await heard_devices(live, first, 1, 2) == [str(PUMP), str(PRESS)]
    live.subscribe(first, narrowed(Wish(devices=[PRESS]), ALL))
    assert await heard_devices(live, first, 1, 2) == [str(PRESS)]
    live.subscribe(first, narrowed(Wish(types=[Kind.ALERT]), ALL))
    assert await heard_devices(live, first, 1, 2) == []
    # One who comes later hears what nobody wanted before, and one who has gone hears nothing.
    live.join(second)
    assert await heard_devices(live, second, 1) == [str(PUMP)]
    live.leave(second)
    sent = live.sent
    await live.hear_telemetry([a_batch(1)])
    assert live.sent == sent


async def test_those_who_want_the_same_get_the_same_frame() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    alike = [a_connection(tenant) for _ in range(2)]
    for connection in alike:
        live.join(connection)
        live.subscribe(connection, narrowed(Wish(devices=[PUMP]), ALL))
    everything = a_connection(tenant)
    live.join(everything)
    await live.hear_telemetry([a_batch(1, 2, 1)])
    frames = [await connection.next() for connection in alike]
    assert frames[0] is frames[1]
    assert [p["device_id"] for p in json.loads(frames[0])["points"]] == [str(PUMP)] * 2
    assert len(json.loads(await everything.next())["points"]) == 3


def test_a_wish_does_not_widen_what_one_may_see() -> None:
    allowed = frozenset({Kind.DEVICE})
    assert narrowed(Wish(), allowed).kinds == allowed
    assert narrowed(Wish(types=[Kind.ALERT, Kind.DEVICE]), allowed).kinds == allowed


async def test_of_another_tenant_nothing_is_heard() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    stranger = a_connection(uuid4())
    live.join(stranger)
    await live.hear_telemetry([a_batch(1), a_batch(1)])
    await live.tell(tenant, DeviceUpdate("updated", PUMP, NOW, {}))
    assert live.sent == 0


async def test_one_who_does_not_keep_up_is_cut() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    slow = a_connection(tenant)
    live.join(slow)
    update = DeviceUpdate("updated", PUMP, NOW, {"note": "x" * (BYTES_WAITING // 4)})
    for _ in range(6):
        await live.tell(tenant, update)
    assert slow.closed.result()[0] == TRY_LATER


async def test_the_end_of_a_session_cuts_its_connections_alone() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    here, there = a_connection(tenant), a_connection(tenant)
    live.join(here)
    live.join(there)
    live.close_session(here.session_id)
    assert here.closed.done()
    assert not there.closed.done()
    live.leave(here)
    live.leave(there)
    assert live.count() == 0


@pytest.mark.parametrize(
    ("most", "refused"),
    [
        (Most(2, 9, 9), "this session has 2 live connections already"),
        (Most(9, 2, 9), "this user has 2 live connections already"),
        (Most(9, 9, 2), "this tenant has 2 live connections already"),
    ],
)
async def test_there_is_an_end_to_how_many_one_may_have(most: Most, refused: str) -> None:
    tenant, user, session = uuid4(), uuid4(), uuid4()
    live = Live(Historian(tenant), most)
    first, second, third = (Connection(tenant, user, session, ALL) for _ in range(3))
    live.join(first)
    live.join(second)
    with pytest.raises(TooManyRequests, match=refused):
        live.join(third)
    assert live.count() == 2
    live.join(a_connection(uuid4()))  # somebody else's
    live.leave(first)
    live.join(third)


async def test_when_updates_were_missed_all_connect_again() -> None:
    tenant = uuid4()
    live = Live(Historian(tenant), MANY)
    connections = [a_connection(tenant), a_connection(uuid4())]
    for connection in connections:
        live.join(connection)
    live.close_interrupted()
    assert [connection.closed.result()[0] for connection in connections] == [TRY_LATER] * 2


async def test_who_is_limited_to_groups_hears_of_their_devices_alone() -> None:
    tenant = uuid4()
    historian = Historian(tenant)
    live = Live(historian, MANY)
    everywhere = a_connection(tenant)
    on_site = a_connection(tenant, reach=frozenset({SITE}))
    nowhere = a_connection(tenant, reach=frozenset())
    for connection in (everywhere, on_site, nowhere):
        live.join(connection)

    async def heard(connection: Connection) -> list[str]:
        frames = []
        while connection._frames.qsize():
            frame = json.loads(await connection.next())
            frames += [p["device_id"] for p in frame.get("points", [])] or [frame["device_id"]]
        return frames

    async def happens() -> None:
        await live.hear_telemetry([a_batch(1, 2)])
        for device in (PUMP, PRESS):
            await live.tell(tenant, DeviceUpdate("updated", device, NOW, {}))
        await live.tell(tenant, AlertUpdate("opened", uuid4(), None, NOW, {}))

    pump, press = str(PUMP), str(PRESS)
    await happens()
    assert await heard(everywhere) == [pump, press, pump, press, None]
    assert await heard(on_site) == [pump, pump]
    assert await heard(nowhere) == []

    # The pump goes, the press comes; from a missed word on, nothing old is believed.
    historian.places = {PUMP: frozenset({ELSEWHERE}), PRESS: frozenset({SITE})}
    live.move(tenant, [PUMP, PRESS])
    await happens()
    assert await heard(on_site) == [press, press]
    historian.places = {}
    live.close_interrupted()
    assert on_site.closed.done()
    await happens()
    assert await heard(on_site) == []


async def test_a_place_that_changes_while_it_is_looked_up_is_looked_up_again() -> None:
    tenant = uuid4()
    historian = Historian(tenant)
    places = Places(historian)
    ask = historian.places_of

    async def slowly(tenant_id: UUID, device_ids: Collection[UUID]) -> dict[UUID, frozenset[UUID]]:
        found = await ask(tenant_id, device_ids)
        if PUMP in historian.places:
            del historian.places[PUMP]
            places.moved(tenant, [PUMP])
        return found

    historian.places_of = slowly  # type: ignore[method-assign]  # as if another moved it meanwhile
    await places.learn(tenant, [PUMP])
    assert places.of(tenant, PUMP) == frozenset()
