"""The bridge to a site's own broker: a real Mosquitto, acknowledged when a message is safe here."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiomqtt
import cbor2
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as MqttProperties

from deploy.local.mosquitto import Mosquitto
from libs.common.bus.local import LocalBus
from libs.common.errors import Unavailable
from libs.common.events.base import to_message
from libs.common.events.tenancy import TenantUpdated
from libs.common.historian.point import Quality
from services.ingest.domain.device import Source
from services.ingest.domain.formats import sniff
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.protocols import mqtt_bridge
from services.ingest.protocols.mqtt import reading
from services.ingest.protocols.mqtt_bridge import Bridge
from services.ingest.protocols.mqtt_client import MqttClient
from services.ingest.protocols.sparkplug_host import SparkplugHost
from services.ingest.usecases import connectors
from services.ingest.usecases.inlet import Inlet
from tests.database import PrincipalHeaders
from tests.servers import SharedServer
from tests.service.ingest.conftest import World
from tests.service.ingest.mqtt_bridge.conftest import (
    BridgeTo,
    change,
    connector_of,
    publish,
    publish_to,
    reasons,
    site,
    topics,
    until_quarantined,
    until_state,
    until_up,
)
from tests.waiting import until


async def test_what_a_plc_tells_its_own_broker_is_stored(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    ts = int(datetime.now(UTC).timestamp() * 1000)
    payloads = [json.dumps({"ts": ts + n, "values": {"temp": n}}) for n in range(50)]
    await publish(bridged, mosquitto_server, device_id, *payloads)
    points = await bridged.until_stored(device_id, 50)
    assert [value for _, _, value in points] == [float(n) for n in range(50)]


async def test_bad_messages_and_strangers_do_not_stop_the_bridge(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, uuid4(), '{"temp": 1}')
    await publish(bridged, mosquitto_server, device_id, b"\x00\xff", "", '{"temp": 2}')
    assert [value for _, _, value in await bridged.until_stored(device_id, 1)] == [2.0]

    await until_quarantined(bridged, device_id, "malformed", "malformed")


async def test_what_was_not_safe_when_the_bridge_died_comes_again(
    bridged: World, mosquitto_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 0}')
    await bridged.until_stored(device_id, 1)
    intake = bridged.app.state.intake
    taken: list[float] = []
    add = intake.add

    def take_and_lose(source: object, decoded: object, done: object) -> list[object]:
        taken.append(decoded.points[0].value)  # type: ignore[attr-defined]  # a Decoded
        return []

    monkeypatch.setattr(intake, "add", take_and_lose)
    ts = int(datetime.now(UTC).timestamp() * 1000)
    payloads = [json.dumps({"ts": ts + n, "values": {"temp": n}}) for n in range(1, 6)]
    await publish(bridged, mosquitto_server, device_id, *payloads)
    await until(lambda: len(taken) == 5, "five messages taken and not acknowledged")
    await change(bridged, is_enabled=False)
    await until_state(bridged, "disabled")
    monkeypatch.setattr(intake, "add", add)
    await change(bridged, is_enabled=True)
    points = await bridged.until_stored(device_id, 6)
    assert sorted(value for _, _, value in points) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


async def test_the_bridge_comes_back_when_its_broker_does(
    bridge_to: BridgeTo, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors, "FIRST_PAUSE_S", 0.02)
    async with bridge_to(broker.url) as world:
        await until_up(world)
        device_id, _ = await world.device()
        for number in range(1, 4):
            await asyncio.to_thread(broker.stop)
            await until_state(world, "connecting", "failed")
            await asyncio.to_thread(broker.start)
            # It may come from the broker's memory: the bridge's session is a persistent one.
            await publish(world, broker, device_id, json.dumps({"temp": number}))
            points = await world.until_stored(device_id, number)
            assert [value for _, _, value in points] == [float(n + 1) for n in range(number)]


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_what_came_while_the_bridge_was_away_is_kept_by_the_broker(
    bridge_to: BridgeTo, mosquitto_server: SharedServer, version: str
) -> None:
    async with bridge_to(mosquitto_server.url, version=version) as world:
        await until_up(world)
        device_id, _ = await world.device()
        await change(world, is_enabled=False)
        await until_state(world, "disabled")
        await publish(world, mosquitto_server, device_id, '{"temp": 1}')
        await change(world, is_enabled=True)
        assert [value for _, _, value in await world.until_stored(device_id, 1)] == [1.0]


async def test_by_mqtt_5_a_message_s_properties_are_heard(
    bridge_to: BridgeTo, mosquitto_server: SharedServer
) -> None:
    async def say(device_id: UUID, payload: bytes, channel: str = "telemetry", **told: Any) -> None:
        about: Any = MqttProperties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in told.items():
            setattr(about, name, value)
        parts = urlsplit(mosquitto_server.url)
        async with aiomqtt.Client(
            parts.hostname or "", parts.port or 1883, protocol=aiomqtt.ProtocolVersion.V5
        ) as plc:
            topic = f"plant/{world.tenant_id}/{device_id}/{channel}"
            await plc.publish(topic, payload, qos=1, properties=about)

    async with bridge_to(mosquitto_server.url, version="5") as world:
        await until_up(world)
        root = f"plant/{world.tenant_id}"
        await topics(
            world,
            {"topic": f"{root}/{{device}}/telemetry"},
            {"topic": f"{root}/{{device}}/of/{{metric}}"},
        )
        device_id, _ = await world.device()
        in_bar = ("unit", "bar")
        await say(device_id, b'{"inlet": 1}', UserProperty=[in_bar, ("quality", "uncertain")])
        await say(device_id, b"2", "of/outlet", UserProperty=[in_bar])
        await say(device_id, cbor2.dumps({"flow": 3}), ContentType="application/cbor")
        await say(device_id, b'{"inlet": 4}', UserProperty=[("quality", "fine")])
        await say(device_id, b"<inlet/>", ContentType="text/xml")
        await until_quarantined(world, device_id, "unsupported-media-type", "invalid")
        await world.until_stored(device_id, 3)
        found = await world.query(
            "SELECT s.metric, p.value, p.quality, s.unit FROM historian.series s"
            " JOIN historian.points p ON p.tenant = s.tenant AND p.series = s.id"
            " WHERE s.device_id = $1 ORDER BY p.value",
            device_id,
        )
        assert [tuple(row) for row in found] == [
            ("inlet", 1.0, Quality.UNCERTAIN, "bar"),
            ("outlet", 2.0, Quality.GOOD, "bar"),
            ("flow", 3.0, Quality.GOOD, None),
        ]


async def test_a_message_that_is_too_large_is_refused_and_not_kept_in_full(
    bridge_to: BridgeTo, mosquitto_server: SharedServer
) -> None:
    async with bridge_to(
        mosquitto_server.url, mqtt_packet_bytes=2_000, quarantine_entry_bytes=500
    ) as world:
        await until_up(world)
        device_id, _ = await world.device()
        fits = json.dumps({"temp": 1, "note": "x" * 1_900})
        large = json.dumps({"temp": 2, "note": "x" * 2_000})
        await publish(world, mosquitto_server, device_id, fits, large, '{"temp": 3}')
        points = await world.until_stored(device_id, 2)
        assert [value for _, _, value in points] == [1.0, 3.0]
        await until_quarantined(world, device_id, "too-large")
        [entry] = await world.query(
            "SELECT octet_length(payload) AS kept, cut_from FROM ingest.quarantine"
            " WHERE device_id = $1",
            device_id,
        )
        assert (entry["kept"], entry["cut_from"]) == (500, len(large))


async def test_a_stranger_s_message_is_counted_and_acknowledged(
    bridged: World, mosquitto_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = uuid4()
    device_id, _ = await bridged.device()
    heard: list[str] = []
    take = Bridge._take

    async def note(
        bridge: Bridge, client: MqttClient, host: SparkplugHost, message: aiomqtt.Message
    ) -> None:
        heard.append(str(message.topic))
        await take(bridge, client, host, message)

    monkeypatch.setattr(Bridge, "_take", note)
    await publish(bridged, mosquitto_server, stranger, '{"temp": 1}')
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    await bridged.until_stored(device_id, 1)
    degraded = await until_state(bridged, "degraded")
    assert "1 messages were let go: of unknown devices" in degraded["reason"]
    assert f"plant/{bridged.tenant_id}/{stranger}/telemetry" in degraded["reason"]
    # Were it not acknowledged, the broker would send it again before all that is new.
    await change(bridged, is_enabled=False)
    await change(bridged, is_enabled=True)
    await publish(bridged, mosquitto_server, device_id, '{"temp": 2}')
    await bridged.until_stored(device_id, 2)
    assert sum(str(stranger) in topic for topic in heard) == 1


async def test_a_suspended_tenant_s_bridge_is_down_and_comes_back(
    bridged: World, bus: LocalBus, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    await bridged.until_stored(device_id, 1)

    async def say(status: str) -> None:
        event = TenantUpdated(
            tenant_id=bridged.tenant_id,
            at=datetime.now(UTC),
            slug="plant",
            name="the plant",
            status=status,
        )
        await bus.publish([to_message(event)])

    await say("suspended")
    await until_state(bridged, "waiting")
    await publish(bridged, mosquitto_server, device_id, '{"temp": 2}')
    await say("active")
    # The broker kept it: nobody took it while the tenant was suspended.
    points = await bridged.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]


async def test_a_removed_device_is_a_stranger_at_once(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    await bridged.until_stored(device_id, 1)
    path = f"/api/v1/devices/{device_id}"
    assert (await bridged.http.delete(path, headers=bridged.headers)).status_code == 204
    sources = bridged.app.state.sources
    await until(lambda: device_id not in sources._by_device, "the device is forgotten")
    await publish(bridged, mosquitto_server, device_id, '{"temp": 2}')
    await until_state(bridged, "degraded")
    assert [value for _, _, value in await bridged.stored(device_id)] == [1.0]


async def test_a_full_intake_holds_the_broker_back_and_no_more_is_read_than_it_leaves_unacknowledged(
    bridge_to: BridgeTo, broker: Mosquitto, bridges: list[Bridge]
) -> None:
    """Mosquitto waits when 20 messages are not acknowledged (`max_inflight_messages`)."""
    async with bridge_to(broker.url) as world:
        await until_up(world)
        device_id, _ = await world.device()
        await publish(world, broker, device_id, '{"ts": 1, "values": {}}', '{"temp": 0}')
        await world.until_stored(device_id, 1)
        intake = world.app.state.intake
        intake.is_full = True
        ts = int(datetime.now(UTC).timestamp() * 1000)
        payloads = [json.dumps({"ts": ts + n, "values": {"temp": n}}) for n in range(1, 101)]
        await publish(world, broker, device_id, *payloads)
        read = 0

        async def is_held() -> bool:
            nonlocal read
            before, read = read, bridges[-1].waiting
            return read == before > 0

        await until(is_held, "messages read, and no more coming")
        # One is in hand, the others wait in the queue.
        assert read < 20
        assert len(await world.stored(device_id)) == 1
        intake.is_full = False
        for call in intake.on_room:
            call()
        points = await world.until_stored(device_id, 101)
        assert [value for _, _, value in points] == [float(n) for n in range(101)]


async def test_a_message_the_platform_fails_at_is_kept_and_those_behind_it_are_taken(
    bridged: World, mosquitto_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await bridged.device()

    def fail(payload: bytes) -> PayloadFormat:
        if payload == b"poison":
            raise RuntimeError("a fault")
        return sniff(payload)

    monkeypatch.setattr(reading, "sniff", fail)
    await publish(bridged, mosquitto_server, device_id, "poison", '{"temp": 1}')
    await bridged.until_stored(device_id, 1)
    await until_quarantined(bridged, device_id, "internal")


@pytest.mark.parametrize(
    "error", [Unavailable("the database is away"), RuntimeError("a fault"), OSError("no route")]
)
async def test_what_cannot_be_looked_up_now_comes_again(
    bridged: World,
    mosquitto_server: SharedServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Whatever fails, the bridge does not end."""
    monkeypatch.setattr(connectors, "FIRST_PAUSE_S", 0.01)
    device_id, _ = await bridged.device()
    sources = bridged.app.state.sources
    of_tenant, failures = sources.of_tenant, 0

    async def fail_twice(*arguments: object) -> object:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise error
        return await of_tenant(*arguments)

    monkeypatch.setattr(sources, "of_tenant", fail_twice)
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    assert [value for _, _, value in await bridged.until_stored(device_id, 1)] == [1.0]
    assert failures == 2
    assert await reasons(bridged, device_id) == []


