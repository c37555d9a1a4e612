"""ThingsBoard's gateway API (`v1/gateway/…`): one connection for the devices behind it."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from libs.common.errors import AppError, FieldError, Invalid
from services.ingest.domain.attribute import Scope
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.domain.gateway import MOST_BEHIND, NotBehind
from services.ingest.domain.payload import parse_json
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.thingsboard import decode_thingsboard
from services.ingest.protocols.mqtt.actions import SaidAside
from services.ingest.protocols.mqtt.asides import Asides
from services.ingest.protocols.mqtt.thingsboard import (
    GATEWAY,
    GATEWAY_ANSWERS,
    GATEWAY_ATTRIBUTES,
    GATEWAY_RPC,
    answer_of,
    number_of,
)
from services.ingest.usecases.downlinks import Send
from services.ingest.usecases.inlet import Inlet, after
from services.ingest.usecases.telemetry import Done

_encode = msgspec.json.Encoder().encode


class GatewayApi:
    """One connection's. Devices behind it are called, and registered, as it calls them."""

    def __init__(self, asides: Asides) -> None:
        self._asides = asides
        self._here: dict[str, tuple[Source, Send]] = {}
        """Who is connected, by what the gateway calls it, and the way to send it commands."""
        self._takes: dict[str, Callable[[SaidAside, dict[str, Any], Done], Awaitable[None]]] = {
            "connect": self._connect,
            "disconnect": self._disconnect,
            "telemetry": self._telemetry,
            "attributes": self._attributes,
            "attributes/request": self._answer_attributes,
            "rpc": self._reply,
        }

    async def take(self, said: SaidAside, done: Done) -> None:
        """Take a message of the gateway. Raises Malformed, Invalid, or NotBehind."""
        body = parse_json(said.payload)
        if not isinstance(body, dict):
            raise Invalid("a gateway's message is a JSON object")
        await self._takes[said.topic.removeprefix(GATEWAY.decode())](said, body, done)

    def leave(self, reason: str) -> None:
        """Say that nobody behind it can be heard any more."""
        for name in list(self._here):
            self._went(name, reason)

    def attributes_changed(self, device_id: UUID, values: dict[str, Any], gone: list[str]) -> None:
        """Tell a device behind it what was set for it."""
        for name, (source, _) in self._here.items():
            if source.device_id == device_id:
                changed = {**values, **({"deleted": gone} if gone else {})}
                said = _encode({"device": name, "data": changed})
                self._asides.line.tell(GATEWAY_ATTRIBUTES, said)

    async def _connect(self, said: SaidAside, body: dict[str, Any], done: Done) -> None:
        await self._inlet_of(_named(body), said.received_at)
        done()

    async def _disconnect(self, said: SaidAside, body: dict[str, Any], done: Done) -> None:
        self._went(_named(body), "disconnected by its gateway")
        done()

    async def _telemetry(self, said: SaidAside, body: dict[str, Any], done: Done) -> None:
        async def take(name: str, part: object, each: Done) -> None:
            inlet = await self._inlet_of(name, said.received_at)
            reception = self._asides.desk.reception
            reception.met(inlet.source, Protocol.MQTT, PayloadFormat.THINGSBOARD)
            payload = _encode(part)
            inlet.take(Channel.TELEMETRY, payload, said.received_at, each, decode_thingsboard)

        await self._of_each(said, body, done, take)

    async def _attributes(self, said: SaidAside, body: dict[str, Any], done: Done) -> None:
        async def take(name: str, part: object, each: Done) -> None:
            inlet = await self._inlet_of(name, said.received_at)
            inlet.take(Channel.ATTRIBUTES, _encode(part), said.received_at, each)

        await self._of_each(said, body, done, take)

    async def _of_each(
        self,
        said: SaidAside,
        body: dict[str, Any],
        done: Done,
        take: Callable[[str, object, Done], Awaitable[None]],
    ) -> None:
        """Take each device's part; what is refused of one is kept, and those of its neighbours taken."""
        if len(body) > MOST_BEHIND:
            raise Invalid(f"a message is about {MOST_BEHIND} devices at most")
        # Looked up first: what cannot be looked up now is tried again as a whole, before any is taken.
        refused: dict[str, AppError] = {}
        for name in body:
            try:
                await self._inlet_of(name, said.received_at)
            except NotBehind as error:
                refused[name] = error
        each = after(1 + len(body), done)
        for name, part in body.items():
            if name in refused:
                self._asides.refuse(refused[name], _encode({name: part}), said.received_at, each)
            else:
                await take(name, part, each)
        each()

    async def _answer_attributes(self, said: SaidAside, body: dict[str, Any], done: Done) -> None:
        """Answer `{"id": 7, "device": "A", "client": true, "key": "a"}`, or with `keys`."""
        name = _named(body)
        inlet = await self._inlet_of(name, said.received_at)
        scope = Scope.CLIENT if body.get("client") is True else Scope.SHARED
        found = (await self._asides.attributes_of(inlet.source, [scope], said.received_at))[scope]
        answer: dict[str, Any] = {"id": body.get("id"), "device": name}
        keys = body.get("keys")
        if isinstance(keys, list):
            answer["values"] = {
                key: found[key] for key in keys if isinstance(key, str) and key in found
            }
        else:
            answer["value"] = found.get(str(body.get("key")))
        self._asides.line.tell(GATEWAY_ANSWERS, _encode(answer))
        done()

    async def _reply(self, said: SaidAside, body: dict[str, Any], done: Done) -> None:
        number = body.get("id")
        if not isinstance(number, int) or number < 0:
            raise Invalid('an answer is {"device", "id", "data"}', errors=[FieldError("#/id", "")])
        inlet = await self._inlet_of(_named(body), said.received_at)
        reply = answer_of(number, _encode(body.get("data")))
        inlet.take(Channel.REPLIES, reply, said.received_at, done)

    async def _inlet_of(self, name: str, at: datetime) -> Inlet:
        """Return where a device comes in that the gateway names; from then on it is connected."""
        inlet = await self._asides.inlet_of(name, name, at)
        here = self._here.get(name)
        if here is None or here[0] is not inlet.source:
            if here is not None:
                self._went(name, "its gateway was changed")
            reception = self._asides.desk.reception
            send = partial(self._send, name)
            reception.presence.came(inlet.source, send, "connected by its gateway")
            self._here[name] = (inlet.source, send)
            reception.downlinks.attach(inlet.source, send)
        return inlet

    def _went(self, name: str, reason: str) -> None:
        here = self._here.pop(name, None)
        if here is not None:
            self._asides.desk.reception.downlinks.detach(*here)
            self._asides.desk.reception.presence.went(*here, reason)

    async def _send(self, name: str, outgoing: Outgoing) -> Delivered:
        called = {
            "id": int(number_of(outgoing.id)),
            "method": outgoing.name,
            "params": outgoing.params,
        }
        payload = _encode({"device": name, "data": called})
        return await self._asides.line.transmit(outgoing, GATEWAY_RPC, payload)


def _named(body: dict[str, Any]) -> str:
    name = body.get("device")
    if not isinstance(name, str):
        raise Invalid("the device is not named", errors=[FieldError("#/device", "a name")])
    return name
