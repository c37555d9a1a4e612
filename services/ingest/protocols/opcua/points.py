"""What a server says of its nodes, as points of the devices they belong to."""

import asyncio
from collections.abc import Mapping
from datetime import datetime

from libs.common.historian.point import Quality
from services.ingest.domain.payload import Decoded
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.protocols.health import Health
from services.ingest.protocols.native import bring
from services.ingest.protocols.opcua.items import Device, Item
from services.ingest.protocols.opcua.values import (
    OVERFLOW,
    Change,
    Unsupported,
    add_value,
    quality_of,
)
from services.ingest.usecases.reception import Reception


class Points:
    """Takes values, live or from the history, until they are durable."""

    def __init__(self, reception: Reception, health: Health) -> None:
        self._reception = reception
        self._health = health
        self._lost = 0
        """How often the server's queues were too short."""
        self._room = asyncio.Event()

    def open(self) -> None:
        """Listen for the room that the platform has; until `close`."""
        self._reception.intake.on_room.append(self._room.set)

    def close(self) -> None:
        """Listen no longer."""
        self._reception.intake.on_room.remove(self._room.set)

    async def until_there_is_room(self) -> None:
        """Wait as long as the platform has more under way than it should."""
        while self._reception.intake.is_full:
            self._room.clear()
            await self._room.wait()

    def add(self, item: Item, change: Change, decoded: Decoded) -> None:
        """Add an item's new value to what its device says, or why it is refused."""
        if change.status & OVERFLOW == OVERFLOW:
            decoded.gaps += 1
            self._lost += 1
            self._health.note(
                "queues",
                f"the server dropped values {self._lost} times, the last of {item.address}:"
                " its queue is too short",
            )
        value = change.value
        if isinstance(value, Unsupported):
            if not self._health.knows(item.address):
                self._health.note(item.address, value.reason)
                decoded.refuse(
                    0,
                    item.settings.metric,
                    "unsupported_value",
                    f"{item.address}: {value.reason}",
                    {"node": item.address},
                )
            return
        quality = quality_of(change.status)
        if value is None and quality is not Quality.BAD:
            return  # nothing was ever written there
        window = self._reception.window
        ts = change.source_us or change.server_us or decoded.received_at
        if ts < window.earliest and change.server_us is not None:
            # It has not changed since; the server says that it still holds at its own time.
            ts = change.server_us
        fault = window.disbelief(ts, ts / 1_000)
        if fault is not None:
            part = {"ts": ts / 1_000, "values": {item.settings.metric: value}}
            decoded.refuse(0, item.settings.metric, *fault, part)
            return
        add_value(
            decoded,
            item.device.source,
            item.settings.metric,
            ts,
            value,
            quality,
            item.unit,
            kind=item.kind,
        )

    async def bring(self, by_device: Mapping[Device, Decoded], now: datetime) -> None:
        """Hand over what the devices said; return when all of it is durable."""
        for device in by_device:
            self._reception.met(device.source, Protocol.OPCUA, PayloadFormat.NATIVE)
        await bring({device.inlet: decoded for device, decoded in by_device.items()}, now)
