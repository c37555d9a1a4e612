"""Devices that speak MQTT, with Eclipse Paho (through aiomqtt)."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from tests.contract.devices.driver import (
    CommandSeen,
    Cut,
    Identity,
    NotLetIn,
    Promise,
    Reading,
    Site,
    to_json,
    what_became,
)

LARGE = 200_000
"""Bytes of a message that is larger than an endpoint may take."""


class MqttDevice:
    """MQTT 3.1.1 over TCP."""

    name: ClassVar[str] = "mqtt"
    column: ClassVar[str] = "MQTT endpoint"
    port_setting: ClassVar[str] = "mqtt_port"
    exempt: ClassVar[Mapping[Promise, str]] = {}
    version: ClassVar[aiomqtt.ProtocolVersion] = aiomqtt.ProtocolVersion.V311
    transport: ClassVar[Literal["tcp", "websockets", "unix"]] = "tcp"

    def __init__(self, client: aiomqtt.Client, device: Identity) -> None:
        self._client = client
        self._topic = f"v1/devices/{device.device_id}"
        self._commands: asyncio.Queue[CommandSeen] = asyncio.Queue()
        self._over = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._open = contextlib.AsyncExitStack()

    @classmethod
    async def connect(cls, site: Site, device: Identity) -> Self:
        client = aiomqtt.Client(
            hostname=site.host,
            port=site.port,
            identifier=str(device.device_id),
            username=str(device.device_id),
            password=device.token,
            protocol=cls.version,
            transport=cls.transport,
            websocket_path="/mqtt" if cls.transport == "websockets" else None,
            timeout=30,
        )
        self = cls(client, device)
        try:
            await self._open.enter_async_context(client)
        except MqttConnectError as error:
            raise NotLetIn(str(error)) from error
        except aiomqtt.MqttError as error:
            raise Cut(str(error)) from error
        await client.subscribe(f"{self._topic}/commands", qos=1)
        self._listener = asyncio.create_task(self._listen())
        return self

    async def send(self, *readings: Reading, within_s: float = 30.0) -> None:
        await self._publish("telemetry", to_json(readings), within_s=within_s)

    async def send_raw(self, payload: bytes) -> None:
        # Over WebSocket, Paho never learns that it was cut off while it was writing.
        await self._publish("telemetry", payload, within_s=10 if len(payload) < LARGE else 2)

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
        told = {"id": command.id} | what_became(status, result, error)
        await self._publish("replies", json.dumps(told).encode())

    async def is_cut(self) -> bool:
        return self._over.is_set()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        self._client.timeout = 1.0  # of the goodbye, which who was cut off unknowingly waits for
        with contextlib.suppress(aiomqtt.MqttError):
            await self._open.aclose()

    async def _publish(self, channel: str, payload: bytes, within_s: float = 30.0) -> None:
        sent = asyncio.create_task(
            self._client.publish(f"{self._topic}/{channel}", payload, qos=1, timeout=within_s + 1)
        )
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({sent, over}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if sent.done() and sent.exception() is None:
                return
            if self._over.is_set() or sent.done():
                raise Cut("the connection is over")
            raise TimeoutError
        finally:
            for task in (sent, over):
                task.cancel()
            await asyncio.gather(sent, over, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            async for message in self._client.messages:
                assert isinstance(message.payload, bytes)
                said: dict[str, Any] = json.loads(message.payload)
                self._commands.put_nowait(CommandSeen(said["id"], said["name"], said["params"]))
        except aiomqtt.MqttError:
            self._over.set()


class WebSocketDevice(MqttDevice):
    """MQTT 3.1.1 over WebSocket."""

    name: ClassVar[str] = "mqtt-websocket"
    port_setting: ClassVar[str] = "mqtt_websocket_port"
    transport: ClassVar[Literal["tcp", "websockets", "unix"]] = "websockets"


class Mqtt5Device(MqttDevice):
    """MQTT 5 over TCP."""

    name: ClassVar[str] = "mqtt5"
    version: ClassVar[aiomqtt.ProtocolVersion] = aiomqtt.ProtocolVersion.V5
