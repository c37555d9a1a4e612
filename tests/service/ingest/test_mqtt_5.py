"""What MQTT 5 adds, with a stock client where one can say it, over real sockets and a real database."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID

import aiomqtt
import cbor2
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as Said

from libs.common.errors import Unavailable
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.packets import Properties, Will
from tests.service.ingest.conftest import World
from tests.service.ingest.test_hostile_devices import Raw, raw, run_with
from tests.unit.ingest.mqtt import device_packets_5 as packets
from tests.unit.ingest.mqtt.device_packets import topic as topic_of
from tests.waiting import until

__all__ = ["run_with"]


def connect(world: World, device_id: UUID, token: str, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        hostname="127.0.0.1",
        port=world.mqtt_port,
        identifier=str(device_id),
        username=str(device_id),
        password=token,
        protocol=aiomqtt.ProtocolVersion.V5,
        **options,  # type: ignore[arg-type]  # whatever a test wants to vary
    )


def about(**options: object) -> Said:
    """Properties of a PUBLISH, as the client's library has them."""
    said = Said(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
    for name, value in options.items():
        setattr(said, name, value)
    return said


async def welcomed(device: Raw, device_id: UUID, token: str, **options: object) -> bytes:
    """Log in; return the CONNACK's body."""
    name = str(device_id)
    await device.send(packets.connect(name, name, token.encode(), **options))  # type: ignore[arg-type]  # properties
    first, size = await device.receive(2)
    assert first == 0x20
    return await device.receive(size)


async def points(world: World, device_id: UUID) -> list[tuple[str, float, int, str | None]]:
    return [
        (row["metric"], row["value"], row["quality"], row["unit"])
        for row in await world.query(
            "SELECT s.metric, p.value, p.quality, s.unit FROM historian.series s"
            " JOIN historian.points p ON p.tenant = s.tenant AND p.series = s.id"
            " WHERE s.device_id = $1 ORDER BY s.metric, p.ts",
            device_id,
        )
    ]


async def reasons(world: World, device_id: UUID) -> list[tuple[str, str]]:
    return [
        (row["reason"], row["channel"])
        for row in await world.query(
            "SELECT reason, channel FROM ingest.quarantine WHERE device_id = $1", device_id
        )
    ]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_device_publishes_with_every_quality(world: World, qos: int) -> None:
    device_id, token = await world.device()
    async with connect(world, device_id, token) as client:
        for value in range(3):
            await client.publish(
                f"v1/devices/{device_id}/telemetry", json.dumps({"temp": value}), qos=qos
            )
        assert len(await world.until_stored(device_id, 3)) == 3


async def test_what_the_properties_say_of_a_payload_is_believed(world: World) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}/telemetry"
    async with connect(world, device_id, token) as client:
        await client.publish(
            topic,
            cbor2.dumps({"pressure": 2.5}),
            qos=1,
            properties=about(
                ContentType="application/cbor",
                UserProperty=[("unit", "bar"), ("quality", "uncertain")],
            ),
        )
        await client.publish(topic, "{}", qos=1, properties=about(ContentType="image/png"))
        await client.publish(
            topic, '{"temp": 1}', qos=1, properties=about(UserProperty=[("quality", "fine")])
        )
        await client.publish(topic, '{"temp": 2}', qos=1)
    await world.until_stored(device_id, 2)
    [pressure, temp] = await points(world, device_id)
    assert (pressure[0], pressure[1], pressure[3]) == ("pressure", 2.5, "bar")
    assert pressure[2] != temp[2]

    async def both_refused() -> bool:
        return len(await reasons(world, device_id)) == 2

    await until(both_refused, "two messages in quarantine")
    assert {reason for reason, _ in await reasons(world, device_id)} == {
        "unsupported-media-type",
        "invalid",
    }


