"""The simulator's devices, by every protocol, with the real ingest."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
import uvloop

from clients.simulator.commands import CommandFailed, Params
from clients.simulator.devices.device import Device
from clients.simulator.protocols import PROTOCOLS, Address, Doors, make_device
from clients.simulator.station import Credential
from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.amqp_broker import DevicesBroker
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running, serving
from tests.waiting import until

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def devices_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevicesBroker]:
    """The RabbitMQ that devices publish to."""
    broker = DevicesBroker(tmp_path_factory.mktemp("devices-broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
async def met(
    devices_broker: DevicesBroker,
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[tuple[World, Doors]]:
    """An ingest with all doors open, and where they are."""
    settings = devices_broker.settings(
        Settings(
            database_url=database_urls.rw("ingest"),
            engine_database_url=database_urls.engine("ingest"),
            historian_writer_url=database_urls.writer,
            mqtt_host=HOST,
            mqtt_port=0,
            mqtt_websocket_port=0,
            coap_host=HOST,
            coap_port=0,
            opcua_host=HOST,
            opcua_port=0,
        )
    )
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    headers = principal_headers(tenant_id)
    async with (
        running(app, bus, database_urls, tenant_id, headers) as world,
        serving(app, devices_broker.http_port) as http_port,
    ):
        await until(lambda: app.state.amqp.is_up, "ingest reads from the broker")
        allowed = await world.http.put(
            "/api/v1/devices/policy", json={"plain_coap": True}, headers=headers
        )
        assert allowed.status_code == 200, allowed.text
        ports = {
            "mqtt": app.state.mqtt_port,
            "mqtt-websocket": app.state.mqtt_websocket_port,
            "coap": app.state.coap_port,
            "opcua": app.state.opcua_port,
            "amqp": devices_broker.port,
        }
        addresses: dict[str, Address] = {name: (HOST, port) for name, port in ports.items()}
        yield world, Doors(f"http://{HOST}:{http_port}", addresses)


def obey(name: str, params: Params) -> object:
    """Do what a pump does."""
    if name != "set_speed":
        raise CommandFailed(f"a pump does not {name}")
    return {"rpm": params["rpm"]}


@asynccontextmanager
async def working(device: Device) -> AsyncIterator[None]:
    task = asyncio.create_task(device.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def done(world: World, device_id: UUID, name: str) -> dict[str, Any]:
    """Send a command and return what became of it."""
    sent = await world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": name, "params": {"rpm": 900}},
        headers=world.headers,
    )
    assert sent.status_code == 201, sent.text
    answer = await world.http.get(
        f"/api/v1/devices/{device_id}/commands/{sent.json()['id']}?wait=20", headers=world.headers
    )
    outcome: dict[str, Any] = answer.json()
    return {key: outcome[key] for key in ("status", "result", "error")}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_device_delivers_what_it_measured_and_does_what_it_is_told(
    met: tuple[World, Doors], protocol: str
) -> None:
    world, doors = met
    device_id, token = await world.device()
    device = make_device(protocol, doors, Credential(str(device_id), token), on_command=obey)
    now = time.time_ns() // 1_000_000
    for ts in range(now, now + 3):
        device.offer(ts, {"flow": 1.5, "running": True, "mode": "auto"})
    async with working(device), asyncio.timeout(20):
        await device.drain()
        assert await done(world, device_id, "set_speed") == {
            "status": "succeeded",
            "result": {"rpm": 900},
            "error": None,
        }
        assert await done(world, device_id, "fly") == {
            "status": "failed",
            "result": None,
            "error": "a pump does not fly",
        }
    assert (device.stats.acknowledged, device.stats.rejected) == (3, 0)
    await world.until_stored(device_id, 6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_device_whose_token_is_void_says_so(
    met: tuple[World, Doors], protocol: str
) -> None:
    world, doors = met
    device_id, _ = await world.device()
    device = make_device(protocol, doors, Credential(str(device_id), "void"), on_command=obey)
    device.offer(time.time_ns() // 1_000_000, {"flow": 1.5})
    async with working(device):
        await until(lambda: device.is_refused, "it was turned away")
    assert device.backlog == 1


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the loop that serves: its transports are not asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}
