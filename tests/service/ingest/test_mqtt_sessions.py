"""MQTT sessions that go on: over lost connections, at another replica, after a crash."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID, uuid4

import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.errors import Unavailable
from services.ingest.app import build
from services.ingest.domain.command import Delivered
from services.ingest.protocols.mqtt.endpoint import Connection, Endpoint
from services.ingest.protocols.mqtt.packets import Properties, Will
from services.ingest.settings import Settings
from services.ingest.store.mqtt_sessions import trim_mqtt_sessions
from tests.alarms import shift_clock
from tests.database import DatabaseUrls
from tests.service.ingest.conftest import World, running
from tests.service.ingest.test_hostile_devices import Raw, raw
from tests.unit.ingest.mqtt import device_packets as packets
from tests.unit.ingest.mqtt import device_packets_5 as packets_5
from tests.unit.ingest.mqtt.test_session_kept import pubcomp, pubrec, pubrel
from tests.waiting import until


def endpoint_of(world: World) -> Endpoint:
    endpoint: Endpoint = world.app.state.endpoint
    return endpoint


def connection_of(world: World, device_id: UUID) -> Connection | None:
    return endpoint_of(world).by_device.get(device_id)


@asynccontextmanager
async def resuming(
    world: World, device_id: UUID, token: str, *, expects: bool
) -> AsyncIterator[Raw]:
    """A device of 3.1.1 that asks for its session; whether there is one must be as it `expects`."""
    async with raw(world) as device:
        name = str(device_id)
        await device.send(packets.connect(name, name, token.encode(), clean=False))
        assert await device.receive(4) == bytes([0x20, 2, expects, 0])
        yield device


async def subscribe(device: Raw, device_id: UUID, qos: int = 1) -> None:
    name = packets.topic("commands", str(device_id))
    await device.send(packets.subscribe(1, (name, qos)))
    assert await device.receive(5) == b"\x90\x03\x00\x01" + bytes([qos])


async def until_gone(world: World, device_id: UUID) -> None:
    """Wait until the device's connection is over and its session is written down."""
    endpoint = endpoint_of(world)
    await until(
        lambda: device_id not in endpoint.by_device and not endpoint.keeper._written,
        "the session is written down",
    )


async def order(world: World, device_id: UUID, name: str = "stop") -> UUID:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands", json={"name": name}, headers=world.headers
    )
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


async def status_of(world: World, device_id: UUID, command_id: UUID) -> str:
    answer = await world.http.get(
        f"/api/v1/devices/{device_id}/commands/{command_id}", headers=world.headers
    )
    return str(answer.json()["status"])


@asynccontextmanager
async def replica(
    settings: Settings,
    keys: KeySource,
    urls: DatabaseUrls,
    tenant_id: UUID,
    headers: dict[str, str],
) -> AsyncIterator[World]:
    """Another process of the same installation."""
    bus = LocalBus(urls.bus, SystemClock())
    app = build(settings, bus, SystemClock(), keys=keys)
    async with running(app, bus, urls, tenant_id, headers) as world:
        yield world


@pytest.fixture
async def two_worlds(
    world: World,
    settings: Settings,
    keys: KeySource,
    database_urls: DatabaseUrls,
) -> AsyncIterator[tuple[World, World]]:
    async with replica(settings, keys, database_urls, world.tenant_id, world.headers) as second:
        yield world, second


async def test_a_message_of_qos_2_is_stored_once_however_often_it_is_sent(world: World) -> None:
    device_id, token = await world.device()
    name = str(device_id)
    sent = packets.publish(payload=b'{"temp": 1}', packet_id=7, qos=2, device=name)
    again = packets.publish(payload=b'{"temp": 1}', packet_id=7, qos=2, dup=True, device=name)
    async with resuming(world, device_id, token, expects=False) as device:
        await device.send(sent)
        assert await device.receive(4) == pubrec(7)
        await device.send(again)
        assert await device.receive(4) == pubrec(7)
    await until_gone(world, device_id)
    async with resuming(world, device_id, token, expects=True) as device:
        await device.send(again)
        assert await device.receive(4) == pubrec(7)
        await device.send(pubrel(7))
        assert await device.receive(4) == pubcomp(7)
        # A device that sends the last one for another: it has been released.
        await device.send(packets.publish(payload=b'{"temp": 2}', packet_id=7, qos=2, device=name))
        assert await device.receive(4) == pubrec(7)
    points = await world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]


async def test_a_subscription_outlives_its_connection_and_a_command_waits_for_the_device(
    world: World,
) -> None:
    device_id, token = await world.device()
    async with resuming(world, device_id, token, expects=False) as device:
        await subscribe(device, device_id)
    await until_gone(world, device_id)
    command_id = await order(world, device_id)
    async with resuming(world, device_id, token, expects=True) as device:
        head = await device.receive(2)
        assert head[0] == 0x32
        size = head[1] if head[1] < 128 else (head[1] & 127) + 128 * (await device.receive(1))[0]
        body = await device.receive(size)
        assert json.loads(body[body.index(b"{") :])["id"] == str(command_id)
        await device.send(packets.puback(1))

        async def is_acknowledged() -> bool:
            return await status_of(world, device_id, command_id) == "acknowledged"

        await until(is_acknowledged, "the command is acknowledged")
        reply = json.dumps({"id": str(command_id), "status": "succeeded", "result": {"rpm": 0}})
        await device.send(
            packets.publish("replies", reply.encode(), packet_id=9, device=str(device_id))
        )
        assert await device.receive(4) == packets.puback(9)
        assert await status_of(world, device_id, command_id) == "succeeded"