async def test_a_site_s_own_tree_is_read_by_its_template(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    press, _ = await bridged.device("line 1/press")
    pump, _ = await bridged.device("the big pump")
    root = f"site/{bridged.tenant_id}"
    await topics(
        bridged,
        {
            "topic": f"{root}/line-{{line}}/{{machine}}/{{metric}}",
            "device": "line {line}/{machine}",
        },
        {"topic": f"{root}/pumps/{{device}}/{{channel}}"},
        devices={"P-101": "the big pump"},
    )
    ts = int(datetime.now(UTC).timestamp() * 1000)
    await publish_to(mosquitto_server, f"{root}/line-1/press/temp", "21.5", "true", "off")
    await publish_to(
        mosquitto_server, f"{root}/line-1/press/load", json.dumps({"value": 7, "ts": ts})
    )
    await publish_to(mosquitto_server, f"{root}/pumps/P-101/telemetry", '{"flow": 3}')
    stored = await bridged.until_stored(press, 2)
    assert ("load", ts / 1000, 7.0) in stored
    assert [value for metric, _, value in stored if metric == "temp"] == [21.5]
    # A metric keeps its kind: a bool and a word are no numbers.
    await until_quarantined(bridged, press, "type_changed", "type_changed")
    [(metric, _, value)] = await bridged.until_stored(pump, 1)
    assert (metric, value) == ("flow", 3.0)


async def test_a_machine_s_alarm_and_status_come_through_the_bridge(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device("press")
    root = f"site/{bridged.tenant_id}"
    await topics(bridged, {"topic": f"{root}/{{device}}/{{channel}}"})
    await publish_to(
        mosquitto_server, f"{root}/press/status", '{"status": "online", "reason": "says so"}'
    )

    async def is_online() -> bool:
        path = f"/api/v1/devices/{device_id}"
        device = (await bridged.http.get(path, headers=bridged.headers)).json()
        return (device["status"], device["status_reason"]) == ("online", "says so")

    await until(is_online, "the device is online")
    alarm = '{"severity": "high", "message": "oil low", "key": "oil"}'
    await publish_to(mosquitto_server, f"{root}/press/alerts", alarm)
    said: list[Any] = []

    async def is_said() -> bool:
        rows = await bridged.query(
            "SELECT convert_from(body, 'utf-8') AS body FROM bus.log"
            " WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
            bridged.tenant_id,
        )
        said[:] = [json.loads(row["body"]) for row in rows]
        return bool(said)

    await until(is_said, "the alarm is said")
    told = [(each["device_id"], each["severity"], each["message"]) for each in said]
    assert told == [(str(device_id), "high", "oil low")]
    await publish_to(mosquitto_server, f"{root}/press/gossip", "1")
    degraded = await until_state(bridged, "degraded")
    assert "fit no template" in degraded["reason"]


async def test_a_device_that_is_looked_up_twice_at_once_has_one_way_in(
    bridge_to: BridgeTo,
    broker: Mosquitto,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what it says, and as one that is named in the settings and can be sent commands."""
    asked, made = asyncio.Event(), []
    source_of = Bridge._source_of

    async def wait_for_the_other(bridge: Bridge, name: str) -> Source | None:
        looking.append(name)
        if len(looking) == 2:
            asked.set()
        await asked.wait()
        return await source_of(bridge, name)

    class Noted(Inlet):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(self)

    looking: list[str] = []
    monkeypatch.setattr(Bridge, "_source_of", wait_for_the_other)
    monkeypatch.setattr(mqtt_bridge, "Inlet", Noted)
    to = {"topic": "{device}/telemetry", "commands": {"topic": "{device}/commands"}}
    async with bridge_to(broker.url, topics=[to], devices={"P-101": "the big pump"}) as world:
        device_id, _ = await world.device("the big pump")
        await until_up(world)
        await until(lambda: looking == ["the big pump"], "it is looked up for its commands")
        await publish_to(broker, "P-101/telemetry", '{"temp": 1}', '{"temp": 2}')
        points = await world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]
    assert len(made) == 1


async def test_devices_are_registered_as_they_are_heard_of_up_to_a_number(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    root = f"site/{bridged.tenant_id}"
    await topics(
        bridged,
        {"topic": f"{root}/{{device}}/{{metric}}"},
        auto_register={"type": "press", "most": 2},
    )
    for name in ("press 1", "press 2", "press 3"):
        await publish_to(mosquitto_server, f"{root}/{name}/temp", "1")
    await until_state(bridged, "degraded")
    answer = await bridged.http.get("/api/v1/devices", headers=bridged.headers)
    found = {device["name"]: device for device in answer.json()["items"]}
    assert set(found) == {"press 1", "press 2"}
    assert found["press 1"]["type"] == "press"
    for device in found.values():
        await bridged.until_stored(UUID(device["id"]), 1)


async def test_several_connections_at_once(
    bridged: World, broker: Mosquitto, mosquitto_server: SharedServer
) -> None:
    answer = await bridged.http.post(
        "/api/v1/connectors",
        json={
            "name": "the other site",
            "kind": "mqtt",
            "settings": {"url": broker.url, "topics": [{"topic": "{device}/telemetry"}]},
        },
        headers=bridged.headers,
    )
    assert answer.status_code == 201, answer.text
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')

    async def is_heard() -> bool:
        # The broker keeps nothing for who was never there.
        await publish_to(broker, f"{device_id}/telemetry", '{"load": 1}')
        return {metric for metric, _, _ in await bridged.stored(device_id)} == {"temp", "load"}

    await until(is_heard, "points by both ways")


@pytest.mark.parametrize(
    ("told", "pointer"),
    [
        ({"url": "http://broker"}, "/settings/url"),
        ({"url": "mqtt://user:secret@broker"}, "/settings/url"),
        ({"topics": []}, "/settings"),
        ({"sparkplug": ["plant/#"]}, "/settings"),
        ({"topics": [{"topic": "a/{b"}]}, "/settings/topics/0/topic"),
        ({"topics": [{"topic": "a/#/b"}]}, "/settings/topics/0/topic"),
        ({"topics": [{"topic": "a/{line}"}]}, "/settings/topics/0"),
        (
            {"topics": [{"topic": "a/{device}", "commands": {"topic": "a/{line}"}}]},
            "/settings/topics/0",
        ),
        (
            {"topics": [{"topic": "a/{device}", "commands": {"topic": "a/#"}}]},
            "/settings/topics/0/commands/topic",
        ),
        ({"topics": [{"topic": "a/{device}", "qos": 2}]}, "/settings/topics/0/qos"),
        ({"ca": "no certificate"}, "/settings/ca"),
        ({"ca": "kein Schlüssel"}, "/settings/ca"),
    ],
)
async def test_settings_that_make_no_sense_are_named(
    world: World, told: dict[str, object], pointer: str
) -> None:
    sound = {"url": "mqtt://127.0.0.1", "topics": [{"topic": "{device}"}]}
    answer = await world.http.post(
        "/api/v1/connectors",
        json={"name": "x", "kind": "mqtt", "settings": {**sound, **told}},
        headers=world.headers,
    )
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert "secret@" not in answer.text


async def test_a_device_removed_while_its_message_waits_does_not_silence_the_bridge(
    bridged: World, mosquitto_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker sends no more than it has acknowledgements to come; so nothing else would wake it."""
    device_id, _ = await bridged.device()
    sources = bridged.app.state.sources
    register, asked, may_go_on = sources.register, asyncio.Event(), asyncio.Event()

    async def wait(*arguments: Any) -> None:
        asked.set()
        await may_go_on.wait()
        await register(*arguments)

    monkeypatch.setattr(sources, "register", wait)
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    async with asyncio.timeout(15):
        await asked.wait()
    path = f"/api/v1/devices/{device_id}"
    assert (await bridged.http.delete(path, headers=bridged.headers)).status_code == 204
    await until(lambda: sources.known(device_id) is None, "the device is revoked")
    may_go_on.set()
    degraded = await until_state(bridged, "degraded")
    assert "of unknown devices" in degraded["reason"]


async def test_what_is_wanted_no_longer_does_not_come_any_more(
    bridges: list[Bridge], bridged: World, mosquitto_server: SharedServer
) -> None:
    """The broker remembers subscriptions for a session that lasts."""
    device_id, _ = await bridged.device()
    root = f"site/{bridged.tenant_id}"
    await topics(bridged, {"topic": f"{root}/{{device}}/telemetry"})
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    await publish_to(mosquitto_server, f"{root}/{device_id}/telemetry", '{"temp": 2}')
    assert [value for _, _, value in await bridged.until_stored(device_id, 1)] == [2.0]
    assert bridges[-1]._let_go == 0


async def test_another_tenant_s_device_is_nobody_by_whatever_name(
    bridged: World, mosquitto_server: SharedServer, principal_headers: PrincipalHeaders
) -> None:
    foreign = uuid4()
    answer = await bridged.http.post(
        "/api/v1/devices",
        json={"name": "theirs", "type": "pump"},
        headers=principal_headers(foreign),
    )
    device_id = UUID(answer.json()["id"])
    # This process knows it, as one that is connected.
    known = await bridged.app.state.sources.of_tenant(foreign, device_id)
    root = f"site/{bridged.tenant_id}"
    await topics(
        bridged,
        {"topic": f"{root}/{{device}}/telemetry"},
        devices={"by id": str(device_id), "by name": "theirs"},
    )
    for name in (device_id, "theirs", "by id", "by name"):
        await publish_to(mosquitto_server, f"{root}/{name}/telemetry", '{"temp": 1}')

    async def are_let_go() -> bool:
        return str((await connector_of(bridged))["reason"]).startswith("4 messages were let go")

    await until(are_let_go, "all four are let go")
    assert known.series == {}
    assert await bridged.stored(device_id) == []


async def order(world: World, device_id: UUID, name: str, **asked: object) -> str:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands", json={"name": name, **asked}, headers=world.headers
    )
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


async def outcome(world: World, device_id: UUID, command_id: str) -> dict[str, Any]:
    said: dict[str, Any] = {}

    async def is_done() -> bool:
        url = f"/api/v1/devices/{device_id}/commands/{command_id}"
        said.update((await world.http.get(url, headers=world.headers)).json())
        return said["status"] in ("succeeded", "failed", "expired")

    await until(is_done, "the command is done")
    return said


async def test_commands_go_down_the_bridge_and_their_answers_come_up(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    pump_id, _ = await bridged.device("the big pump")
    lamp_id, _ = await bridged.device("lamp")
    root = f"site/{bridged.tenant_id}"
    async with site(mosquitto_server) as plc:
        await plc.subscribe(f"{root}/#", qos=1)

        async def hears(kind: str) -> tuple[str, Any]:
            async with asyncio.timeout(20):
                async for message in plc.messages:
                    if str(message.topic).startswith(f"{root}/{kind}/"):
                        assert isinstance(message.payload, bytes)
                        return str(message.topic).removeprefix(f"{root}/"), json.loads(
                            message.payload
                        )
            raise AssertionError

        await topics(
            bridged,
            # The filter is wide enough for its own commands to come back.
            {
                "topic": f"{root}/pumps/{{device}}/{{channel}}",
                "commands": {"topic": f"{root}/pumps/{{device}}/commands"},
            },
            {
                "topic": f"{root}/lamps/{{device}}",
                "commands": {"topic": f"{root}/lamps/{{device}}/{{name}}", "payload": "params"},
            },
            devices={"P-101": "the big pump"},
        )
        # A device that is named in the settings may be told something before it says anything.
        asked = await order(bridged, pump_id, "set_speed", params={"rpm": 900})
        topic, command = await hears("pumps")
        assert topic == "pumps/P-101/commands"
        assert (command["id"], command["name"], command["params"]) == (
            asked,
            "set_speed",
            {"rpm": 900},
        )
        reply = json.dumps({"id": asked, "status": "succeeded", "result": {"rpm": 899}})
        await plc.publish(f"{root}/pumps/P-101/replies", reply, qos=1)
        assert (await outcome(bridged, pump_id, asked))["result"] == {"rpm": 899}

        await plc.publish(f"{root}/lamps/lamp", '{"lux": 1}', qos=1)
        assert await hears("lamps") == ("lamps/lamp", {"lux": 1})
        await bridged.until_stored(lamp_id, 1)
        switched = await order(bridged, lamp_id, "set", params={"state": "ON"}, two_way=False)
        assert await hears("lamps") == ("lamps/lamp/set", {"state": "ON"})
        assert (await outcome(bridged, lamp_id, switched))["status"] == "succeeded"
        for name in ("set/../../other", "#", "a+b"):
            refused = await order(bridged, lamp_id, name, two_way=False)
            assert "part of a topic" in (await outcome(bridged, lamp_id, refused))["error"]
    assert (await connector_of(bridged))["state"] == "connected"