async def test_a_message_for_a_foreign_topic_is_refused_by_its_reason_code_alone(
    world: World,
) -> None:
    device_id, token = await world.device()
    other_id, _ = await world.device()
    topic = topic_of("telemetry", str(other_id))
    async with raw(world) as device:
        await welcomed(device, device_id, token)
        await device.send(
            packets.publish(packet_id=1, name=topic),
            packets.publish(packet_id=2, device=str(device_id)),
        )
        assert await device.receive(9) == b"\x40\x03\x00\x01\x87" + b"\x40\x02\x00\x02"
    async with connect(world, device_id, token) as client:
        # A stock client goes on as well.
        await client.publish(topic.decode(), '{"temp": 1}', qos=1)
        await client.publish(f"v1/devices/{device_id}/alerts", '{"message": "oil"}', qos=1)
    assert len(await world.until_stored(device_id, 1)) == 1
    assert await world.stored(other_id) == []


async def test_a_removed_device_is_told_that_it_may_not_go_on(world: World) -> None:
    device_id, token = await world.device()
    async with raw(world) as device:
        await welcomed(device, device_id, token)
        answer = await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
        assert answer.status_code == 204
        goodbye = await device.receive(3)
        assert (goodbye[0], goodbye[2]) == (0xE0, 0x87)
        assert await device.is_closed()


async def test_a_postponed_will_is_forgotten_when_the_device_is_back(world: World) -> None:
    device_id, token = await world.device()
    endpoint = world.app.state.endpoint

    def will(delay_s: int) -> Will:
        alarm = b'{"message": "gone", "key": "will"}'
        name = f"v1/devices/{device_id}/alerts".encode()
        return Will(name, alarm, properties=Properties(will_delay=delay_s))

    async with raw(world) as device:
        await welcomed(device, device_id, token, will=will(3600), session_expiry=7200)
    await until(lambda: device_id in endpoint.wills.waiting, "the will waits")
    async with raw(world) as device:
        await welcomed(device, device_id, token, will=will(1), session_expiry=7200)
        assert endpoint.wills.waiting == {}
    await until(lambda: device_id in endpoint.wills.waiting, "the second will waits")

    async def is_told() -> bool:
        rows = await world.query(
            "SELECT 1 FROM bus.log WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
            world.tenant_id,
        )
        return len(rows) == 1

    await until(is_told, "the will is told")


def gone(device_id: UUID, delay_s: int = 0) -> Will:
    name = topic_of("alerts", str(device_id))
    return Will(name, b'{"message": "gone"}', properties=Properties(will_delay=delay_s))


async def alarms(world: World) -> int:
    rows = await world.query(
        "SELECT 1 FROM bus.log WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
        world.tenant_id,
    )
    return len(rows)


