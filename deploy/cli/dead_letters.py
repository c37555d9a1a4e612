"""The dead letters of devices that speak AMQP: looked at, put back, thrown away.

They lie in the queue `devices.dead` of the devices' broker, all tenants' in one: this is for who
operates the platform.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiormq import Connection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPError, ChannelPreconditionFailed
from pamqp.commands import Basic

from libs.common.bus.rabbit_envelope import PERSISTENT
from services.ingest.domain.broker_access import EXCHANGE
from services.ingest.protocols.amqp import DEAD
from services.ingest.protocols.amqp_deliveries import Delivery, DeliveryTransport

MOST_LOOKED_AT = 10_000
"""Dead letters in our hands at once; the oldest."""
WITHIN_S = 30.0
MOST_BYTES = 1024 * 1024
"""Of a letter's body. No broker of devices takes more, by our configuration."""


class BrokerRefused(Exception):
    """The broker cannot be reached, or does not do as it is told."""


async def dead_letters(url: str, most: int, device: str | None) -> list[Delivery]:
    """Return the oldest dead letters, of one device alone if it is named; they stay where they are."""
    async with _letters(url, device) as (_, letters):
        return letters[:most]


async def replay(url: str, most: int, device: str | None) -> int:
    """Put the oldest dead letters back, as their devices sent them; return how many.

    A letter is removed when the broker has its successor on disk. Those that are nobody's still
    come back here.
    """

    async def put_back(channel: AbstractChannel, letter: Delivery) -> None:
        await channel.basic_publish(
            letter.body,
            exchange=EXCHANGE,
            routing_key=letter.routing_key,
            properties=Basic.Properties(
                content_type=letter.content_type,
                delivery_mode=PERSISTENT,
                user_id=letter.user_id,
            ),
            mandatory=True,
        )

    return await _each(url, most, device, put_back)


async def discard(url: str, most: int, device: str | None) -> int:
    """Throw the oldest dead letters away; return how many."""

    async def nothing(_: AbstractChannel, __: Delivery) -> None:
        """It is gone when it is acknowledged."""

    return await _each(url, most, device, nothing)


async def _each(
    url: str,
    most: int,
    device: str | None,
    do: Callable[[AbstractChannel, Delivery], Awaitable[None]],
) -> int:
    done = 0
    async with _letters(url, device) as (channel, letters):
        for letter in letters[:most]:
            await do(channel, letter)
            await channel.basic_ack(letter.tag)
            done += 1
    return done


@asynccontextmanager
async def _letters(
    url: str, device: str | None
) -> AsyncIterator[tuple[AbstractChannel, list[Delivery]]]:
    """Hold the dead letters; those that are not acknowledged go back to their places."""
    letters: list[Delivery] = []
    came = asyncio.Event()

    def take(letter: Delivery) -> None:
        letters.append(letter)
        came.set()

    connection = Connection(url, transport_factory=DeliveryTransport(take, MOST_BYTES))
    try:
        async with asyncio.timeout(WITHIN_S):
            await connection.connect()
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            queue = await channel.queue_declare(DEAD, passive=True)
            expected = min(queue.message_count or 0, MOST_LOOKED_AT)
            await channel.basic_qos(prefetch_count=MOST_LOOKED_AT)
            await channel.basic_consume(DEAD, _taken_already)
            while len(letters) < expected:
                came.clear()
                await came.wait()
        wanted = [
            letter
            for letter in letters
            if device is None or letter.routing_key.partition(".")[0] == device
        ]
        yield channel, wanted
    except ChannelPreconditionFailed as error:
        message = f"{error} (to put letters back the user needs the tag `impersonator`)"
        raise BrokerRefused(message) from error
    except TimeoutError as error:
        raise BrokerRefused("the broker did not answer in time") from error
    except (AMQPError, OSError) as error:
        raise BrokerRefused(f"{type(error).__name__} {error}".strip()) from error
    finally:
        with contextlib.suppress(AMQPError, OSError, RuntimeError, AttributeError):
            await connection.close()


async def _taken_already(_: object) -> None:
    """What the library does with a delivery: none comes so far."""
