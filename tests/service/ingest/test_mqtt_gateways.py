"""Devices that speak for others: Sparkplug B edge nodes and ThingsBoard gateways, connected here."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import aiomqtt
import pytest

from libs.common.errors import Invalid, Unavailable
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.domain.sparkplug_payload import Payload
from services.ingest.protocols.mqtt.asides import Asides
from services.ingest.protocols.mqtt.way_down import WayDown
from services.ingest.usecases.gateways import Behind
from tests.database import PrincipalHeaders
from tests.reading_times import next_ms
from tests.service.ingest.conftest import World
from tests.waiting import until

INT32, DOUBLE, BOOLEAN = 3, 10, 11
TEMP, SPEED = 7, 8
"""Aliases."""


def metrics(seq: int | None, *named: dict[str, Any]) -> bytes:
    payload = Payload(timestamp=next_ms())
    if seq is not None:
        payload.seq = seq
    for metric in named:
        payload.metrics.add(**metric)
    written: bytes = payload.SerializeToString()
    return written


def bd_seq(number: int) -> dict[str, Any]:
    return {"name": "bdSeq", "datatype": 4, "long_value": number}


def node_birth(number: int = 0) -> bytes:
    rebirth = {"name": "Node Control/Rebirth", "datatype": BOOLEAN, "boolean_value": False}
    return metrics(0, bd_seq(number), rebirth)


def device_birth(seq: int, value: float = 20.0) -> bytes:
    return metrics(
        seq,
        {"name": "temp", "alias": TEMP, "datatype": DOUBLE, "double_value": value},
        {"name": "speed", "alias": SPEED, "datatype": INT32, "int_value": 0},
    )


def temp(seq: int, value: float) -> bytes:
    return metrics(seq, {"alias": TEMP, "timestamp": next_ms(), "double_value": value})


class EdgeNode:
    """An edge node as Eclipse Paho sends it; `plant/edge` with whatever is behind it."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client

    async def says(self, kind: str, payload: bytes, *device: str, node: str = "edge") -> None:
        await self.client.publish("/".join(("spBv1.0/plant", kind, node, *device)), payload, qos=1)

    async def hears(self) -> aiomqtt.Message:
        async with asyncio.timeout(20):
            return await anext(aiter(self.client.messages))

    async def is_cut(self) -> None:
        with pytest.raises(aiomqtt.MqttError):
            await self.hears()

    async def is_told(self) -> tuple[str, Any]:
        """Return the topic and the one metric of the next command."""
        message = await self.hears()
        command = Payload()
        command.ParseFromString(message.payload)
        return str(message.topic), command.metrics[0]


@asynccontextmanager
async def edge_node(world: World, token: str, dies_with: int = 0) -> AsyncIterator[EdgeNode]:
    """Connect with a client id of its own, as edge nodes do, and its death as its will."""
    client = aiomqtt.Client(
        "127.0.0.1",
        world.mqtt_port,
        identifier=f"edge-{uuid4()}",
        username=token,
        password="",
        will=aiomqtt.Will("spBv1.0/plant/NDEATH/edge", metrics(None, bd_seq(dies_with)), qos=1),
    )
    await client.__aenter__()
    try:
        yield EdgeNode(client)
    finally:
        with suppress(aiomqtt.MqttError):  # it may have been cut off
            await client.__aexit__(None, None, None)


async def gateway(world: World, **right: object) -> tuple[UUID, str]:
    """Register a device that may speak for others."""
    device_id, token = await world.device(f"gateway {uuid4()}")
    answer = await world.http.put(
        f"/api/v1/devices/{device_id}/gateway", json=right, headers=world.headers
    )
    assert answer.status_code == 200, answer.text
    return device_id, token


async def behind(world: World, gateway_id: UUID) -> dict[str, str]:
    path = f"/api/v1/devices/{gateway_id}/gateway/devices"
    found: dict[str, str] = (await world.http.get(path, headers=world.headers)).json()
    return found


async def put_behind(world: World, gateway_id: UUID, **devices: UUID | None) -> int:
    answer = await world.http.patch(
        f"/api/v1/devices/{gateway_id}/gateway/devices",
        json={name: device and str(device) for name, device in devices.items()},
        headers=world.headers,
    )
    return answer.status_code


async def until_behind(world: World, gateway_id: UUID, *names: str) -> list[UUID]:
    async def are_there() -> bool:
        return set(names) <= (await behind(world, gateway_id)).keys()

    await until(are_there, f"{names} are behind the gateway")
    found = await behind(world, gateway_id)
    return [UUID(found[name]) for name in names]


