"""What `docs/protocols/` shows works as it stands: its snippets are run against a running ingest.

A fenced block (bash or python) is run when the line above it says so:

    <!-- run: port=mqtt_port stores=2 -->

It gets `$HOST`, `$PORT` (of the door that this setting of ingest's names, "http" for its HTTP, "amqp" for the
devices' broker), `$HTTP_PORT`, and a device of its own as `$DEVICE_ID` and `$TOKEN`. It must end well within a minute, and leave as
many points stored as `stores` says. `command` names one that waits for the device.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.amqp_broker import DevicesBroker
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running, serving

DOCS = Path(__file__).resolve().parents[3] / "docs" / "protocols"
WITHIN_S = 60.0
MARKED = re.compile(
    r"^<!-- run:(?P<wants>[^\n]*?)-->\n```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of a page, and what it wants."""

    page: str
    number: int
    language: str
    code: str
    port: str
    stores: int
    command: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.language}"


def _snippets() -> list[Snippet]:
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for number, match in enumerate(MARKED.finditer(page.read_text()), start=1):
            wants = dict(word.split("=", 1) for word in match["wants"].split())
            found.append(
                Snippet(
                    page.stem,
                    number,
                    match["language"],
                    match["code"],
                    wants.pop("port"),
                    int(wants.pop("stores", "0")),
                    wants.pop("command", ""),
                )
            )
            assert not wants, f"{page.name}, snippet {number}: not understood: {wants}"
    return found


SNIPPETS = _snippets()
COMMANDS = {"bash": ["bash", "-eu", "-o", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@dataclass(frozen=True, slots=True)
class Doors:
    """A running ingest, and its ports by the setting that names them."""

    world: World
    ports: dict[str, int]


@pytest.fixture
async def doors(
    request: pytest.FixtureRequest,
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[Doors]:
    """An ingest with every door open that a snippet goes through."""
    names = {snippet.port for snippet in SNIPPETS} - {"http", "amqp"}
    settings = settings.model_copy(update=dict.fromkeys(names, 0))
    ports, http_port = {}, 0
    if request.getfixturevalue("snippet").port == "amqp":
        broker: DevicesBroker = request.getfixturevalue("devices_broker")
        settings, http_port = broker.settings(settings), broker.http_port
        ports["amqp"] = broker.port
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    async with (
        running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world,
        serving(app, http_port) as http,
    ):
        allowed = await world.http.put(
            "/api/v1/devices/policy", json={"plain_coap": True}, headers=world.headers
        )
        assert allowed.status_code == 200, allowed.text
        ports |= {"http": http} | {name: getattr(app.state, name) for name in names}
        yield Doors(world, ports)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
async def test_a_snippet_does_what_it_says(doors: Doors, snippet: Snippet) -> None:
    device_id, token = await doors.world.device()
    if snippet.command:
        asked = await doors.world.http.post(
            f"/api/v1/devices/{device_id}/commands",
            json={"name": snippet.command},
            headers=doors.world.headers,
        )
        assert asked.status_code == 201, asked.text
    process = await asyncio.create_subprocess_exec(
        *COMMANDS[snippet.language],
        snippet.code,
        env={
            **os.environ,
            "HOST": "127.0.0.1",
            "PORT": str(doors.ports[snippet.port]),
            "HTTP_PORT": str(doors.ports["http"]),
            "DEVICE_ID": str(device_id),
            "TOKEN": token,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode(errors="replace")
    assert snippet.command in said.decode(errors="replace")
    if snippet.stores:
        await doors.world.until_stored(device_id, snippet.stores)
    assert len(await doors.world.stored(device_id)) == snippet.stores


def test_the_snippets_are_found() -> None:
    assert "mqtt" in {snippet.page for snippet in SNIPPETS}
