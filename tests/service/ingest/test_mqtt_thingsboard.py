"""Devices made for ThingsBoard, driven as its documents show, with nothing changed but the address."""

import asyncio
import json
from datetime import UTC, datetime
from queue import Queue
from threading import Event
from uuid import UUID

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from services.ingest.protocols.mqtt.packets import Properties, Will
from tests.service.ingest.conftest import World
from tests.service.ingest.test_hostile_devices import raw
from tests.unit.ingest.mqtt import device_packets_5 as packets_5
from tests.unit.ingest.mqtt.device_packets import puback
from tests.waiting import until

TELEMETRY = "v1/devices/me/telemetry"
ATTRIBUTES = "v1/devices/me/attributes"
REQUESTS = "v1/devices/me/rpc/request/+"


class ThingsBoardDevice:
    """What the samples in ThingsBoard's documents do: an access token as user name, and that is all."""

    def __init__(self, port: int, token: str, client_id: str = "") -> None:
        self.commands: Queue[mqtt.MQTTMessage] = Queue()
        self.codes: Queue[str] = Queue()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
        self.client.username_pw_set(token)
        self.client.on_connect = self._connected
        self.cut = Event()
        self.client.on_disconnect = lambda *said: self.cut.set()
        self.client.on_message = lambda client, data, message: self.commands.put(message)
        self._port = port

    def start(self) -> str:
        """Connect; return what the CONNACK said."""
        self.client.connect("127.0.0.1", self._port, 60)
        self.client.loop_start()
        return self.codes.get(timeout=15)

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def publish(self, topic: str, message: object) -> None:
        """Publish and wait for the PUBACK."""
        self.client.publish(topic, json.dumps(message), qos=1).wait_for_publish(15)

    def _connected(self, client: mqtt.Client, *said: object) -> None:
        client.subscribe(REQUESTS)
        self.codes.put(str(said[2]))


async def come(world: World, token: str, client_id: str = "") -> ThingsBoardDevice:
    device = ThingsBoardDevice(world.mqtt_port, token, client_id)
    assert await asyncio.to_thread(device.start) == "Success"
    return device


async def texts(world: World, device_id: UUID) -> dict[str, str]:
    """Return the device's stored texts by their metrics."""
    rows = await world.query(
        "SELECT s.metric, p.value FROM historian.series s JOIN historian.texts p"
        " ON p.tenant = s.tenant AND p.series = s.id WHERE s.device_id = $1",
        device_id,
    )
    return {row["metric"]: row["value"] for row in rows}


@pytest.mark.parametrize("client_id", ["", "demo-device", "99999999-2222-4333-8444-555555555555"])
async def test_a_device_comes_in_by_its_token_alone(world: World, client_id: str) -> None:
    device_id, token = await world.device()
    device = await come(world, token, client_id)
    await asyncio.to_thread(device.publish, TELEMETRY, {"temperature": 42, "enabled": True})
    await asyncio.to_thread(device.stop)
    points = await world.until_stored(device_id, 2)
    assert sorted((metric, value) for metric, _, value in points) == [
        ("enabled", 1.0),
        ("temperature", 42.0),
    ]


async def test_telemetry_in_all_of_its_forms(world: World) -> None:
    device_id, token = await world.device()
    ts = int(datetime.now(UTC).timestamp() * 1000)
    device = await come(world, token)
    for message in (
        {"stringKey": "value1", "doubleKey": 42.0, "longKey": 73},
        [{"key1": 1}, {"key2": True}],
        {"ts": ts, "values": {"key3": 3, "jsonKey": {"someNumber": 42, "someArray": [1, 2]}}},
        [{"ts": ts + 1, "values": {"key3": 4}}, {"ts": ts + 2, "values": {"key3": 5}}],
    ):
        await asyncio.to_thread(device.publish, TELEMETRY, message)
    await asyncio.to_thread(device.stop)
    stored = await world.until_stored(device_id, 7)
    assert [(m, round(at * 1000), v) for m, at, v in stored if m == "key3"] == [
        ("key3", ts, 3.0),
        ("key3", ts + 1, 4.0),
        ("key3", ts + 2, 5.0),
    ]
    assert await texts(world, device_id) == {
        "stringKey": "value1",
        "jsonKey": '{"someNumber":42,"someArray":[1,2]}',
    }


