"""Values that a protocol has types for itself: handed over as points, without a payload to read."""

import asyncio
from collections.abc import Mapping
from datetime import datetime

from services.ingest.domain.channel import Channel
from services.ingest.domain.payload import Decoded, Read, Window
from services.ingest.usecases.inlet import Inlet


async def bring(taken: Mapping[Inlet, Decoded], now: datetime) -> None:
    """Hand over what devices said at one time; return when all of it is durable."""
    durable = asyncio.Event()
    waiting = len(taken)

    def done() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            durable.set()

    for inlet, decoded in taken.items():
        inlet.take(Channel.TELEMETRY, b"", now, done, already(decoded))
    if taken:
        await durable.wait()


def already(decoded: Decoded) -> Read:
    """Return a Read for what has been read."""

    def read(payload: bytes, received_at: datetime, window: Window) -> Decoded:
        # What must be registered first is read twice, and each time made to fit the device's profile.
        return decoded.copy()

    return read
