"""Devices speak MQTT to ingest itself, with stock clients over real sockets."""

import asyncio
import json
import shutil
import subprocess
from datetime import UTC, datetime
from uuid import UUID, uuid4

import aiomqtt
import asyncpg
import pytest
from aiomqtt.exceptions import MqttConnectError

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.waiting import until


def connect(world: World, device_id: UUID, token: str, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        hostname="127.0.0.1",
        port=world.mqtt_port,
        identifier=str(device_id),
        username=str(device_id),
        password=token,
        **options,  # type: ignore[arg-type]  # whatever a test wants to vary
    )


async def test_a_device_publishes_and_is_acknowledged_when_its_points_are_safe(
    world: World,
) -> None:
    device_id, token = await world.device()
    ts = int(datetime.now(UTC).timestamp() * 1000)
    async with connect(world, device_id, token) as client:
        await client.publish(
            f"v1/devices/{device_id}/telemetry",
            json.dumps({"ts": ts, "values": {"temp": 21.5, "running": True}}),
            qos=1,
        )
    points = await world.until_stored(device_id, 2)
    assert sorted((metric, value) for metric, _, value in points) == [
        ("running", 1.0),
        ("temp", 21.5),
    ]
    assert {round(at * 1000) for _, at, _ in points} == {ts}


async def test_no_acknowledgement_before_the_bus_has_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await world.device()
    is_up = asyncio.Event()
    publish = world.app.state.intake._publish

    async def publish_when_up(messages: list[Message]) -> None:
        if not is_up.is_set():
            raise Unavailable("the bus is away")
        await publish(messages)

    monkeypatch.setattr(world.app.state.intake, "_publish", publish_when_up)
    async with connect(world, device_id, token) as client:
        sent = asyncio.create_task(
            client.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
        )
        _, waiting = await asyncio.wait([sent], timeout=0.5)
        assert waiting, "acknowledged although nothing was durable"
        is_up.set()
        await asyncio.wait_for(sent, 10)
    assert await world.until_stored(device_id, 1)


async def test_a_wrong_token_and_a_foreign_client_id_are_refused(world: World) -> None:
    device_id, token = await world.device()
    other_id, _ = await world.device()
    for client in (
        connect(world, device_id, token[:-1] + ("A" if token[-1] != "A" else "B")),
        connect(world, other_id, token),
        connect(world, uuid4(), token),
    ):
        with pytest.raises(MqttConnectError):
            async with client:
                pass


async def test_a_publish_to_someone_elses_topic_closes_the_connection(world: World) -> None:
    device_id, token = await world.device()
    other_id, _ = await world.device()
    async with connect(world, device_id, token) as client:
        topic = f"v1/devices/{other_id}/telemetry"
        publishing = asyncio.create_task(client.publish(topic, '{"temp": 1}', qos=1))
        with pytest.raises(aiomqtt.MqttError, match="Disconnected"):
            await asyncio.wait_for(anext(client.messages), 15)
        assert not publishing.done(), "nothing was acknowledged"
        publishing.cancel()
    assert await world.stored(other_id) == []


async def test_what_is_not_json_is_acknowledged_into_quarantine_and_its_neighbours_stored(
    world: World,
) -> None:
    device_id, token = await world.device()
    topic = f"v1/devices/{device_id}/telemetry"
    async with connect(world, device_id, token) as client:
        await client.publish(topic, '{"temp": 1}', qos=1)
        await client.publish(topic, b"\xff\xfe not json", qos=1)
        await client.publish(topic, '{"ts": 1, "values": {"temp": 2}}', qos=1)
        await client.publish(topic, "[3]", qos=1)
        await client.publish(topic, "", qos=1)
        await client.publish(topic, '{"temp": 4}', qos=1)
    points = await world.until_stored(device_id, 2)
    assert sorted(value for _, _, value in points) == [1.0, 4.0]

    async def all_four() -> bool:
        listed = await world.http.get(
            f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=world.headers
        )
        return sorted(e["reason"] for e in listed.json()["items"]) == [
            "malformed",
            "malformed",
            "malformed",
            "too_old",
        ]

    await until(all_four, "four refusals in quarantine")