async def test_a_clean_connection_leaves_nothing_of_an_earlier_session(world: World) -> None:
    device_id, token = await world.device()
    name = str(device_id)
    async with resuming(world, device_id, token, expects=False) as device:
        await subscribe(device, device_id)
    await until_gone(world, device_id)
    async with raw(world) as device:
        await device.send(packets.connect(name, name, token.encode()))
        assert await device.receive(4) == b"\x20\x02\x00\x00"
    await until_gone(world, device_id)
    assert (
        await world.query("SELECT 1 FROM ingest.mqtt_sessions WHERE device_id = $1", device_id)
        == []
    )
    async with resuming(world, device_id, token, expects=False):
        pass


async def test_a_session_is_over_when_its_device_was_away_for_too_long(world: World) -> None:
    device_id, token = await world.device()
    name = str(device_id)
    async with raw(world) as device:
        await device.send(
            packets_5.connect(name, name, token.encode(), clean=False, session_expiry=60)
        )
        assert (await device.receive(4))[2:] == b"\x00\x00"
    await until_gone(world, device_id)
    try:
        await shift_clock(world.urls, "61 seconds")
        async with resuming(world, device_id, token, expects=False):
            pass
        await until_gone(world, device_id)
        await shift_clock(world.urls, "8 days")
        await until_offline(world, device_id)
        engine = Database(world.urls.engine("ingest"), across_tenants=True)
        assert await trim_mqtt_sessions(engine) >= 1
        await engine.close()
    finally:
        await shift_clock(world.urls, "0 seconds")


async def until_offline(world: World, device_id: UUID) -> None:
    async def is_offline() -> bool:
        rows = await world.query(
            "SELECT 1 FROM ingest.devices WHERE id = $1 AND endpoint_id IS NULL", device_id
        )
        return bool(rows)

    await until(is_offline, "offline")


async def test_a_device_that_connects_to_another_replica_takes_its_session_with_it(
    two_worlds: tuple[World, World],
) -> None:
    first, second = two_worlds
    device_id, token = await first.device()
    name = str(device_id)
    message = packets.publish(payload=b'{"temp": 1}', packet_id=3, qos=2, device=name)
    async with resuming(first, device_id, token, expects=False) as old:
        await subscribe(old, device_id)
        await old.send(message)
        assert await old.receive(4) == pubrec(3)
        # Its network has changed; the first replica knows nothing of that yet.
        async with resuming(second, device_id, token, expects=True) as new:
            assert await old.is_closed()
            await new.send(
                packets.publish(payload=b'{"temp": 1}', packet_id=3, qos=2, dup=True, device=name)
            )
            assert await new.receive(4) == pubrec(3)
            connection = connection_of(second, device_id)
            assert connection is not None
            await until(lambda: connection._way_down is not None, "subscribed")
            assert connection_of(first, device_id) is None
    assert len(await first.until_stored(device_id, 1)) == 1


async def test_a_device_of_mqtt_5_is_told_that_it_has_connected_elsewhere(
    two_worlds: tuple[World, World],
) -> None:
    first, second = two_worlds
    device_id, token = await first.device()
    name = str(device_id)
    hello = packets_5.connect(name, name, token.encode())
    async with raw(first) as old, raw(second) as new:
        await old.send(hello)
        await old.receive(2 + (await old.receive(2))[1] - 2)
        await until_noted(first, device_id)
        await new.send(hello)
        await new.receive((await new.receive(2))[1])
        goodbye = await old.receive(3)
        assert (goodbye[0], goodbye[2]) == (0xE0, 0x8E)
        assert await old.is_closed()


async def test_a_will_that_waits_is_not_taken_when_its_device_is_back_elsewhere(
    two_worlds: tuple[World, World],
) -> None:
    first, second = two_worlds
    reception, endpoint = first.app.state.reception, endpoint_of(first)

    async def alarms(*, is_back: bool) -> int:
        """Return how many alarms come of a will that is due when the device is back, or is not."""
        device_id, token = await first.device()
        name = str(device_id)
        told = json.dumps({"message": f"{name} is gone"}).encode()
        will = Will(packets.topic("alerts", name), told, 1, False, Properties(will_delay=30))
        hello = packets_5.connect(
            name, name, token.encode(), clean=False, session_expiry=60, will=will
        )
        async with AsyncExitStack() as stack:
            async with raw(first) as device:
                await device.send(hello)
                await device.receive((await device.receive(2))[1])
                await until_noted(first, device_id)
            await until_offline(first, device_id)
            if is_back:
                again = await stack.enter_async_context(raw(second))
                await again.send(hello)
                await again.receive((await again.receive(2))[1])
                await until_noted(second, device_id)
            endpoint.wills.take_due(endpoint.wills.waiting[device_id].due)
            await until(lambda: not reception.tasks, "the will is dealt with")
        return len(
            await first.query(
                "SELECT 1 FROM bus.log WHERE type = 'device.alert_reported.v1'"
                " AND convert_from(body, 'utf8') LIKE '%' || $1 || '%'",
                name,
            )
        )

    assert await alarms(is_back=True) == 0
    assert await alarms(is_back=False) == 1


