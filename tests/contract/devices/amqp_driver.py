"""A device that speaks AMQP 0-9-1, with aio-pika, to a RabbitMQ that asks ingest who it is."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, DeliveryError, ProbableAuthenticationError

from deploy.secrets import DEVICES_HOST
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


class AmqpDevice:
    """Publishes with confirms; commands from its queue."""

    name: ClassVar[str] = "amqp"
    column: ClassVar[str] = "AMQP"
    port_setting: ClassVar[str] = "amqp"
    exempt: ClassVar[Mapping[Promise, str]] = {
        Promise.DURABLE: "the broker confirms, when it is on disk in a quorum queue"
    }

    def __init__(
        self, device: Identity, connection: AbstractConnection, channel: AbstractChannel
    ) -> None:
        self._id = str(device.device_id)
        self._connection = connection
        self._channel = channel
        self._commands: asyncio.Queue[CommandSeen] = asyncio.Queue()

    @classmethod
    async def connect(cls, site: Site, device: Identity) -> Self:
        try:
            connection = await aio_pika.connect(
                host=site.host,
                port=site.port,
                login=str(device.device_id),
                password=device.token,
                virtualhost=DEVICES_HOST,
            )
        except ProbableAuthenticationError as error:
            raise NotLetIn(str(error)) from error
        channel = await connection.channel()
        self = cls(device, connection, channel)
        queue = await channel.get_queue(f"commands.{device.device_id}", ensure=False)
        await queue.consume(self._obey)
        return self

    async def _obey(self, message: AbstractIncomingMessage) -> None:
        said: dict[str, Any] = json.loads(message.body)
        self._commands.put_nowait(CommandSeen(said["id"], said["name"], said["params"]))
        await message.ack()

    async def send(self, *readings: Reading, within_s: float = 30.0) -> None:
        await self._publish("telemetry", to_json(readings), within_s)

    async def send_raw(self, payload: bytes) -> None:
        await self._publish("telemetry", payload, 10)

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
        await self._publish("replies", json.dumps(told).encode(), 30)

    async def is_cut(self) -> bool:
        return self._connection.is_closed or self._channel.is_closed

    async def close(self) -> None:
        with contextlib.suppress(AMQPError, ConnectionError):
            await self._connection.close()

    async def _publish(self, channel: str, payload: bytes, within_s: float) -> None:
        exchange = await self._channel.get_exchange("devices", ensure=False)
        message = aio_pika.Message(
            payload,
            user_id=self._id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            await exchange.publish(message, f"{self._id}.{channel}", timeout=within_s)
        except DeliveryError as error:
            raise Refused(str(error)) from error
        except (AMQPError, ConnectionError, RuntimeError) as error:
            raise Cut(str(error)) from error
        except asyncio.CancelledError as error:
            # The library says so, too, that the channel was closed.
            if not await self.is_cut():
                raise
            raise Cut("the connection is over") from error
