"""The simulated plant's CoAP device, at a real ingest."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from clients.simulator.devices.coap import CoapDevice
from services.ingest.settings import Settings
from tests.service.ingest.conftest import World
from tests.waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"coap_host": "127.0.0.1", "coap_port": 0})


@pytest.fixture
async def plain(world: World) -> World:
    answer = await world.http.put(
        "/api/v1/devices/policy", json={"plain_coap": True}, headers=world.headers
    )
    assert answer.status_code == 200, answer.text
    return world


def simulated(world: World, device_id: object, token: str) -> CoapDevice:
    port = world.app.state.coap_port
    device = CoapDevice(str(device_id), token, Random(1), port=port, timeout=5)
    device.backoff.longest = 0.2
    return device


@asynccontextmanager
async def running(device: CoapDevice) -> AsyncIterator[None]:
    task = asyncio.create_task(device.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_it_measures_arrives_once_though_the_platform_was_full_for_a_while(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await plain.device()
    device = simulated(plain, device_id, token)
    now_ms = int(time.time() * 1000)
    monkeypatch.setattr(plain.app.state.intake, "is_full", True)
    for n in range(5):
        device.offer(now_ms + n, {"temp": float(n)})
    async with running(device):
        await until(lambda: device.stats.sent > 0, "a first attempt")
        monkeypatch.undo()
        await asyncio.wait_for(device.drain(), 20)
    assert [v for _, _, v in await plain.until_stored(device_id, 5)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (device.stats.acknowledged, device.stats.dropped) == (5, 0)


async def test_it_observes_anew_when_nothing_was_said_for_long(
    plain: World, caplog: pytest.LogCaptureFixture
) -> None:
    device_id, token = await plain.device()
    device = simulated(plain, device_id, token)
    device.observe_again = 0.05
    site = plain.app.state.coap.site
    async with running(device):
        await until(lambda: site._number >= 6, "observed several times")
        assert device.stats.connects == 1
        assert site._observers <= 4
        # A notification without a body, which is said when nothing waits, is no command.
        await device._answer(b"")
    assert "not a command" not in caplog.text
