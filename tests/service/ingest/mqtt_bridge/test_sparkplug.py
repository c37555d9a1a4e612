"""Edge nodes that speak to a site's own broker, over the bridge."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.protocol import Protocol
from services.ingest.domain.sparkplug import NAMESPACE
from services.ingest.domain.sparkplug_payload import Payload
from services.ingest.protocols import sparkplug_host
from services.ingest.protocols.sparkplug_host import SparkplugHost
from tests.reading_times import next_ms
from tests.servers import SharedServer
from tests.service.ingest.conftest import World
from tests.service.ingest.mqtt_bridge.conftest import publish_to, site, topics, until_quarantined
from tests.waiting import until


def edge_message(seq: int, *metrics: tuple[str, float]) -> bytes:
    """Write a Sparkplug payload of doubles, all named."""
    payload = Payload(timestamp=next_ms(), seq=seq)
    for name, value in metrics:
        payload.metrics.add(name=name, datatype=10, double_value=value)
    written: bytes = payload.SerializeToString()
    return written


async def test_an_edge_node_s_births_values_and_deaths_come_through_the_bridge(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    group = f"g{bridged.tenant_id.hex[:8]}"
    node_id, _ = await bridged.device(f"{group}/edge")
    press_id, _ = await bridged.device(f"{group}/edge/press")
    await topics(bridged, sparkplug=[f"spBv1.0/{group}/#"])

    async def says(kind: str, *tail: str, payload: bytes) -> None:
        await publish_to(mosquitto_server, "/".join(("spBv1.0", group, kind, *tail)), payload)

    async def stands(device_id: UUID) -> tuple[str, str]:
        path = f"/api/v1/devices/{device_id}"
        device = (await bridged.http.get(path, headers=bridged.headers)).json()
        return device["status"], device["status_reason"]

    async def until_stands(device_id: UUID, *expected: str) -> None:
        async def does() -> bool:
            return await stands(device_id) == expected

        await until(does, f"the device is {expected}")

    async with site(mosquitto_server) as edge:
        await edge.subscribe(f"spBv1.0/{group}/NCMD/edge")
        # Nobody here has heard its birth: it is asked for it.
        await says("NDATA", "edge", payload=edge_message(7, ("load", 1)))
        async with asyncio.timeout(15):
            asked = await anext(aiter(edge.messages))
        command = Payload()
        command.ParseFromString(asked.payload)
        assert command.metrics[0].name == "Node Control/Rebirth"
    await says("NBIRTH", "edge", payload=edge_message(0, ("load", 2)))
    await says("DBIRTH", "edge", "press", payload=edge_message(1, ("temp", 20)))
    await says("DDATA", "edge", "press", payload=edge_message(2, ("temp", 21)))
    points = await bridged.until_stored(press_id, 2)
    assert [value for _, _, value in points] == [20.0, 21.0]
    await until_stands(press_id, "online", "sparkplug birth")
    await until_stands(node_id, "online", "sparkplug data")
    await says("NDEATH", "edge", payload=edge_message(0))
    await until_stands(press_id, "offline", "sparkplug death")
    await until_stands(node_id, "offline", "sparkplug death")
    await says("NDATA", "edge", payload=b"no payload")
    await until_quarantined(bridged, node_id, "malformed")


async def test_edge_nodes_that_declare_too_much_are_forgotten_the_most_silent_first(
    bridged: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparkplug_host, "MOST_DECLARED", 5_000)

    async def nobody(name: str) -> None:
        return None

    async def send_nothing(command: Outgoing | None, topic: str, payload: bytes) -> Delivered:
        return Delivered.SENT

    host = SparkplugHost(
        bridged.app.state.reception,
        Protocol.MQTT_BRIDGE,
        nobody,
        send_nothing,
        lambda topic, payload, at, done, why: done(),
    )
    birth = edge_message(0, *((f"metric {n}", 1.0) for n in range(10)))
    settled: list[str] = []
    for number in range(10):
        topic = f"{NAMESPACE}/plant/NBIRTH/node {number}"
        await host.take(topic, birth, datetime.now(UTC), lambda: settled.append("done"), 10_000)
    assert list(host._nodes) == ["plant/node 8", "plant/node 9"]
    await host.take(topic, birth, datetime.now(UTC), lambda: settled.append("done"), 10)
    assert len(settled) == 11