async def until_noted(world: World, device_id: UUID) -> None:
    async def is_noted() -> bool:
        rows = await world.query(
            "SELECT 1 FROM ingest.devices WHERE id = $1 AND endpoint_id IS NOT NULL", device_id
        )
        return bool(rows)

    await until(is_noted, "noted as connected")


async def test_after_a_crash_the_session_is_what_was_written_down(world: World) -> None:
    """The subscription was answered, so it is kept; who held the session died without a word."""
    device_id, token = await world.device()
    async with resuming(world, device_id, token, expects=False) as device:
        await subscribe(device, device_id)
        connection = connection_of(world, device_id)
        assert connection is not None
        # As after SIGKILL: the row still names a process, and nobody will write it any more.
        connection._is_accepted = False
    await until(lambda: connection_of(world, device_id) is None, "gone")
    endpoint_of(world).keeper._holder = uuid4()
    async with resuming(world, device_id, token, expects=True):
        connection = connection_of(world, device_id)
        assert connection is not None
        assert connection._session.is_subscribed


async def test_a_command_of_qos_2_is_acknowledged_by_its_pubrec(world: World) -> None:
    device_id, token = await world.device()
    async with resuming(world, device_id, token, expects=False) as device:
        await subscribe(device, device_id, qos=2)
        command_id = await order(world, device_id)
        head = await device.receive(2)
        assert head[0] == 0x34
        await device.receive((head[1] & 127) + 128 * (await device.receive(1))[0])
        await device.send(pubrec(1))
        assert await device.receive(4) == pubrel(1)

        async def is_acknowledged() -> bool:
            return await status_of(world, device_id, command_id) == Delivered.ACKNOWLEDGED

        await until(is_acknowledged, "the command is acknowledged")
        await device.send(pubcomp(1))


async def test_a_clean_connection_ends_a_session_whatever_the_database_thinks_the_time_is(
    world: World,
) -> None:
    device_id, token = await world.device()
    name = str(device_id)
    try:
        await shift_clock(world.urls, "1 hour")
        async with resuming(world, device_id, token, expects=False) as device:
            await subscribe(device, device_id)
        await until_gone(world, device_id)
        async with raw(world) as device:
            await device.send(packets.connect(name, name, token.encode()))
            assert await device.receive(4) == b"\x20\x02\x00\x00"
        await until_gone(world, device_id)
        async with resuming(world, device_id, token, expects=False):
            pass
    finally:
        await shift_clock(world.urls, "0 seconds")


async def test_a_login_that_fails_forgets_nothing_of_what_the_device_has_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await world.device()
    name = str(device_id)
    endpoint = endpoint_of(world)
    async with resuming(world, device_id, token, expects=False) as device:
        await device.send(packets.publish(packet_id=7, device=name))
        assert await device.receive(4) == packets.puback(7)
    await until_gone(world, device_id)
    receipts = endpoint.receipts[device_id]

    async def fail(*_: object, **__: object) -> None:
        raise Unavailable("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(endpoint.keeper, "take", fail)
        async with raw(world) as device:
            await device.send(packets.connect(name, name, token.encode(), clean=False))
            assert await device.receive(4) == b"\x20\x02\x00\x03"
    await until_gone(world, device_id)
    assert endpoint.receipts[device_id] is receipts


async def test_changes_of_one_moment_are_written_down_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await world.device()
    keeper = endpoint_of(world).keeper
    save, saved = keeper.save, 0

    def count(*word: object, **about: object) -> object:
        nonlocal saved
        saved += 1
        return save(*word, **about)  # type: ignore[arg-type]  # as they came

    name = packets.topic("commands", str(device_id))
    async with resuming(world, device_id, token, expects=False) as device:
        monkeypatch.setattr(keeper, "save", count)
        await device.send(*(packets.subscribe(n, (name, 1)) for n in range(1, 101)))
        answers = await device.receive(500)
        assert answers == b"".join(b"\x90\x03" + n.to_bytes(2) + b"\x01" for n in range(1, 101))
        assert saved < 10


async def test_ten_sessions_at_once_are_all_kept(world: World) -> None:
    devices = [await world.device() for _ in range(10)]
    async with AsyncExitStack() as stack:
        for device_id, token in devices:
            device = await stack.enter_async_context(
                resuming(world, device_id, token, expects=False)
            )
            await subscribe(device, device_id)
    await asyncio.gather(*(until_gone(world, device_id) for device_id, _ in devices))
    for device_id, token in devices:
        async with resuming(world, device_id, token, expects=True):
            pass
