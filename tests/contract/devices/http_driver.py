"""A device that posts over HTTP, with a stock client over real sockets."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import httpx2

from tests.contract.devices.driver import (
    CommandSeen,
    Cut,
    Identity,
    NotLetIn,
    Promise,
    Reading,
    Refused,
    Site,
    to_json,
    what_became,
)

TELEMETRY = "/api/v1/telemetry"
COMMANDS = "/api/v1/devices/me/commands"


class HttpDevice:
    """Posts telemetry and asks for its commands, over one kept connection."""

    name: ClassVar[str] = "http"
    column: ClassVar[str] = "HTTP"
    port_setting: ClassVar[str] = "http"
    exempt: ClassVar[Mapping[Promise, str]] = {}

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._waiting: list[CommandSeen] = []

    @classmethod
    async def connect(cls, site: Site, device: Identity) -> Self:
        self = cls(
            httpx2.AsyncClient(
                base_url=f"http://{site.host}:{site.port}",
                headers={"authorization": f"Bearer {device.token}"},
                timeout=60,
            )
        )
        # HTTP has no login: an empty message is one that stores nothing.
        answer = await self._post(b'{"values": {}}')
        if answer.status_code in (401, 403):
            await self.close()
            raise NotLetIn(answer.text)
        if answer.status_code == 202 and not await self._speaks_for(device):
            await self.close()
            raise NotLetIn("the token is another device's")
        return self

    async def send(self, *readings: Reading, within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            await self._settle(to_json(readings))

    async def send_raw(self, payload: bytes) -> None:
        await self._settle(payload)

    async def next_command(self) -> CommandSeen:
        async with asyncio.timeout(15):
            while not self._waiting:
                answer = await self._client.get(COMMANDS, params={"wait": 10})
                assert answer.status_code == 200, answer.text
                listed: list[dict[str, Any]] = answer.json()["items"]
                self._waiting += [CommandSeen(c["id"], c["name"], c["params"]) for c in listed]
        return self._waiting.pop(0)

    async def reply(
        self,
        command: CommandSeen,
        status: str,
        *,
        result: object = None,
        error: str | None = None,
    ) -> None:
        answer = await self._client.post(
            f"{COMMANDS}/{command.id}/reply", json=what_became(status, result, error)
        )
        assert answer.is_success, answer.text

    async def is_cut(self) -> bool:
        return (await self._post(b'{"values": {}}')).status_code == 401

    async def close(self) -> None:
        await self._client.aclose()

    async def _settle(self, payload: bytes) -> None:
        """Post until there is an answer that says what became of it."""
        while True:
            try:
                answer = await self._post(payload)
            except httpx2.TransportError as error:
                raise Cut(str(error)) from error
            if answer.status_code == 202:
                return
            if answer.status_code in (401, 403):
                raise Cut(answer.text)
            if answer.status_code not in (429, 503):
                raise Refused(f"{answer.status_code}: {answer.text}")
            await asyncio.sleep(min(1.0, float(answer.headers.get("retry-after", 1))))

    async def _post(self, payload: bytes) -> httpx2.Response:
        return await self._client.post(
            TELEMETRY, content=payload, headers={"content-type": "application/json"}
        )

    async def _speaks_for(self, device: Identity) -> bool:
        """Whether the token may speak in this device's name: over HTTP a device need not name itself."""
        named = f'[{{"device_id": "{device.device_id}", "values": {{}}}}]'
        return (await self._post(named.encode())).status_code == 202
