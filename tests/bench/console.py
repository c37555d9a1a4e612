"""A console that shows live values: somebody logged in, with a WebSocket through the gateway."""

import asyncio
import contextlib
import json
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from types import TracebackType
from uuid import UUID

import httpx2
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from tests.bench.generator import METRICS

ANSWER_S = 30.0


class _Point(msgspec.Struct):
    device_id: UUID
    metric: str
    ts: datetime


class _Frame(msgspec.Struct):
    type: str
    points: list[_Point] = []


_read_frame = msgspec.json.Decoder(_Frame).decode


class Console:
    """One user. `seen` says when the first frame with a message's points was here.

    A message is known by its device and its `ts` in ms; the time is seconds since 1970 UTC.
    """

    def __init__(self, url: str, email: str, password: str) -> None:
        self._credentials = {"email": email, "password": password}
        self._address = url.replace("http", "ws", 1) + "/api/v1/ws"
        self._http = httpx2.AsyncClient(
            base_url=f"{url}/api/v1/auth", trust_env=False, timeout=ANSWER_S
        )
        self._stack = contextlib.AsyncExitStack()
        self._reading: asyncio.Task[None] | None = None
        self.seen: dict[tuple[UUID, int], float] = {}

    async def __aenter__(self) -> "Console":
        await self._stack.enter_async_context(self._http)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._stack.aclose()

    async def log_in(self) -> UUID:
        """Log in and return the id of the tenant one is in then."""
        answer = await self._http.post("/login", json=self._credentials)
        token = answer.raise_for_status().json()["access_token"]
        self._http.headers["authorization"] = f"Bearer {token}"
        me = await self._http.get("/me")
        return UUID(me.raise_for_status().json()["tenant_id"])

    async def watch(self, device_ids: Sequence[UUID]) -> None:
        """Open the live connection and subscribe to the telemetry of these devices."""
        ticket = (await self._http.post("/ws-ticket")).raise_for_status().json()["ticket"]
        socket = await self._stack.enter_async_context(
            connect(f"{self._address}?ticket={ticket}", proxy=None, max_size=None)
        )
        wish = {"devices": [str(i) for i in device_ids], "types": ["telemetry_update"]}
        await socket.send(json.dumps({"subscribe": wish}))
        async with asyncio.timeout(ANSWER_S):
            while _read_frame(await socket.recv()).type != "subscribed":
                pass
        self._reading = asyncio.create_task(self._read(socket), name="console")

    def check(self) -> None:
        """Raise what ended the live connection, if anything has."""
        if self._reading is not None and self._reading.done():
            self._reading.result()

    def missing(self, due: Collection[tuple[UUID, int]]) -> int:
        """Return how many of these messages were not shown yet. Raises as `check` does."""
        self.check()
        return sum(message not in self.seen for message in due)

    async def _read(self, socket: ClientConnection) -> None:
        while True:
            frame = await socket.recv()
            now = time.time()
            for point in _read_frame(frame).points:
                # A message's points travel together: one of them stands for all.
                if point.metric == METRICS[0]:
                    self.seen.setdefault((point.device_id, round(point.ts.timestamp() * 1000)), now)
