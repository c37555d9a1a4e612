"""What makes the first start worth watching: where alerts go, and a plant that has some."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from deploy.edge.catcher import Catcher
from deploy.local.state import State

ROOT = Path(__file__).resolve().parents[2]
MAIL_CHANNEL = "Inbox (mail)"
HOOK_CHANNEL = "Inbox (webhook)"
SIMULATOR_STOP_S = 15.0
"""More than the ten seconds that it may take to say goodbye."""

PLANT_SPEED = 10
"""Plant seconds in a second: a bearing that takes half a minute to run hot does so in three."""
PLANT_FAULT = "bearing_wear:pump-2@10s+180s"


async def ensure_channels(url: str, state: State, catcher: Catcher) -> None:
    """Let alerts be told to the local inbox, by mail and by webhook; once.

    Raises httpx2.HTTPStatusError if the platform refuses.
    """
    async with httpx2.AsyncClient(base_url=f"{url}/api/v1", trust_env=False, timeout=30) as http:
        login = await http.post(
            "/auth/login", json={"email": state.admin_email, "password": state.admin_password}
        )
        login.raise_for_status()
        http.headers["authorization"] = f"Bearer {login.json()['access_token']}"
        listed = await http.get("/notification-channels?limit=200")
        listed.raise_for_status()
        present = {channel["name"]: channel for channel in listed.json()["items"]}
        if MAIL_CHANNEL not in present:
            created = await http.post(
                "/notification-channels",
                json={
                    "name": MAIL_CHANNEL,
                    "kind": "email",
                    "config": {"address": "engineer@plant.example"},
                },
            )
            created.raise_for_status()
        hook = present.get(HOOK_CHANNEL)
        if hook is not None and hook["config"]["url"] != catcher.hook_url("alerts"):
            # The inbox has another port this time.
            removed = await http.delete(f"/notification-channels/{hook['id']}")
            removed.raise_for_status()
            hook = None
        if hook is None:
            created = await http.post(
                "/notification-channels",
                json={
                    "name": HOOK_CHANNEL,
                    "kind": "webhook",
                    "config": {"url": catcher.hook_url("alerts")},
                },
            )
            created.raise_for_status()
            state.hook_secret = created.json()["secret"]
            state.save()
    catcher.trust(state.hook_secret)


@asynccontextmanager
async def plant(url: str, mqtt_port: int, state: State, directory: Path) -> AsyncIterator[None]:
    """Let a simulated pumping station send, from a process of its own, over real connections."""
    log = (directory / "simulator.log").open("ab")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "deploy.cli", "simulate", "--api", url, "--mqtt", f"127.0.0.1:{mqtt_port}"),
        *("--email", state.admin_email, "--state", str(directory / "simulator.json")),
        *("--rate", "2", "--speed", str(PLANT_SPEED), "--fault", PLANT_FAULT),
        cwd=ROOT,
        env={**os.environ, "SIMULATOR_PASSWORD": state.admin_password},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # A Ctrl-C at the terminal is for us; the plant is told when it is time.
        start_new_session=True,
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), SIMULATOR_STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        log.close()