async def until_stands(world: World, device_id: UUID, status: str, reason: str) -> None:
    async def does() -> bool:
        path = f"/api/v1/devices/{device_id}"
        device = (await world.http.get(path, headers=world.headers)).json()
        return (device["status"], device["status_reason"]) == (status, reason)

    await until(does, f"the device is {status}: {reason}")


async def until_missing(world: World, device_id: UUID, count: int) -> None:
    async def is_counted() -> bool:
        url = f"/api/v1/devices/{device_id}/ledger"
        ledger = (await world.http.get(url, headers=world.headers)).json()
        missing: int = ledger["totals"]["missing"]
        return missing == count

    await until(is_counted, f"the {count} messages that are missing are in the ledger")


async def until_refused(world: World, device_id: UUID, *reasons: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        url = f"/api/v1/telemetry/quarantine?device_id={device_id}"
        found[:] = (await world.http.get(url, headers=world.headers)).json()["items"]
        return [entry["reason"] for entry in found] == list(reasons)

    await until(are_there, f"{reasons} in quarantine")
    return found


async def order(world: World, device_id: UUID, name: str, **params: object) -> str:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": name, "params": params},
        headers=world.headers,
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


async def test_an_edge_node_lives_speaks_for_its_devices_and_dies(world: World) -> None:
    gateway_id, token = await gateway(world, registers="press", most=5)
    async with edge_node(world, token) as edge:
        await edge.client.subscribe([("spBv1.0/plant/NCMD/edge/#", 1), ("spBv1.0/STATE/scada", 1)])
        state = await edge.hears()
        assert str(state.topic) == "spBv1.0/STATE/scada"
        assert json.loads(state.payload)["online"] is True
        await edge.says("NBIRTH", node_birth())
        await edge.says("DBIRTH", device_birth(1), "press")
        await edge.says("DDATA", temp(2, 21.0), "press")
        [press] = await until_behind(world, gateway_id, "press")
        points = await world.until_stored(press, 3)
        assert [value for metric, _, value in points if metric == "temp"] == [20.0, 21.0]
        await until_stands(world, press, "online", "sparkplug birth")

        await edge.says("DDATA", temp(5, 22.0), "press")
        topic, asked = await edge.is_told()
        assert (topic, asked.name, asked.boolean_value) == (
            "spBv1.0/plant/NCMD/edge",
            "Node Control/Rebirth",
            True,
        )
        await world.until_stored(press, 4)

        await until_missing(world, press, 2)
        # Its will, as a broker would say it when the network goes.
        edge.client._client._sock_close()
        await until_stands(world, press, "offline", "sparkplug death")
        await until_stands(world, gateway_id, "offline", "connection lost")


async def test_the_will_of_a_life_that_is_over_ends_no_other(world: World) -> None:
    gateway_id, token = await gateway(world, registers="press")
    async with edge_node(world, token, dies_with=3) as edge:
        await edge.says("NBIRTH", node_birth(4))
        await edge.says("DBIRTH", device_birth(1), "press")
        [press] = await until_behind(world, gateway_id, "press")
        await until_stands(world, press, "online", "sparkplug birth")
        edge.client._client._sock_close()
        # By the connection's end, not by the will, whose number is another life's.
        await until_stands(world, press, "offline", "connection lost")


async def test_a_command_is_written_and_done_when_the_node_reports_the_value(world: World) -> None:
    gateway_id, token = await gateway(world, registers="press")
    async with edge_node(world, token) as edge:
        await edge.client.subscribe(
            [("spBv1.0/plant/NCMD/edge", 1), ("spBv1.0/plant/DCMD/edge/+", 1)]
        )
        await edge.says("NBIRTH", node_birth())
        await edge.says("DBIRTH", device_birth(1), "press")
        [press] = await until_behind(world, gateway_id, "press")

        wrong = await order(world, press, "write", metric="speed", value=1.5)
        assert "no value of Sparkplug's type 3" in (await outcome(world, press, wrong))["error"]
        command = await order(world, press, "write", metric="speed", value=-900)
        topic, written = await edge.is_told()
        assert topic == "spBv1.0/plant/DCMD/edge/press"
        assert (written.name, written.datatype, written.int_value) == ("speed", INT32, 2**32 - 900)
        for seq, value in ((2, 0), (3, 2**32 - 900)):
            await edge.says("DDATA", metrics(seq, {"alias": SPEED, "int_value": value}), "press")
        done = await outcome(world, press, command)
        assert (done["status"], done["result"]) == ("succeeded", {"speed": -900})

        rebirth = await order(world, gateway_id, "rebirth")
        assert (await edge.is_told())[1].name == "Node Control/Rebirth"
        await edge.says("NBIRTH", node_birth())
        assert (await outcome(world, gateway_id, rebirth))["status"] == "succeeded"


async def test_all_that_is_written_to_one_metric_is_done_as_it_is_reported(world: World) -> None:
    gateway_id, token = await gateway(world, registers="press")
    async with edge_node(world, token) as edge:
        await edge.client.subscribe("spBv1.0/plant/DCMD/edge/+", 1)
        await edge.says("NBIRTH", node_birth())
        await edge.says("DBIRTH", device_birth(1), "press")
        [press] = await until_behind(world, gateway_id, "press")
        written = (900, 900, 0)
        commands = [
            await order(world, press, "write", metric="speed", value=value) for value in written
        ]
        for value in written:
            assert (await edge.is_told())[1].int_value == value
        # A node reports changes: of what is written twice in a row it tells once.
        for seq, value in ((2, 900), (3, 0)):
            await edge.says("DDATA", metrics(seq, {"alias": SPEED, "int_value": value}), "press")
        for command, value in zip(commands, written, strict=True):
            done = await outcome(world, press, command)
            assert (done["status"], done["result"]) == ("succeeded", {"speed": value})


async def test_a_write_that_cannot_be_sent_does_not_undo_that_of_an_earlier_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transmit = WayDown.transmit

    async def refuse_300(down: WayDown, command: Outgoing, *told: Any) -> Delivered:
        if command.params["value"] == 300:
            raise Invalid("not this one")
        return await transmit(down, command, *told)

    monkeypatch.setattr(WayDown, "transmit", refuse_300)
    gateway_id, token = await gateway(world, registers="press")
    async with edge_node(world, token) as edge:
        await edge.client.subscribe("spBv1.0/plant/DCMD/edge/+", 1)
        await edge.says("NBIRTH", node_birth())
        await edge.says("DBIRTH", device_birth(1), "press")
        [press] = await until_behind(world, gateway_id, "press")
        first = await order(world, press, "write", metric="speed", value=900)
        await edge.is_told()
        second = await order(world, press, "write", metric="speed", value=300)
        assert (await outcome(world, press, second))["error"] == "not this one"
        await edge.says("DDATA", metrics(2, {"alias": SPEED, "int_value": 900}), "press")
        assert (await outcome(world, press, first))["status"] == "succeeded"


async def test_a_device_that_was_heard_by_its_data_dies_with_its_edge_node(world: World) -> None:
    gateway_id, token = await gateway(world, registers="press")
    async with edge_node(world, token) as edge:
        await edge.says("NBIRTH", node_birth())
        await edge.says("DDATA", temp(1, 21.0), "press")
        [press] = await until_behind(world, gateway_id, "press")
        await until_stands(world, press, "online", "sparkplug data")
        await edge.says("NDEATH", metrics(None, bd_seq(0)))
        await until_stands(world, press, "offline", "sparkplug death")


async def test_an_edge_node_that_begins_anew_takes_its_devices_along_until_they_are_born(
    world: World,
) -> None:
    gateway_id, token = await gateway(world, registers="press")
    async with edge_node(world, token) as edge:
        await edge.says("NBIRTH", node_birth(1))
        await edge.says("DBIRTH", device_birth(1), "press")
        await edge.says("DBIRTH", device_birth(2), "pump")
        press, pump = await until_behind(world, gateway_id, "press", "pump")
        await until_stands(world, pump, "online", "sparkplug birth")
        await edge.says("NBIRTH", node_birth(2))
        await edge.says("DBIRTH", device_birth(1), "press")
        await until_stands(world, pump, "offline", "sparkplug death")
        await until_stands(world, press, "online", "sparkplug birth")


async def test_what_is_missing_is_in_the_ledger_also_if_the_device_is_looked_up_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway_id, token = await gateway(world, registers="press")
    find, failures = Behind.source, 0

    async def fail_once(behind: Behind, name: str, *asked: Any) -> Source:
        nonlocal failures
        if name == "press" and not failures:
            failures += 1
            raise Unavailable("the database is away")
        return await find(behind, name, *asked)

    monkeypatch.setattr(Behind, "source", fail_once)
    async with edge_node(world, token) as edge:
        await edge.says("NBIRTH", node_birth())
        await edge.says("DBIRTH", device_birth(4), "press")
        [press] = await until_behind(world, gateway_id, "press")
        await until_missing(world, press, 3)
    assert failures == 1


async def test_who_is_no_gateway_is_told_so_and_cut_off(world: World) -> None:
    device_id, token = await world.device()
    async with edge_node(world, token) as edge:
        await edge.client.publish("spBv1.0/plant/NBIRTH/edge", node_birth(), qos=0)
        await edge.is_cut()
    told = "the device is no gateway: it speaks for itself alone"
    await until_stands(world, device_id, "offline", told)
    assert await world.stored(device_id) == []


async def test_a_gateway_speaks_for_nobody_but_who_is_behind_it(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    """Neither for another tenant's device, nor another gateway's, nor one that was never put behind it."""
    foreign = uuid4()
    theirs = await world.http.post(
        "/api/v1/devices",
        json={"name": "plant/edge/theirs", "type": "press"},
        headers=principal_headers(foreign),
    )
    other_id, _ = await world.device("plant/edge/other")
    elsewhere_id, _ = await world.device("plant/edge/elsewhere")
    second, _ = await gateway(world)
    assert await put_behind(world, second, elsewhere=elsewhere_id) == 200
    own_id, _ = await world.device("the press")
    gateway_id, token = await gateway(world, registers="press", most=2)
    assert await put_behind(world, gateway_id, press=own_id) == 200
    async with edge_node(world, token) as edge:
        await edge.says("NBIRTH", node_birth())
        for seq, name in enumerate(("other", "elsewhere", "theirs", "press", "one too many"), 1):
            await edge.says("DBIRTH", device_birth(seq), name)
        await edge.says("NBIRTH", node_birth(), node="another")
        await world.until_stored(own_id, 2)
        refused = await until_refused(world, gateway_id, *4 * ["not_behind_this_gateway"])
    assert [entry["detail"] for entry in reversed(refused)] == [
        "a device 'plant/edge/other' is registered, and is not behind this gateway",
        "a device 'plant/edge/elsewhere' is registered, and is not behind this gateway",
        "2 devices are behind this gateway, and no more may be",
        "the connection is that of the edge node 'plant/edge'",
    ]
    # One of the same name as theirs is a new one of this tenant's.
    assert (await behind(world, gateway_id)).keys() == {"press", "theirs"}
    for device_id in (other_id, elsewhere_id, UUID(theirs.json()["id"])):
        assert await world.stored(device_id) == []


async def test_a_right_that_is_taken_away_ends_at_once(world: World) -> None:
    gateway_id, token = await gateway(world)
    press, _ = await world.device("press")
    assert await put_behind(world, gateway_id, press=press) == 200
    async with edge_node(world, token) as edge:
        await edge.says("NBIRTH", node_birth())
        await edge.says("DBIRTH", device_birth(1), "press")
        await until_stands(world, press, "online", "sparkplug birth")
        assert await put_behind(world, gateway_id, press=None) == 200
        await until_stands(world, press, "offline", "its gateway was changed")
        await edge.says("DBIRTH", device_birth(2), "press")
        await until_refused(world, gateway_id, "not_behind_this_gateway")
        path = f"/api/v1/devices/{gateway_id}/gateway"
        assert (await world.http.delete(path, headers=world.headers)).status_code == 204
        await edge.is_cut()


class LookUps:
    """Holds back what was found out of the device `press`, until the gateway's right was changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found, self.changed = asyncio.Event(), asyncio.Event()
        find, look_again = Behind.source, Asides.look_again

        async def hold(behind: Behind, name: str, *asked: Any) -> Source:
            source = await find(behind, name, *asked)
            if name == "press":
                self.found.set()
                await self.changed.wait()
            return source

        def note(asides: Asides) -> None:
            look_again(asides)
            self.changed.set()

        monkeypatch.setattr(Behind, "source", hold)
        monkeypatch.setattr(Asides, "look_again", note)


async def test_what_was_looked_up_before_a_right_was_taken_away_holds_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway_id, token = await gateway(world)
    press, _ = await world.device("press")
    assert await put_behind(world, gateway_id, press=press) == 200
    look_ups = LookUps(monkeypatch)
    async with thingsboard(world, token) as client:
        await client.publish("v1/gateway/connect", '{"device": "press"}', qos=0)
        async with asyncio.timeout(20):
            await look_ups.found.wait()
        assert await put_behind(world, gateway_id, press=None) == 200
        await until_refused(world, gateway_id, "not_behind_this_gateway")
    path = f"/api/v1/devices/{press}"
    assert (await world.http.get(path, headers=world.headers)).json()["status"] == "unknown"


async def test_who_was_just_connecting_when_its_gateway_was_changed_is_connected_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway_id, token = await gateway(world)
    press, _ = await world.device("press")
    other, _ = await world.device("other")
    assert await put_behind(world, gateway_id, press=press) == 200
    look_ups = LookUps(monkeypatch)
    async with thingsboard(world, token, "v1/gateway/rpc") as client:
        await client.publish("v1/gateway/connect", '{"device": "press"}', qos=0)
        async with asyncio.timeout(20):
            await look_ups.found.wait()
        assert await put_behind(world, gateway_id, other=other) == 200
        await until_stands(world, press, "offline", "its gateway was changed")
        assert press not in world.app.state.dispatcher._ways
        await client.publish("v1/gateway/connect", '{"device": "press"}', qos=0)
        await until_stands(world, press, "online", "connected by its gateway")
        await order(world, press, "reboot")
        assert (await next_of(client))[1]["device"] == "press"


async def test_what_cannot_be_put_behind_a_gateway_is_named(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    gateway_id, _ = await gateway(world)
    device_id, _ = await world.device()
    path = f"/api/v1/devices/{gateway_id}/gateway/devices"
    theirs = principal_headers(uuid4())
    assert (await world.http.get(path, headers=theirs)).status_code == 404
    foreign = await world.http.post(
        "/api/v1/devices", json={"name": "theirs", "type": "press"}, headers=theirs
    )
    for wrong in (
        {"a": foreign.json()["id"]},
        {"a": str(gateway_id)},
        {"": str(device_id)},
        {"a\n": str(device_id)},
        {"a": str(device_id), "b": str(device_id)},
    ):
        answer = await world.http.patch(path, json=wrong, headers=world.headers)
        assert (answer.status_code, len(answer.json()["errors"])) == (422, 1), answer.text
    assert await behind(world, gateway_id) == {}
    plain = await world.http.get(f"/api/v1/devices/{device_id}/gateway", headers=world.headers)
    assert plain.status_code == 404


@asynccontextmanager
async def thingsboard(world: World, token: str, *heard: str) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(
        "127.0.0.1", world.mqtt_port, identifier="", username=token, password=""
    ) as client:
        for topic in heard:
            await client.subscribe(topic, qos=1)
        yield client


async def next_of(client: aiomqtt.Client) -> tuple[str, Any]:
    async with asyncio.timeout(20):
        message = await anext(aiter(client.messages))
    return str(message.topic), json.loads(message.payload)


async def set_attributes(world: World, device_id: UUID, patch: dict[str, object]) -> None:
    answer = await world.http.patch(
        f"/api/v1/devices/{device_id}/attributes/shared", json=patch, headers=world.headers
    )
    assert answer.status_code == 200, answer.text


async def test_a_thingsboard_gateway_brings_its_devices_in(world: World) -> None:
    gateway_id, token = await gateway(world, registers="press", most=2)
    await world.device("mine")
    heard = ("v1/gateway/rpc", "v1/gateway/attributes", "v1/gateway/attributes/response")
    async with thingsboard(world, token, *heard) as client:
        await client.publish("v1/gateway/connect", '{"device": "A"}', qos=1)
        [a] = await until_behind(world, gateway_id, "A")
        await until_stands(world, a, "online", "connected by its gateway")
        ts = next_ms()
        said = {
            "A": [{"ts": ts, "values": {"temp": 1}}, {"ts": ts + 1, "values": {"temp": 2}}],
            "mine": [{"ts": ts, "values": {"temp": 3}}],
            "B": [{"ts": ts, "values": {"temp": 4}}],
        }
        await client.publish("v1/gateway/telemetry", json.dumps(said), qos=1)
        assert [value for _, _, value in await world.until_stored(a, 2)] == [1.0, 2.0]
        [b] = await until_behind(world, gateway_id, "B")
        assert [value for _, _, value in await world.until_stored(b, 1)] == [4.0]
        [refused] = await until_refused(world, gateway_id, "not_behind_this_gateway")
        assert "'mine' is registered" in refused["detail"]

        command = await order(world, a, "setSpeed", rpm=900)
        topic, rpc = await next_of(client)
        assert (topic, rpc["device"]) == ("v1/gateway/rpc", "A")
        assert (rpc["data"]["method"], rpc["data"]["params"]) == ("setSpeed", {"rpm": 900})
        reply = {"device": "A", "id": rpc["data"]["id"], "data": {"success": True}}
        await client.publish("v1/gateway/rpc", json.dumps(reply), qos=1)
        assert (await outcome(world, a, command))["result"] == {"success": True}

        await client.publish("v1/gateway/attributes", '{"A": {"firmware": "2.1"}}', qos=1)
        asked = '{"id": 5, "device": "A", "client": true, "keys": ["firmware", "serial"]}'
        await client.publish("v1/gateway/attributes/request", asked, qos=1)
        assert await next_of(client) == (
            "v1/gateway/attributes/response",
            {"id": 5, "device": "A", "values": {"firmware": "2.1"}},
        )
        await set_attributes(world, a, {"limit": 80})
        assert await next_of(client) == (
            "v1/gateway/attributes",
            {"device": "A", "data": {"limit": 80}},
        )
        await client.publish("v1/gateway/disconnect", '{"device": "A"}', qos=1)
        await until_stands(world, a, "offline", "disconnected by its gateway")
    await until_stands(world, b, "offline", "DISCONNECT")


@pytest.mark.parametrize("kind", ["native", "thingsboard"])
async def test_attributes_reach_the_device_when_they_change_and_when_it_asks(
    world: World, kind: str
) -> None:
    device_id, token = await world.device()
    await set_attributes(world, device_id, {"limit": 80, "mode": "auto"})
    prefix = "v1/devices/me" if kind == "thingsboard" else f"v1/devices/{device_id}"
    name, password = (token, "") if kind == "thingsboard" else (str(device_id), token)
    async with aiomqtt.Client(
        "127.0.0.1", world.mqtt_port, identifier=str(device_id), username=name, password=password
    ) as client:
        await client.subscribe(
            [(f"{prefix}/attributes", 1), (f"{prefix}/attributes/response/+", 1)]
        )
        await client.publish(f"{prefix}/attributes", '{"firmware": "2.1"}', qos=1)
        for number, asked, answer in (
            ("1", "", {"client": {"firmware": "2.1"}, "shared": {"limit": 80, "mode": "auto"}}),
            ("2", '{"sharedKeys": "mode,none"}', {"shared": {"mode": "auto"}}),
        ):
            await client.publish(f"{prefix}/attributes/request/{number}", asked, qos=1)
            assert await next_of(client) == (f"{prefix}/attributes/response/{number}", answer)
        await set_attributes(world, device_id, {"limit": 70, "mode": None})
        gone: dict[str, object] = {"deleted": ["mode"]} if kind == "thingsboard" else {"mode": None}
        assert await next_of(client) == (f"{prefix}/attributes", {"limit": 70, **gone})


async def test_a_question_about_all_attributes_counts_as_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await world.device()
    reports = world.app.state.reception.reports
    count, counted = reports.take_question, []

    def note(source: Source, at: datetime) -> None:
        counted.append(source.device_id)
        count(source, at)

    monkeypatch.setattr(reports, "take_question", note)
    async with thingsboard(world, token, "v1/devices/me/attributes/response/+") as client:
        await client.publish("v1/devices/me/attributes/request/1", "", qos=1)
        assert (await next_of(client))[1] == {"client": {}, "shared": {}}
    assert counted == [device_id]


async def test_an_rpc_s_answer_finds_its_command_also_after_a_reconnect(world: World) -> None:
    device_id, token = await world.device()
    async with thingsboard(world, token, "v1/devices/me/rpc/request/+") as client:
        command = await order(world, device_id, "reboot")
        topic, _ = await next_of(client)
    number = topic.rpartition("/")[2]
    async with thingsboard(world, token, "v1/devices/me/rpc/response/+") as client:
        await client.publish(f"v1/devices/me/rpc/response/{number}", '{"ok": true}', qos=1)
        assert (await outcome(world, device_id, command))["result"] == {"ok": True}
        await client.publish("v1/devices/me/rpc/request/3", '{"method": "getCurrentTime"}', qos=1)
        topic, answer = await next_of(client)
        assert topic == "v1/devices/me/rpc/response/3"
        assert abs(answer - next_ms()) < 60_000
