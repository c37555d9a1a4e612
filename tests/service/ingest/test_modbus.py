"""Modbus devices, asked in turn: pymodbus' own server, set up by API."""

import struct
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.historian.point import Quality
from services.ingest.app import build
from services.ingest.protocols import connectors
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.waiting import until


class Meter:
    """A power meter: a few holding registers, a few coils, and nothing from address 200 on."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._server: Any = None

    async def start(self) -> None:
        bits = SimData(0, count=32, values=False, datatype=DataType.BITS)
        words = SimData(0, count=200, values=0, datatype=DataType.REGISTERS)
        device = SimDevice(1, ([bits], [bits], [words], [words]))
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.serve_forever(background=True)
        self.port = self._server.transport.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown()
            self._server = None

    async def set(self, address: int, *words: int) -> None:
        await self._context.async_setValues(1, 16, address, list(words))

    async def close(self, address: int) -> None:
        await self._context.async_setValues(1, 5, address, [True])

    async def words(self, address: int, count: int) -> list[int]:
        held: list[int] = await self._context.async_getValues(1, 3, address, count)
        return held

    @property
    def _context(self) -> Any:
        assert self._server is not None
        return self._server.context


@pytest.fixture
async def meter() -> AsyncIterator[Meter]:
    meter = Meter()
    await meter.start()
    yield meter
    await meter.stop()


@pytest.fixture
async def site(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """An ingest whose connectors may connect to this machine."""
    own = Settings(**settings.model_dump() | {"connector_addresses": ["127.0.0.0/8"]})
    app, tenant_id = build(own, bus, SystemClock(), keys=keys), uuid4()
    headers = principal_headers(tenant_id)
    async with running(app, bus, database_urls, tenant_id, headers) as world:
        yield world
        listed = await world.http.get("/api/v1/connectors", headers=headers)
        for connector in listed.json()["items"]:
            await world.http.delete(f"/api/v1/connectors/{connector['id']}", headers=headers)


async def connect(world: World, meter: Meter, *registers: dict[str, Any]) -> UUID:
    answer = await world.http.post(
        "/api/v1/connectors",
        json={
            "name": f"meter {uuid4()}",
            "kind": "modbus",
            "settings": {
                "host": "127.0.0.1",
                "port": meter.port,
                "poll_ms": 100,
                "timeout_ms": 500,
                "registers": list(registers),
            },
        },
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


async def until_it_is(world: World, connector: UUID, state: str, reason: str = "") -> None:
    async def is_so() -> bool:
        answer = await world.http.get(f"/api/v1/connectors/{connector}", headers=world.headers)
        shown = answer.json()
        return shown["state"] == state and reason in shown["reason"]

    await until(is_so, f"the connector is {state}: {reason}")


async def rows(world: World, device_id: UUID, metric: str) -> list[tuple[float | None, int]]:
    """Return value and quality of a metric's points, by time."""
    return [
        (row["value"], row["quality"])
        for row in await world.query(
            "SELECT p.value, p.quality FROM historian.series s JOIN historian.points p"
            " ON p.tenant = s.tenant AND p.series = s.id"
            " WHERE s.device_id = $1 AND s.metric = $2 ORDER BY p.ts",
            device_id,
            metric,
        )
    ]


async def until_there_is(
    world: World, device_id: UUID, metric: str, value: float, quality: Quality = Quality.GOOD
) -> None:
    async def is_there() -> bool:
        return (value, quality) in await rows(world, device_id, metric)

    await until(is_there, f"{metric} {value} is stored")


async def test_what_a_meter_holds_is_stored_in_each_of_its_types(site: World, meter: Meter) -> None:
    device_id, _ = await site.device("meter 1")
    await meter.set(0, 2305)
    await meter.set(1, *struct.unpack(">2H", struct.pack(">i", -70_000)))
    await meter.set(3, *reversed(struct.unpack(">2H", struct.pack(">f", 49.5))))
    await meter.close(2)
    connector = await connect(
        site,
        meter,
        {"device": "meter 1", "metric": "voltage", "address": 0, "scale": 0.1, "unit": "V"},
        {"device": "meter 1", "metric": "power", "address": 1, "type": "int32"},
        {
            "device": str(device_id),
            "metric": "frequency",
            "address": 3,
            "type": "float32",
            "word_order": "little",
        },
        {"device": "meter 1", "metric": "closed", "kind": "coil", "address": 2, "type": "bool"},
    )
    await until_it_is(site, connector, "connected")
    for metric, value in [
        ("voltage", 230.5),
        ("power", -70_000.0),
        ("frequency", 49.5),
        ("closed", 1.0),
    ]:
        await until_there_is(site, device_id, metric, value)
    await meter.set(0, 2310)
    await until_there_is(site, device_id, "voltage", 231.0)


