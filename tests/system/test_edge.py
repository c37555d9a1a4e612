"""`make run` on nothing: a plant, a bearing that runs hot, an alert, a mail and a signed webhook."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import httpx2
import pytest

from deploy.local.processes import free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
FIRST_START_S = 120
SECOND_START_S = 30
"""Promised are 10 s; the machine that tests run on is busy with others."""

pytestmark = pytest.mark.timeout(300)


@dataclass(slots=True)
class Edge:
    """A running edge, seen from outside."""

    process: asyncio.subprocess.Process
    state: Path
    port: int

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"

    @property
    def inbox(self) -> str:
        ports = json.loads((self.state / "ports.json").read_text())
        return f"http://127.0.0.1:{ports['inbox']}"

    async def output(self) -> str:
        return (self.state.parent / "output.txt").read_text()

    async def login(self, http: httpx2.AsyncClient) -> dict[str, str]:
        known = json.loads((self.state / "state.json").read_text())
        answer = await http.post(
            f"{self.api}/auth/login",
            json={"email": known["admin_email"], "password": known["admin_password"]},
        )
        assert answer.status_code == 200, answer.text
        return {"authorization": f"Bearer {answer.json()['access_token']}"}


@asynccontextmanager
async def edge(state: Path, *arguments: str) -> AsyncIterator[Edge]:
    """Run the edge as `make run` does, and end it by Ctrl-C."""
    port = free_port()
    output = (state.parent / "output.txt").open("wb")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "deploy.edge", "--port", str(port), "--mqtt-port", str(free_port())),
        *("--state", str(state), *arguments),
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.endswith("_URL")},
        stdout=output,
        stderr=output,
    )
    try:
        yield Edge(process, state, port)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), 40)
        output.close()


async def messages(http: httpx2.AsyncClient, edge: Edge) -> list[dict[str, object]]:
    """Return what lies in the local inbox, if it is open already."""
    try:
        answer = await http.get(f"{edge.inbox}/messages.json")
    except (httpx2.HTTPError, FileNotFoundError):
        return []
    listed = answer.json()
    found: list[dict[str, object]] = listed["messages"] if isinstance(listed, dict) else listed
    return found


async def test_from_nothing_to_an_alert_in_the_inbox_twice(tmp_path: Path) -> None:
    state = tmp_path / "run"
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
        async with edge(state) as first:
            await until(
                lambda: _has_alert(http, first, after=0), "an alert told", within_s=FIRST_START_S
            )
            headers = await first.login(http)
            alerts = (await http.get(f"{first.api}/alerts", headers=headers)).json()["items"]
            assert [(a["severity"], a["metric"]) for a in alerts] == [
                ("critical", "bearing_temperature")
            ]
            devices = await http.get(f"{first.api}/devices?limit=200", headers=headers)
            assert len(devices.json()["items"]) >= 12
            hook = next(m for m in await messages(http, first) if m["kind"] == "webhook")
            assert "verified" in json.dumps(hook), hook
            table = await first.output()
            assert "Log in as" in table
            assert "curl" in table
        assert first.process.returncode == 0, await first.output()
        assert "Stopped." in await first.output()

        async with edge(state) as second:
            told = 0

            async def nothing_new_yet() -> bool:
                nonlocal told
                told = len(await messages(http, second))
                return told > 0

            await until(nothing_new_yet, "the inbox is open again", within_s=SECOND_START_S)
            await until(
                lambda: _has_alert(http, second, after=told),
                "a second alert told",
                within_s=SECOND_START_S,
            )


async def test_every_other_loopback_port_stays_blocked(tmp_path: Path) -> None:
    state = tmp_path / "run"
    async with (
        httpx2.AsyncClient(trust_env=False, timeout=20) as http,
        edge(state, "--sim", "off") as running,
    ):

        async def is_up() -> bool:
            return "Ctrl-C stops it" in await running.output()

        await until(is_up, "the edge is up", within_s=FIRST_START_S)
        headers = await running.login(http)
        for url in (
            f"http://127.0.0.1:{running.port}/api/v1/auth/me",
            "http://127.0.0.1:5432/",
            running.inbox.replace("127.0.0.1", "localhost") + "/hooks/alerts",
            running.inbox.replace("127.0.0.1", "127.0.0.2") + "/hooks/alerts",
        ):
            answer = await http.post(
                f"{running.api}/notification-channels",
                json={"name": url, "kind": "webhook", "config": {"url": url}},
                headers=headers,
            )
            assert answer.status_code == 422, (url, answer.text)


async def test_a_taken_web_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "deploy.edge", "--port", str(port), "--state", str(tmp_path / "run")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    server.close()
    await server.wait_closed()
    assert process.returncode == 1
    assert f"make run PORT={port + 1}" in output.decode()


async def test_devices_get_the_next_port_where_theirs_is_taken_and_the_table_says_so(
    tmp_path: Path,
) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    taken = server.sockets[0].getsockname()[1]
    async with edge(tmp_path / "run", "--sim", "off", "--mqtt-port", str(taken)) as running:

        async def is_up() -> bool:
            return "Ctrl-C stops it" in await running.output()

        await until(is_up, "the edge is up", within_s=FIRST_START_S)
        table = await running.output()
        said = re.search(rf"127\.0\.0\.1:(\d+)  \({taken} is taken by another program\)", table)
        assert said is not None, table
        async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
            answer = await http.post(
                f"{running.api}/devices",
                json={"name": "press-7", "type": "press"},
                headers=await running.login(http),
            )
        known = answer.json()["credentials"]
        # Connecting is the proof: it raises where nobody listens.
        async with aiomqtt.Client(
            "127.0.0.1",
            int(said[1]),
            identifier=known["username"],
            username=known["username"],
            password=known["token"],
        ):
            pass
    server.close()
    await server.wait_closed()


async def _has_alert(http: httpx2.AsyncClient, edge: Edge, *, after: int) -> bool:
    found = await messages(http, edge)
    fresh = found[: len(found) - after]
    return {"mail", "webhook"} <= {str(m["kind"]) for m in fresh}
