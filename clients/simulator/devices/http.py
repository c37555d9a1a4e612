"""A device that posts its readings and asks for its commands, over HTTP."""

import asyncio
import ssl
from dataclasses import dataclass
from functools import cache

import httpx2
import msgspec

from clients.simulator.devices.device import (
    ConnectionFailed,
    CredentialRefused,
    Device,
    Reading,
)

_COMMANDS = "/api/v1/devices/me/commands"
_JSON = {"content-type": "application/json"}
_SHORTEST_POLL_S = 1.0
KEPT_ALIVE_S = 3.0
"""Shorter than the platform keeps a connection (5 s): else one would be used just as it is closed."""


class _Receipt(msgspec.Struct):
    """How the platform answers a reading: how many of its values it took."""

    accepted: int
    rejected: int | list[msgspec.Raw] = 0


class _Commands(msgspec.Struct):
    items: list[msgspec.Raw]


@dataclass
class HttpDevice(Device):
    """Posts to `/api/v1/telemetry` with its token; a reading is acknowledged by 202.

    Beside that it waits for commands in one long poll after the other.
    """

    url: str = "http://127.0.0.1:8000"
    window: int = 4
    poll: int = 30
    """Seconds that the platform may take to say that there is no command; 50 at most."""

    async def _session(self) -> None:
        async with httpx2.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.token}"},
            timeout=self.timeout,
            trust_env=False,
            verify=_trust(),
            limits=httpx2.Limits(keepalive_expiry=KEPT_ALIVE_S),
        ) as self._client:
            if self.on_command is None:
                await self._forward()
            else:
                await self._forward_beside(self._listen())

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        response = await self._ask("POST", "/api/v1/telemetry", reading.body())
        if response.status_code in (400, 413, 415, 422):
            self._connected()
            self._reject(reading, f"HTTP {response.status_code} {response.text[:200]}")
        elif response.status_code == 202:
            self._connected()
            receipt = msgspec.json.decode(response.content, type=_Receipt)
            if receipt.accepted or not receipt.rejected:
                self._acknowledge(reading)
            else:
                self._reject(reading, response.text[:200])
        else:
            raise _not_served(response)

    async def _listen(self) -> None:
        """Ask for commands, do them and answer, for ever; the first question is answered soon."""
        loop = asyncio.get_running_loop()
        wait = 1
        while True:
            asked = loop.time()
            response = await self._ask("GET", f"{_COMMANDS}?wait={wait}", within=wait)
            if response.status_code != 200:
                raise _not_served(response)
            self._connected()
            commands = msgspec.json.decode(response.content, type=_Commands).items
            for command in commands:
                await self._answer(bytes(command))
            if not commands:
                # Another who asks with our token ends our question, as we end theirs.
                await asyncio.sleep(asked + _SHORTEST_POLL_S - loop.time())
            wait = self.poll

    async def _answer(self, command: bytes) -> None:
        reply = self.obey(command)
        if reply is None:
            return
        said: dict[str, object] = msgspec.json.decode(reply)
        path = f"{_COMMANDS}/{said.pop('id')}/reply"
        response = await self._ask("POST", path, msgspec.json.encode(said))
        # What is refused (the command's time is over, say) would be refused again.
        if response.status_code >= 500 or response.status_code == 429:
            raise _not_served(response)

    async def _ask(
        self, method: str, path: str, body: bytes | None = None, *, within: float = 0.0
    ) -> httpx2.Response:
        """Return the answer, given `within` seconds more than usual; 401 and 403 end the device."""
        try:
            response = await self._client.request(
                method,
                path,
                content=body,
                headers=_JSON if body else None,
                timeout=self.timeout + within,
            )
        except httpx2.TransportError as error:
            raise ConnectionFailed(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in (401, 403):
            raise CredentialRefused(f"HTTP {response.status_code}")
        return response


@cache
def _trust() -> ssl.SSLContext:
    """Return whom all devices trust: read once, since the list takes 25 ms and 800 kB."""
    return httpx2.create_ssl_context(trust_env=False)


def _not_served(response: httpx2.Response) -> ConnectionFailed:
    wait = response.headers.get("retry-after", "")
    return ConnectionFailed(
        f"HTTP {response.status_code}", float(wait) if wait.isdecimal() else 0.0
    )
