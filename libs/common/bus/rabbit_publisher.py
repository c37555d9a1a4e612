"""Publishing with confirms: what this returns from is on disk in every queue that wanted it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiormq import Channel
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from libs.common.bus.rabbit_link import BROKEN, Link, closing_is_an_error
from libs.common.errors import Unavailable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A body with its address."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes


class Publisher:
    """One confirming channel of aiormq, which is under aio-pika; opened again whenever it closes."""

    def __init__(self, link: Link, *, timeout_s: float, max_in_flight: int) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_in_flight)
        self._channel: Channel | None = None
        self._opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._channel is not None and not self._channel.is_closed

    async def keep_open(self) -> None:
        """Open the channel and, whenever it has closed, another; runs until cancelled."""
        await self._link.keep_channel(self._open)

    async def wait_open(self) -> None:
        """Wait until the first channel is open."""
        await self._opened.wait()

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Return when all are confirmed; otherwise raise Unavailable (some may have arrived)."""
        channel = self._channel
        if channel is None or channel.is_closed:
            raise Unavailable("the event bus cannot be reached", retry_after_s=1)
        try:
            async with asyncio.timeout(self._timeout_s):
                # Returns at once unless the broker has blocked its publishers (memory, disk).
                await channel.connection.ready()
                if len(parcels) == 1:
                    with closing_is_an_error():
                        await self._send(channel, parcels[0])
                    return
                results = await asyncio.gather(
                    *[self._send(channel, parcel) for parcel in parcels], return_exceptions=True
                )
            with closing_is_an_error():
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
        except TimeoutError:
            log.warning("the broker did not confirm in time", seconds=self._timeout_s)
            raise Unavailable("the event bus did not confirm in time", retry_after_s=5) from None
        except PublishError as error:
            raise Unavailable("the event bus has no queue for this", retry_after_s=5) from error
        except DeliveryError as error:
            raise Unavailable("the event bus is full", retry_after_s=5) from error
        except BROKEN as error:
            raise Unavailable("the event bus was lost", retry_after_s=1) from error

    async def _open(self, connection: AbstractConnection) -> AbstractChannel:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        assert isinstance(channel, Channel)
        self._channel = channel
        self._opened.set()
        return channel

    async def _send(self, channel: Channel, parcel: Parcel) -> None:
        async with self._slots:
            await channel.basic_publish(
                parcel.body,
                exchange=parcel.exchange,
                routing_key=parcel.routing_key,
                properties=parcel.properties,
                mandatory=True,
                wait=False,
            )
