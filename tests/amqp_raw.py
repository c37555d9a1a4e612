"""A device that writes AMQP's frames itself: what no client library would say."""

import asyncio
from typing import Self, TypeVar

from pamqp import body, commands, frame
from pamqp.heartbeat import Heartbeat

from deploy.secrets import DEVICES_HOST

F = TypeVar("F")

CHANNEL = 1
HEADER = 2
_CONTENT_TYPE, _HEADERS, _TIMESTAMP, _USER_ID = 1 << 15, 1 << 13, 1 << 6, 1 << 4


def shortstr(text: bytes) -> bytes:
    """Write a short string."""
    return bytes([len(text)]) + text


def nested(depth: int) -> bytes:
    """Write a table of headers that holds one table, which holds one, and so on."""
    table = b""
    for _ in range(depth):
        table = shortstr(b"t") + b"F" + len(table).to_bytes(4, "big") + table
    return table


class RawDevice:
    """A device with a channel and confirms, on a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""

    @classmethod
    async def connect(cls, port: int, device_id: object, token: str) -> Self:
        """Log in and open a channel. Raises ConnectionError if the broker does not want it."""
        self = cls(*await asyncio.open_connection("127.0.0.1", port))
        self._writer.write(b"AMQP\x00\x00\x09\x01")
        await self.next(commands.Connection.Start)
        response = f"\0{device_id}\0{token}"
        self.send(commands.Connection.StartOk(mechanism="PLAIN", response=response), 0)
        tune = await self.next(commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self.send(commands.Connection.Open(DEVICES_HOST), 0)
        await self.next(commands.Connection.OpenOk)
        self.send(commands.Channel.Open())
        await self.next(commands.Channel.OpenOk)
        self.send(commands.Confirm.Select())
        await self.next(commands.Confirm.SelectOk)
        return self

    def send(self, method: frame.FrameTypes, channel: int = CHANNEL) -> None:
        """Write a frame."""
        self.write(frame.marshal(method, channel))

    def write(self, frames: bytes) -> None:
        """Write what is marshalled, or never would be."""
        self._writer.write(frames)

    async def publish(
        self,
        device_id: object,
        payload: bytes,
        *,
        content_type: bytes = b"application/json",
        headers: bytes | None = None,
        timestamp: bytes | None = None,
    ) -> None:
        """Publish telemetry with properties of these bytes; return when it is confirmed.

        Raises ConnectionError, or RuntimeError if the broker closes the channel instead.
        """
        flags, properties = _CONTENT_TYPE | _USER_ID, shortstr(content_type)
        if headers is not None:
            flags |= _HEADERS
            properties += len(headers).to_bytes(4, "big") + headers
        if timestamp is not None:
            flags |= _TIMESTAMP
            properties += timestamp
        properties += shortstr(str(device_id).encode())
        content = (
            (60).to_bytes(2, "big")
            + bytes(2)
            + len(payload).to_bytes(8, "big")
            + flags.to_bytes(2, "big")
            + properties
        )
        self.send(commands.Basic.Publish(exchange="devices", routing_key=f"{device_id}.telemetry"))
        self.write(
            bytes([HEADER])
            + CHANNEL.to_bytes(2, "big")
            + len(content).to_bytes(4, "big")
            + content
            + b"\xce"
        )
        self.send(body.ContentBody(payload))
        await self.next(commands.Basic.Ack)

    async def next(self, kind: type[F]) -> F:
        """Return the next frame, which must be of this kind."""
        while True:
            while len(self._buffer) >= 7:
                size = 8 + int.from_bytes(self._buffer[3:7], "big")
                if len(self._buffer) < size:
                    break
                _, _, found = frame.unmarshal(self._buffer[:size])
                self._buffer = self._buffer[size:]
                if isinstance(found, Heartbeat):
                    continue
                if not isinstance(found, kind):
                    raise RuntimeError(f"the broker said {found!r}")
                return found
            read = await self._reader.read(65_536)
            if not read:
                raise ConnectionError("the broker closed the connection")
            self._buffer += read

    def close(self) -> None:
        """Leave."""
        self._writer.close()
