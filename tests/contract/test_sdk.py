"""The Python SDK, made from the released document, works with the platform as it is."""

import asyncio
import importlib
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from deploy.cli.main import RELEASED, ROOT
from deploy.cli.openapi import as_text, for_sdk
from deploy.edge.server import EmbeddedServer
from tests.contract.isolation.test_walk import ADMIN, PASSWORD, Platform, Tenant, running
from tests.database import DatabaseUrls, fresh_database
from tests.servers import SharedServer
from tests.waiting import until

PACKAGE = "insa_iiot_client"


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The SDK's package as `make sdk` makes it, all of it: no operation may be left out."""
    folder = tmp_path_factory.mktemp("sdk")
    document = folder / "openapi.json"
    document.write_text(as_text(for_sdk(json.loads(RELEASED.read_text()))))
    made = subprocess.run(
        [Path(sys.executable).parent / "openapi-python-client", "generate", "--meta", "none",
         "--path", document, "--config", ROOT / "clients/sdk/python.yaml",
         "--output-path", folder / PACKAGE],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "WARNING" not in made.stdout + made.stderr, made.stdout
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"{PACKAGE}.{name}" if name else PACKAGE)
    sys.path.remove(str(folder))


@pytest.fixture
def urls(postgres_server: SharedServer) -> DatabaseUrls:
    """A migrated database for this alone."""
    return fresh_database(postgres_server)


@pytest.fixture
async def platform(urls: DatabaseUrls) -> AsyncIterator[Platform]:
    """The whole platform."""
    async with running(urls) as platform:
        yield platform


async def test_a_program_logs_in_adds_a_press_sends_a_point_and_reads_it_back(
    platform: Platform, sdk: Any
) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    plant = await platform.open_tenant(root, f"sdk-{secrets.token_hex(4)}")
    listening = socket.create_server(("127.0.0.1", 0))
    server = EmbeddedServer(platform.gateway, listening, drain_s=1)
    server.start()
    try:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        device_id, token = await asyncio.to_thread(_in_a_thread, sdk, url, plant.email)
        await _on_the_loop(sdk, url, token, device_id)
    finally:
        await server.stop()


def _in_a_thread(sdk: Any, url: str, email: str) -> tuple[UUID, str]:
    """Use the SDK's plain functions; return a device's id and the access token."""
    models = sdk("models")
    with sdk("").Client(base_url=url) as stranger:
        tokens = sdk("api.auth.log_in").sync(
            client=stranger, body=models.Login(email=email, password=PASSWORD)
        )
    assert isinstance(tokens, models.TokensOut)
    with sdk("").AuthenticatedClient(base_url=url, token=tokens.access_token) as client:
        made = [
            sdk("api.devices.register_device").sync(
                client=client,
                body=models.DeviceIn(name=f"press-{number}", type_="press"),
                idempotency_key=str(uuid4()),
            )
            for number in range(3)
        ]
        assert all(isinstance(device, models.RegisteredDevice) for device in made)

        listed: list[str] = []
        cursor: str | None = None
        while not listed or cursor is not None:
            page = sdk("api.devices.list_devices").sync(
                client=client, limit=2, **({"cursor": cursor} if cursor else {})
            )
            listed += [device.name for device in page.items]
            cursor = page.next_cursor
        assert listed == ["press-0", "press-1", "press-2"]

        gone = sdk("api.devices.get_device").sync_detailed(uuid4(), client=client)
        assert gone.status_code == 404
        assert isinstance(gone.parsed, models.Problem)
        assert gone.parsed.type_ == "urn:iiot:problem:not-found"
        taken = sdk("api.devices.register_device").sync(
            client=client, body=models.DeviceIn(name="press-0", type_="press")
        )
        assert isinstance(taken, models.Problem)
        assert taken.status == 409
    return made[0].id, tokens.access_token


async def _on_the_loop(sdk: Any, url: str, token: str, device_id: UUID) -> None:
    """Use its coroutines: send a point and read it back."""
    async with sdk("").AuthenticatedClient(base_url=url, token=token) as client:
        now = datetime.now(UTC)
        models = sdk("models")
        reading = models.SendTelemetryBodyItem.from_dict(
            {"device_id": str(device_id), "ts": now.isoformat(), "values": {"temp": 21.5}}
        )
        sent = await sdk("api.telemetry.send_telemetry").asyncio(client=client, body=[reading])
        assert sent.accepted == 1

        async def is_there() -> bool:
            read = await sdk("api.analytics.read_timeseries").asyncio(
                device_id,
                "temp",
                client=client,
                from_=now - timedelta(minutes=1),
                to=now + timedelta(minutes=1),
            )
            return isinstance(read, models.TimeseriesOut) and [p.value for p in read.points] == [
                21.5
            ]

        await until(is_there, "the point can be read")
