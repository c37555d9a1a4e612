"""A device that publishes to the platform's RabbitMQ for devices, over AMQP 0-9-1."""

import asyncio
import contextlib
from dataclasses import dataclass

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.connection import make_url
from aio_pika.exceptions import (
    AMQPError,
    DeliveryError,
    ProbableAuthenticationError,
)

from clients.simulator.devices.device import (
    ConnectionFailed,
    CredentialRefused,
    Device,
    Reading,
)

_GOODBYE_S = 1.0
_BROKEN = (AMQPError, OSError, TimeoutError, RuntimeError)


@dataclass
class AmqpDevice(Device):
    """Publishes to the exchange `devices`; a reading is acknowledged by the broker's confirm."""

    host: str = "127.0.0.1"
    port: int = 5672

    async def _session(self) -> None:
        connection = aio_pika.Connection(
            make_url(
                host=self.host,
                port=self.port,
                login=self.id,
                password=self.token,
                virtualhost="devices",
            )
        )
        try:
            await connection.connect(timeout=self.timeout)
            async with asyncio.timeout(self.timeout):
                channel = await connection.channel()
                self._exchange = await channel.get_exchange("devices", ensure=False)
                commands = await channel.get_queue(f"commands.{self.id}", ensure=False)
            self._connected()
            await self._forward_beside(self._listen(commands), _until_lost(channel))
        except ProbableAuthenticationError as error:
            raise CredentialRefused(str(error)) from error
        except _BROKEN as error:
            raise ConnectionFailed(f"{type(error).__name__} {error}".strip()) from error
        finally:
            try:
                # A broker that says nothing any more does not answer a goodbye either.
                with contextlib.suppress(*_BROKEN):
                    async with asyncio.timeout(_GOODBYE_S):
                        await connection.close()
            finally:
                # Cut short, it has let go of the socket and must only be told that it is closed.
                await connection.close()

    async def _listen(self, commands: AbstractQueue) -> None:
        # Not by the queue's iterator, whose end waits for the broker, for ever if it says nothing.
        heard: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await commands.consume(heard.put, timeout=self.timeout)
        while True:
            await self._obey(await heard.get())

    async def _obey(self, message: AbstractIncomingMessage) -> None:
        reply = self.obey(message.body)
        if reply is not None:
            await self._publish("replies", reply)
        # Only now: a command whose reply was lost comes again.
        await message.ack()

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        try:
            await self._publish("telemetry", reading.body())
        except DeliveryError as error:
            raise ConnectionFailed(f"the broker takes no more: {error}") from error
        self._acknowledge(reading)

    async def _publish(self, channel: str, body: bytes) -> None:
        message = aio_pika.Message(
            body,
            user_id=self.id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            await self._exchange.publish(message, f"{self.id}.{channel}", timeout=self.timeout)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The library says so that the connection was closed.
            raise ConnectionFailed("the broker closed the connection") from error


async def _until_lost(channel: AbstractChannel) -> None:
    await channel.closed()
    raise ConnectionFailed("the broker closed the connection")
