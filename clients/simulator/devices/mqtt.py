"""A device on a real socket, over MQTT 3.1.1 or 5 (QoS 1), by TCP or WebSocket."""

import socket
from dataclasses import dataclass
from typing import ClassVar, Literal

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from clients.simulator.devices.device import (
    ConnectionFailed,
    CredentialRefused,
    Device,
    Reading,
)

_REFUSALS = {2, 4, 5}
"""CONNACK codes that no retry changes: identifier rejected, bad credentials, not authorised."""


@dataclass
class MqttDevice(Device):
    """Publishes to `v1/devices/{id}/telemetry`; a reading is acknowledged by its PUBACK."""

    host: str = "127.0.0.1"
    port: int = 1883
    version: ClassVar[aiomqtt.ProtocolVersion] = aiomqtt.ProtocolVersion.V311
    transport: ClassVar[Literal["tcp", "websockets"]] = "tcp"

    async def _session(self) -> None:
        self._client = client = aiomqtt.Client(
            self.host,
            self.port,
            identifier=self.id,
            username=self.id,
            password=self.token,
            protocol=self.version,
            transport=self.transport,
            websocket_path="/mqtt" if self.transport == "websockets" else None,
            keepalive=30,
            timeout=self.timeout,
        )
        client.pending_calls_threshold = self.window
        opened = _opened_by(client)
        try:
            async with client:
                self._connected()
                topic = f"v1/devices/{self.id}/commands"
                await self._forward_beside(self._listen(), client.subscribe(topic, qos=1))
        except MqttConnectError as error:
            code = _connack_code(error)
            if code in _REFUSALS:
                raise CredentialRefused(str(error)) from error
            raise ConnectionFailed(str(error)) from error
        except aiomqtt.MqttError as error:
            raise ConnectionFailed(str(error)) from error
        finally:
            if not self.is_connected:
                # aiomqtt forgets its socket and its housekeeping when connecting fails half-way.
                client._client.disconnect()
                if client._client.socket() is None:
                    # Paho never had it: the WebSocket's handshake failed.
                    for connection in opened:
                        connection.close()

    async def _listen(self) -> None:
        async for message in self._client.messages:
            reply = self.obey(message.payload)
            if reply is not None:
                await self._client.publish(f"v1/devices/{self.id}/replies", reply, qos=1)

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        await self._client.publish(f"v1/devices/{self.id}/telemetry", reading.body(), qos=1)
        self._acknowledge(reading)


class Mqtt5Device(MqttDevice):
    """The same by MQTT 5."""

    version = aiomqtt.ProtocolVersion.V5


class WebSocketDevice(MqttDevice):
    """The same by MQTT 3.1.1 over WebSocket, at `/mqtt`."""

    transport = "websockets"


def _opened_by(client: aiomqtt.Client) -> list[socket.socket]:
    """Return a list of all sockets that a client opens."""
    opened: list[socket.socket] = []
    paho = client._client
    connect = paho._create_socket_connection

    def remembered() -> socket.socket:
        opened.append(connect())
        return opened[-1]

    setattr(paho, "_create_socket_connection", remembered)  # noqa: B010 - mypy lets no method be replaced
    return opened


def _connack_code(error: MqttConnectError) -> int | None:
    """Return the code of MQTT 3.1.1; paho translates it to that of MQTT 5."""
    rc = error.rc
    code = rc if isinstance(rc, int) or rc is None else int(rc.value)
    return {133: 2, 134: 4, 135: 5}.get(code, code) if code is not None else None
