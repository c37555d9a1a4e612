"""Ingest is killed between the bus and the answer: the device sends again, and it is one point."""

import asyncio
import pickle
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiocoap.numbers import Code

from services.ingest.settings import Settings
from tests.database import DatabaseUrls
from tests.service.ingest.conftest import World
from tests.service.ingest.test_coap_datagrams import Wire, telemetry
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)

INGEST = """
import asyncio, os, pickle, signal, sys

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.protocols.coap.endpoint import Endpoint

settings, bus_url, dies = sys.argv[1:]
if dies == "dies":
    # Durable, and nobody has been told.
    Endpoint._durable = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

async def main():
    bus = LocalBus(bus_url, SystemClock())
    app = build(pickle.loads(bytes.fromhex(settings)), bus, SystemClock())
    async with app.router.lifespan_context(app):
        await bus.start()
        print("port", app.state.coap_port, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(
        update={"coap_host": "127.0.0.1", "coap_port": 0, "state_dir": tmp_path / "here"}
    )


@asynccontextmanager
async def ingest(
    settings: Settings, urls: DatabaseUrls, state: Path, *, dies: bool
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Another process of ingest, at the same database and bus, and its port for CoAP."""
    own = settings.model_copy(update={"state_dir": state})
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        INGEST,
        pickle.dumps(own).hex(),
        urls.bus,
        "dies" if dies else "lives",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while not (line := await process.stdout.readline()).startswith(b"port "):
                assert line, "ingest did not start"
        yield process, int(line.split()[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("by", ["the same process, started again", "another process, by its ts"])
async def test_a_message_whose_answer_died_with_the_process_comes_again_and_is_one_point(
    settings: Settings, database_urls: DatabaseUrls, world: World, tmp_path: Path, by: str
) -> None:
    answer = await world.http.put(
        "/api/v1/devices/policy", json={"plain_coap": True}, headers=world.headers
    )
    assert answer.status_code == 200, answer.text
    device_id, token = await world.device()
    is_restarted = by.startswith("the same")
    body = b'{"temp": 1}'
    if not is_restarted:
        body = b'{"ts": %d, "values": {"temp": 1}}' % (time.time() * 1000)
    wire = Wire()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: wire, local_addr=("127.0.0.1", 0)
    )

    async def is_answered_at(port: int, mid: int, said: bytes) -> None:
        transport.sendto(telemetry(token, said, mid), ("127.0.0.1", port))
        await until(lambda: any(got[3] == mid for got in wire.got), f"message {mid} answered")
        assert [got[1] for got in wire.got if got[3] == mid] == [Code.CHANGED]

    try:
        async with ingest(settings, database_urls, tmp_path / "a", dies=True) as (process, port):
            transport.sendto(telemetry(token, body, 7), ("127.0.0.1", port))
            assert await asyncio.wait_for(process.wait(), 30) < 0
        assert wire.got == []
        [(_, first, _)] = await world.until_stored(device_id, 1)
        if is_restarted:
            async with ingest(settings, database_urls, tmp_path / "a", dies=False) as (_, port):
                await is_answered_at(port, 7, body)
                await is_answered_at(port, 8, b'{"temp": 2}')
        else:
            await is_answered_at(world.app.state.coap_port, 7, body)
            await is_answered_at(world.app.state.coap_port, 8, b'{"temp": 2}')
        points = await world.until_stored(device_id, 2)
        assert [value for _, _, value in points] == [1.0, 2.0]
        assert points[0][1] == first
    finally:
        transport.close()
