"""A device that posts its readings and observes its commands, over CoAP."""

import asyncio
from dataclasses import dataclass
from typing import Any

import aiocoap
import msgspec
from aiocoap.error import Error
from aiocoap.numbers import Code
from aiocoap.util import hostportjoin

from clients.simulator.devices.device import (
    ConnectionFailed,
    CredentialRefused,
    Device,
    Reading,
)

_JSON = 50
_NEVER_TAKEN = {
    Code.BAD_REQUEST,
    Code.REQUEST_ENTITY_TOO_LARGE,
    Code.UNSUPPORTED_CONTENT_FORMAT,
}


class _Receipt(msgspec.Struct):
    """What 2.04 says when not all of a message was taken."""

    rejected: int = 0


@dataclass
class CoapDevice(Device):
    """Posts to `/v1/{token}/telemetry`, confirmable; a reading is acknowledged by 2.04.

    Plain CoAP: the tenant must allow it. Commands come as notifications of `/v1/{token}/commands`.
    """

    host: str = "127.0.0.1"
    port: int = 5683
    window: int = 1
    """NSTART (RFC 7252, 4.7): the next message leaves when the one before is answered."""
    observe_again: float = 60.0
    """Seconds after which it observes anew: nothing tells it that the platform was restarted."""

    async def _session(self) -> None:
        self._context = await aiocoap.Context.create_client_context(transports=["simple6"])
        try:
            # One request before all others: two at once would open two sockets, and aiocoap closes one.
            first = await self._observe()
            await self._forward_beside(self._obey_for_ever(first))
        except (Error, OSError) as error:
            raise ConnectionFailed(f"{type(error).__name__} {error}".strip()) from error
        except TimeoutError as error:
            raise ConnectionFailed(f"no answer within {self.timeout:g} s") from error
        finally:
            await self._context.shutdown()

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        answer = await self._post("telemetry", reading.body())
        if answer.code in _NEVER_TAKEN:
            self._reject(reading, _told(answer))
            return
        self._check(answer)
        receipt = msgspec.json.decode(answer.payload or b"{}", type=_Receipt)
        if receipt.rejected and receipt.rejected >= len(reading.values):
            self._reject(reading, _told(answer))
        else:
            self._acknowledge(reading)

    async def _observe(self) -> Any:
        request = self._context.request(self._message(Code.GET, "commands", observe=0))
        async with asyncio.timeout(self.timeout):
            self._check(await request.response)
        return request.observation

    async def _obey_for_ever(self, observation: Any) -> None:
        while True:
            try:
                async with asyncio.timeout(self.observe_again):
                    async for notification in observation:
                        self._check(notification)
                        await self._answer(notification.payload)
                raise ConnectionFailed("the platform ended the observation")
            except TimeoutError:
                pass  # it was silent for long
            finally:
                if not observation.cancelled:
                    observation.cancel()
            observation = await self._observe()

    async def _answer(self, command: bytes) -> None:
        if not command:
            return  # nothing waits
        reply = self.obey(command)
        if reply is not None:
            self._check(await self._post("replies", reply))

    async def _post(self, path: str, payload: bytes) -> aiocoap.Message:
        message = self._message(Code.POST, path, payload=payload, content_format=_JSON)
        async with asyncio.timeout(self.timeout):
            return await self._context.request(message).response

    def _message(self, code: Code, path: str, **parts: object) -> aiocoap.Message:
        uri = f"coap://{hostportjoin(self.host, self.port)}/v1/{self.token}/{path}"
        return aiocoap.Message(code=code, uri=uri, **parts)

    def _check(self, answer: aiocoap.Message) -> None:
        """Raise what an answer means that is no success."""
        if answer.code in (Code.UNAUTHORIZED, Code.FORBIDDEN):
            raise CredentialRefused(_told(answer))
        if not answer.code.is_successful():
            raise ConnectionFailed(_told(answer), float(answer.opt.max_age or 0))
        self._connected()


def _told(answer: aiocoap.Message) -> str:
    return f"{answer.code} {answer.payload.decode(errors='replace')}".strip()
