"""The alarms of a server that go on: what its events say of them, and its conditions after an outage."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from asyncua import ua
from asyncua.client.ua_session import UaSession

from services.ingest.domain.channel import Channel
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.alarms import (
    REFRESH_END,
    REFRESH_START,
    Alarm,
    alarm_of,
    kind_of,
)
from services.ingest.protocols.opcua.connection import said
from services.ingest.protocols.opcua.items import Device, Items
from services.ingest.protocols.opcua.progress import Progress
from services.ingest.protocols.opcua.site import OpcUaSettings
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

MOST_SOURCES = 1_000
"""Names of sources that are looked up."""


class Conditions:
    """Makes a server's events alarms of the devices that their sources are named after."""

    def __init__(
        self,
        session: UaSession,
        settings: OpcUaSettings,
        label: str,
        reception: Reception,
        items: Items,
        progress: Progress,
        health: Health,
    ) -> None:
        """`label` is what the connector is called where a device is said to be connected by it."""
        self._session = session
        self._settings = settings
        self._label = label
        self._reception = reception
        self._items = items
        self._progress = progress
        self._health = health
        self._refreshed: set[tuple[str, str]] | None = None
        """Those that the server has named since it began to name all."""
        self._sources: dict[str, Device | None] = {}
        self._turn = asyncio.Lock()

    async def refresh(self, subscription: int) -> None:
        """Have the server name the alarms that go on, as far as it can."""
        request = ua.CallMethodRequest()
        request.ObjectId = ua.NodeId(ua.ObjectIds.ConditionType)
        request.MethodId = ua.NodeId(ua.ObjectIds.ConditionType_ConditionRefresh)
        request.InputArguments = [ua.Variant(subscription, ua.VariantType.UInt32)]
        try:
            (result,) = await self._session.call([request])
            result.StatusCode.check()
        except ua.UaStatusCodeError as error:
            log.info("a server does not name its alarms anew", error=said(error))

    async def take(self, events: Sequence[list[Any]]) -> None:
        """Hand over what events with these fields say, in their order; return when it is safe."""
        waiting = []
        async with self._turn:
            for fields in events:
                kind = kind_of(fields)
                if kind == REFRESH_START:
                    self._refreshed = set()
                elif kind == REFRESH_END:
                    waiting += await self._end_unnamed()
                elif (alarm := alarm_of(fields)) is not None:
                    waiting += await self._report(alarm)
        for durable in waiting:
            await durable.wait()

    async def _report(self, alarm: Alarm) -> list[asyncio.Event]:
        about, progress = (alarm.source, alarm.key), self._progress
        if self._refreshed is not None:
            self._refreshed.add(about)
        if not alarm.is_active and about not in progress.alarms and self._refreshed is not None:
            return []  # over before, and known to be
        device = await self._source_of(alarm.source)
        if device is None:
            return []
        durable = asyncio.Event()

        def done() -> None:
            # Not before: if we are killed, its end must be missed by who comes after us.
            if alarm.is_active:
                progress.begins(*about)
            else:
                progress.ends(*about)
            durable.set()

        self._reception.met(device.source, Protocol.OPCUA, PayloadFormat.NATIVE)
        device.inlet.take(Channel.ALERTS, alarm.payload(), self._reception.clock.now(), done)
        return [durable]

    async def _end_unnamed(self) -> list[asyncio.Event]:
        """The server has named all that goes on: what it did not name has ended while we were away."""
        named, self._refreshed = self._refreshed, None
        if named is None:
            return []
        waiting = []
        for source, key in sorted(self._progress.alarms - named):
            over = Alarm(source, key, "it ended while the server was not connected", 1, False)
            waiting += await self._report(over)
        return waiting

    async def _source_of(self, source: str) -> Device | None:
        """Return the device that an event's source is, None if there is none of that name."""
        if source not in self._sources:
            if len(self._sources) >= MOST_SOURCES:
                self._health.note("events", f"more than {MOST_SOURCES} sources")
                return None
            name = self._settings.event_sources.get(source, source)
            is_new = name not in self._items.devices
            device = self._sources[source] = await self._items.find_device(name)
            if device is None:
                self._health.note(f"events of {source}", "there is no such device")
            elif is_new:
                self._reception.presence.came(device.source, device, f"connected by {self._label}")
        return self._sources[source]