async def test_what_cannot_be_read_is_bad_and_the_others_go_on(site: World, meter: Meter) -> None:
    device_id, _ = await site.device("meter 1")
    await meter.set(0, 7)
    connector = await connect(
        site,
        meter,
        {"device": "meter 1", "metric": "there", "address": 0},
        {"device": "meter 1", "metric": "gone", "address": 600},
        {"device": "ghost", "metric": "there", "address": 0},
    )
    await until_it_is(site, connector, "degraded", "holding 600 to 600: exception 2")
    await until_it_is(site, connector, "degraded", "ghost: there is no such device")
    await until_there_is(site, device_id, "there", 7.0)

    async def is_bad() -> bool:
        return any(quality == Quality.BAD for _, quality in await rows(site, device_id, "gone"))

    await until(is_bad, "what is not there is stored as bad")


async def test_it_comes_back_when_the_meter_does(site: World) -> None:
    device_id, _ = await site.device("meter 1")
    meter = Meter()
    await meter.start()
    await meter.set(0, 1)
    connector = await connect(site, meter, {"device": "meter 1", "metric": "count", "address": 0})
    await until_there_is(site, device_id, "count", 1.0)
    await meter.stop()
    await until_it_is(site, connector, "failed")
    again = Meter(meter.port)
    await again.start()
    try:
        await again.set(0, 2)
        await until_there_is(site, device_id, "count", 2.0)
        await until_it_is(site, connector, "connected")
    finally:
        await again.stop()


async def test_the_command_write_sets_what_may_be_set(site: World, meter: Meter) -> None:
    device_id, _ = await site.device("drive")
    connector = await connect(
        site,
        meter,
        {
            "device": "drive",
            "metric": "speed",
            "address": 10,
            "type": "float32",
            "scale": 0.5,
            "is_writable": True,
        },
        {"device": "drive", "metric": "limit", "address": 20},
    )
    await until_it_is(site, connector, "connected")
    for params, status in [
        ({"metric": "speed", "value": 12.5}, "succeeded"),
        ({"metric": "limit", "value": 1}, "failed"),
        ({"metric": "speed", "value": "fast"}, "failed"),
    ]:
        asked = await site.http.post(
            f"/api/v1/devices/{device_id}/commands",
            json={"name": "write", "params": params},
            headers=site.headers,
        )
        assert asked.status_code in (201, 202), asked.text
        shown: dict[str, Any] = {}

        async def is_over(command: str = asked.json()["id"], shown: dict[str, Any] = shown) -> bool:
            answer = await site.http.get(
                f"/api/v1/devices/{device_id}/commands/{command}", headers=site.headers
            )
            shown.update(answer.json())
            return shown["status"] in ("succeeded", "failed", "expired")

        await until(is_over, "the command is over")
        assert shown["status"] == status, shown
    assert struct.unpack(">f", struct.pack(">2H", *await meter.words(10, 2))) == (25.0,)
    await until_there_is(site, device_id, "speed", 12.5)


async def test_a_device_s_own_connection_outlives_that_of_a_connector(
    site: World, meter: Meter
) -> None:
    device_id, token = await site.device("meter 1")
    source = await site.app.state.sources.login(token)
    site.app.state.reception.presence.came(source, site, "connected by MQTT")

    async def status() -> tuple[str, str]:
        answer = await site.http.get(f"/api/v1/devices/{device_id}", headers=site.headers)
        return answer.json()["status"], answer.json()["status_reason"]

    async def is_by_mqtt() -> bool:
        return await status() == ("online", "connected by MQTT")

    async def is_by_the_connector() -> bool:
        return (await status())[1].startswith("connected by the connector")

    await until(is_by_mqtt, "it is online")
    connector = await connect(site, meter, {"device": "meter 1", "metric": "power", "address": 0})
    await until(is_by_the_connector, "the connector is heard of")
    await meter.stop()
    await until_it_is(site, connector, "failed")
    await until(is_by_mqtt, "it is online by its own connection")


async def test_a_device_that_is_registered_later_is_found(
    site: World, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors, "LOOKED_UP_EVERY_S", 0.05)
    await meter.set(0, 7)
    later = uuid4()
    connector = await connect(
        site,
        meter,
        {"device": "meter 2", "metric": "power", "address": 0},
        {"device": str(later), "metric": "power", "address": 0},
    )
    await until_it_is(site, connector, "degraded", "meter 2: there is no such device")
    device_id, _ = await site.device("meter 2")
    await until_there_is(site, device_id, "power", 7.0)
    await until_it_is(site, connector, "degraded", f"{later}: there is no such device")