async def test_a_removed_device_is_cut_off_within_five_seconds(world: World) -> None:
    device_id, token = await world.device()
    async with connect(world, device_id, token) as client:
        await client.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
        answer = await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
        assert answer.status_code == 204
        await until(
            lambda: device_id not in world.app.state.endpoint.by_device, "cut off", within_s=5
        )
        with pytest.raises(aiomqtt.MqttError):
            async for _ in client.messages:
                pass
    with pytest.raises(MqttConnectError):
        async with connect(world, device_id, token):
            pass


async def test_coming_and_going_shows_in_the_registry(world: World) -> None:
    device_id, token = await world.device()

    async def status() -> str:
        answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
        return str(answer.json()["status"])

    async def is_online() -> bool:
        return await status() == "online"

    async def is_offline() -> bool:
        return await status() == "offline"

    assert await status() == "unknown"
    async with connect(world, device_id, token):
        await until(is_online, "online")
    await until(is_offline, "offline")


async def test_a_device_that_connects_again_takes_its_place_over(world: World) -> None:
    device_id, token = await world.device()
    async with (
        connect(world, device_id, token) as first,
        connect(world, device_id, token) as second,
    ):
        await second.publish(f"v1/devices/{device_id}/telemetry", '{"temp": 1}', qos=1)
        with pytest.raises(aiomqtt.MqttError):
            async for _ in first.messages:
                pass
    assert await world.until_stored(device_id, 1)


async def test_the_device_reports_an_alarm_and_a_status_of_its_own(world: World) -> None:
    device_id, token = await world.device()
    async with connect(world, device_id, token) as client:
        await client.publish(
            f"v1/devices/{device_id}/alerts",
            '{"severity": "high", "message": "oil low", "key": "oil"}',
            qos=1,
        )
        await client.publish(
            f"v1/devices/{device_id}/status", '{"status": "online", "reason": "booted"}', qos=1
        )
        answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
        assert (answer.json()["status"], answer.json()["status_reason"]) == ("online", "booted")
    rows = await world.query(
        "SELECT convert_from(body, 'utf-8') AS body FROM bus.log"
        " WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
        world.tenant_id,
    )
    assert [json.loads(row["body"])["message"] for row in rows] == ["oil low"]


async def test_mosquitto_pub_is_content(world: World) -> None:
    mosquitto_pub = shutil.which("mosquitto_pub")
    if mosquitto_pub is None:
        pytest.fail("mosquitto_pub is missing: install mosquitto-clients")
    device_id, token = await world.device()
    command = [mosquitto_pub, "-h", "127.0.0.1", "-p", str(world.mqtt_port)]
    command += ["-i", str(device_id), "-u", str(device_id), "-P", token, "-q", "1"]
    command += ["-t", f"v1/devices/{device_id}/telemetry", "-m", '{"values": {"temp": 7}}']
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert [value for _, _, value in await world.until_stored(device_id, 1)] == [7.0]


async def test_alarms_beyond_the_allowance_are_acknowledged_into_quarantine(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> None:
    limited = settings.model_copy(update={"reports_per_minute": 3})
    app = build(limited, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    async with running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world:
        device_id, token = await world.device()
        async with connect(world, device_id, token) as client:
            for n in range(10):
                alarm = json.dumps({"message": "oil low", "key": str(n)})
                await client.publish(f"v1/devices/{device_id}/alerts", alarm, qos=1)

        async def all_are_kept() -> bool:
            return len(await refused()) == 7

        async def refused() -> list[asyncpg.Record]:
            return await world.query(
                "SELECT reason, channel FROM ingest.quarantine WHERE device_id = $1", device_id
            )

        await until(all_are_kept, "seven alarms in quarantine")
        assert {tuple(row) for row in await refused()} == {("too_many_reports", "alerts")}
        [said] = await world.query(
            "SELECT count(*) AS alarms FROM bus.log"
            " WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
            tenant_id,
        )
        assert said["alarms"] == 3
