"""A device that speaks CoAP, with aiocoap."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self
from uuid import uuid4

import aiocoap
from aiocoap.error import Error, NotObservable
from aiocoap.numbers import Code

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
from tests.waiting import until

JSON = 50


class CoapDevice:
    """Plain CoAP over UDP; commands by Observe."""

    name: ClassVar[str] = "coap"
    column: ClassVar[str] = "CoAP"
    port_setting: ClassVar[str] = "coap_port"
    exempt: ClassVar[Mapping[Promise, str]] = {}

    def __init__(self, context: aiocoap.Context, base: str) -> None:
        self._context = context
        self._base = base
        self._commands: asyncio.Queue[CommandSeen] = asyncio.Queue()
        self._over = asyncio.Event()
        self._is_closed = False
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, site: Site, device: Identity) -> Self:
        if site.headers:
            allowed = await site.http.put(
                "/api/v1/devices/policy", json={"plain_coap": True}, headers=site.headers
            )
            assert allowed.status_code == 200, allowed.text
        context = await aiocoap.Context.create_client_context(transports=["simple6"])
        self = cls(context, f"coap://{site.host}:{site.port}/v1/{device.token}")
        try:
            async with asyncio.timeout(10):
                await until(self._observe, "the policy has reached the endpoint")
            if site.headers and not await self._is(device, site):
                raise NotLetIn("the token is another device's")
        except BaseException:
            # A socket that stays open would keep the event loop from ending.
            await self.close()
            raise
        return self

    async def send(self, *readings: Reading, within_s: float = 30.0) -> None:
        await self._post("telemetry", to_json(readings), within_s)

    async def send_raw(self, payload: bytes) -> None:
        await self._post("telemetry", payload, 10)

    async def next_command(self) -> CommandSeen:
        return await asyncio.wait_for(self._commands.get(), 15)

    async def reply(
        self,
        command: CommandSeen,
        status: str,
        *,
        result: object = None,
        error: str | None = None,
    ) -> None:
        told = json.dumps(what_became(status, result, error)).encode()
        await self._post(f"commands/{command.id}/reply", told, 30)

    async def is_cut(self) -> bool:
        return self._over.is_set()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._context.shutdown()

    async def _post(self, path: str, payload: bytes, within_s: float) -> None:
        message = aiocoap.Message(
            code=Code.POST, uri=f"{self._base}/{path}", payload=payload, content_format=JSON
        )
        try:
            answer = await asyncio.wait_for(self._context.request(message).response, within_s)
        except Error as error:
            raise Cut(str(error)) from error
        if answer.code is Code.UNAUTHORIZED:
            self._over.set()
            raise Cut(answer.payload.decode())
        if answer.code is Code.SERVICE_UNAVAILABLE:
            raise TimeoutError(answer.payload.decode())
        if not answer.code.is_successful():
            raise Refused(f"{answer.code}: {answer.payload.decode()}")

    async def _is(self, device: Identity, site: Site) -> bool:
        """Whether the token is this device's: over CoAP a device does not name itself."""
        word = str(uuid4())
        said = json.dumps({"status": "online", "reason": word}).encode()
        await self._post("status", said, 30)
        found = await site.http.get(f"/api/v1/devices/{device.device_id}", headers=site.headers)
        return found.status_code == 200 and found.json()["status_reason"] == word

    async def _observe(self) -> bool:
        """Observe the commands; False if that is not allowed yet. Raises NotLetIn."""
        message = aiocoap.Message(code=Code.GET, observe=0, uri=f"{self._base}/commands")
        request = self._context.request(message)
        try:
            answer = await request.response
        except Error as error:
            raise Cut(str(error)) from error
        if answer.code is Code.UNAUTHORIZED and b"plain CoAP" in answer.payload:
            return False
        if not answer.code.is_successful():
            raise NotLetIn(f"{answer.code}: {answer.payload.decode()}")
        self._listener = asyncio.create_task(self._listen(request))
        return True

    async def _listen(self, request: Any) -> None:
        try:
            async for message in request.observation:
                if not message.code.is_successful():
                    break
                said: dict[str, Any] = json.loads(message.payload)
                self._commands.put_nowait(CommandSeen(said["id"], said["name"], said["params"]))
        except (Error, NotObservable):
            pass
        self._over.set()