async def test_a_command_is_an_rpc_and_its_answer_the_result(world: World) -> None:
    device_id, token = await world.device()
    device = await come(world, token)
    commands = f"/api/v1/devices/{device_id}/commands"
    asked = await world.http.post(
        commands,
        json={"name": "setGpioStatus", "params": {"pin": 7, "enabled": True}},
        headers=world.headers,
    )
    assert asked.status_code == 201, asked.text
    request = await asyncio.to_thread(device.commands.get, True, 15)
    assert json.loads(request.payload) == {
        "method": "setGpioStatus",
        "params": {"pin": 7, "enabled": True},
    }
    number = request.topic.removeprefix("v1/devices/me/rpc/request/")
    assert 0 <= int(number) < 2**31
    await asyncio.to_thread(
        device.publish, f"v1/devices/me/rpc/response/{number}", {"7": True, "5": False}
    )
    said: dict[str, object] = {}

    async def is_done() -> bool:
        url = f"{commands}/{asked.json()['id']}"
        said.update((await world.http.get(url, headers=world.headers)).json())
        return said["status"] == "succeeded"

    await until(is_done, "the answer has come")
    assert said["result"] == {"7": True, "5": False}
    await asyncio.to_thread(device.stop)


async def test_an_answer_to_no_question_is_kept_with_its_reason(world: World) -> None:
    device_id, token = await world.device()
    device = await come(world, token)
    await asyncio.to_thread(device.publish, "v1/devices/me/rpc/response/17", {"done": True})

    async def kept() -> bool:
        listed = await world.http.get(
            f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=world.headers
        )
        return [entry["channel"] for entry in listed.json()["items"]] == ["replies"]

    await until(kept, "the answer in quarantine")
    await asyncio.to_thread(device.stop)


async def test_a_wrong_token_is_refused(world: World) -> None:
    _, token = await world.device()
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    device = ThingsBoardDevice(world.mqtt_port, wrong)
    assert await asyncio.to_thread(device.start) == "Bad user name or password"
    await asyncio.to_thread(device.stop)


async def test_a_rename_of_the_topics_is_not_half_a_move(world: World) -> None:
    """Who comes as ThingsBoard's has ThingsBoard's topics alone; another device's are nobody's."""
    device_id, token = await world.device()
    other_id, _ = await world.device()
    for topic in (f"v1/devices/{other_id}/telemetry", f"v1/devices/{device_id}/telemetry"):
        device = await come(world, token)
        sent = device.client.publish(topic, '{"temp": 1}', qos=1)
        assert await asyncio.to_thread(device.cut.wait, 15), "another's topic ends the connection"
        assert not sent.is_published()
        await asyncio.to_thread(device.stop)
    assert await world.stored(other_id) == []


async def test_what_comes_with_properties_of_mqtt_5_is_read_alike(world: World) -> None:
    device_id, token = await world.device()
    name = TELEMETRY.encode()
    will = Will(name, b'{"last": {"words": "bye"}}', properties=Properties(payload_format=1))
    async with raw(world) as device:
        await device.send(packets_5.connect("", token, None, will=will))
        _, size = await device.receive(2)
        assert (await device.receive(size))[1] == 0
        payload = b'{"jsonKey": {"someNumber": 42}}'
        await device.send(
            packets_5.publish(payload=payload, packet_id=1, name=name, message_expiry=60)
        )
        assert await device.receive(4) == puback(1)

    async def are_stored() -> bool:
        return await texts(world, device_id) == {
            "jsonKey": '{"someNumber":42}',
            "last": '{"words":"bye"}',
        }

    await until(are_stored, "the message and the will are stored")