@pytest.mark.parametrize("delay_s", [0, 3600])
async def test_a_will_that_falls_due_while_the_database_is_away_is_taken_when_it_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch, delay_s: int
) -> None:
    device_id, token = await world.device()
    wills = world.app.state.endpoint.wills
    tries = 0

    async def fail(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise Unavailable("the database is away")

    @asynccontextmanager
    async def begin(_: UUID) -> AsyncIterator[None]:
        await fail()
        yield

    with monkeypatch.context() as patch:
        patch.setattr(world.app.state.reception.reports, "take", fail)
        async with raw(world) as device:
            await welcomed(
                device, device_id, token, will=gone(device_id, delay_s), session_expiry=7200
            )
        if delay_s:
            await until(lambda: device_id in wills.waiting, "the will waits")
            patch.setattr(wills, "_transactions", SimpleNamespace(begin=begin))
            wills.take_due(wills.waiting[device_id].due)
        await until(lambda: tries > 0, "the will is tried")
        await until(lambda: not world.app.state.reception.tasks, "it is put back")
    assert await alarms(world) == 0
    wills.take_due(asyncio.get_running_loop().time() + 7200)

    async def is_told() -> bool:
        return await alarms(world) == 1

    await until(is_told, "the will is told")


@pytest.mark.parametrize("delay_s", [0, 3600])
async def test_wills_are_taken_before_the_server_is_down(
    run_with: Callable[..., object], monkeypatch: pytest.MonkeyPatch, delay_s: int
) -> None:
    async with run_with() as world:  # type: ignore[attr-defined]  # see run_with
        device_id, token = await world.device()
        wills, reports = world.app.state.endpoint.wills, world.app.state.reception.reports
        take = reports.take

        async def take_slowly(*report: object) -> None:
            await until(lambda: wills._is_stopping, "all else of the endpoint is down")
            await take(*report)

        monkeypatch.setattr(reports, "take", take_slowly)
        async with AsyncExitStack() as stack:
            device = await stack.enter_async_context(raw(world))
            expiry_s = 2 * delay_s
            await welcomed(
                device, device_id, token, will=gone(device_id, delay_s), session_expiry=expiry_s
            )
            if delay_s:
                await stack.aclose()
                await until(lambda: device_id in wills.waiting, "the will waits")
                await until(lambda: not world.app.state.endpoint.keeper._written, "it is kept")
            await world.app.state.endpoint.stop()
            # What is still being done then is ended with the rest of the service.
            assert not world.app.state.reception.tasks
            assert await alarms(world) == 1


async def test_a_device_that_is_read_more_slowly_is_told_so_on_its_status_page(
    run_with: Callable[..., object],
) -> None:
    async with run_with(device_messages_per_second=1, device_burst=10) as world:  # type: ignore[attr-defined]  # see run_with
        device_id, token = await world.device()
        async with raw(world) as device:
            await welcomed(device, device_id, token)
            sent = [packets.publish(packet_id=n, device=str(device_id)) for n in range(1, 31)]
            await device.send(*sent)
            await device.receive(30 * 4)

            async def is_noted() -> bool:
                answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
                said = answer.json()
                return (said["status"], said["status_reason"]) == (
                    "online",
                    "over its quota: more than 1 messages a second",
                )

            await until(is_noted, "the reason is on its status page")


async def test_a_device_over_its_quota_is_slowed_and_then_told(
    run_with: Callable[..., object],
) -> None:
    async with run_with(  # type: ignore[attr-defined]  # see run_with
        device_messages_per_second=1, device_burst=10, mqtt_over_quota=timedelta(seconds=2)
    ) as world:
        device_id, token = await world.device()
        async with raw(world) as device:
            await welcomed(device, device_id, token)
            name = str(device_id)
            sent = [
                packets.publish(payload=b'{"temp": %d}' % n, packet_id=n, device=name)
                for n in range(1, 31)
            ]
            await device.send(*sent)
            # What was read is taken and acknowledged all the same.
            await device.receive(30 * 4)
            goodbye = await device.receive(3)
            assert (goodbye[0], goodbye[2]) == (0xE0, 0x97)

        async def is_noted() -> bool:
            answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
            said = answer.json()["status_reason"]
            return bool(said == "more than 1 messages a second for 2 s")

        await until(is_noted, "the reason is on its status page")
        assert len(await world.until_stored(device_id, 30)) == 30


async def test_a_stock_client_learns_the_limits_and_uses_a_topic_alias(world: World) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}/telemetry"
    async with connect(world, device_id, token) as client:
        await client.publish(topic, '{"temp": 1}', qos=1, properties=about(TopicAlias=1))
        # The library takes no empty topic; over a raw socket it is one.
    async with raw(world) as device:
        body = await welcomed(device, device_id, token)
        limits = Limits()
        assert b"\x21" + limits.receive_window.to_bytes(2, "big") in body
        assert b"\x22" + limits.topic_aliases.to_bytes(2, "big") in body
        first = packets.publish(
            payload=b'{"temp": 2}', packet_id=1, device=str(device_id), topic_alias=1
        )
        second = packets.publish(payload=b'{"temp": 3}', packet_id=2, name=b"", topic_alias=1)
        await device.send(first, second)
        assert await device.receive(8) == b"\x40\x02\x00\x01\x40\x02\x00\x02"
    assert sorted(v for _, _, v in await world.until_stored(device_id, 3)) == [1.0, 2.0, 3.0]


async def test_a_server_that_goes_down_says_so(run_with: Callable[..., object]) -> None:
    async with run_with() as world:  # type: ignore[attr-defined]  # see run_with
        device_id, token = await world.device()
        reader, writer = await asyncio.open_connection("127.0.0.1", world.mqtt_port)
        device = Raw(reader, writer)
        await welcomed(device, device_id, token)
    goodbye = await device.receive(3)
    assert (goodbye[0], goodbye[2]) == (0xE0, 0x8B)
    await device.close()
