"""Connecting out to an OPC UA server: a PLC, a SCADA system.

Values come by subscription. A notification is acknowledged to the server when its points are
durable on the bus; until then the server keeps it, and no more than a few are under way. After an
outage what was missed is read from the server's history, with overlap; where there is none, and
where the server's queues overflowed, a gap is said to be there. Its events are alarms of the devices
that they are named after.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncua import ua

from libs.common.errors import AppError, Unavailable
from services.ingest.protocols.connectors import until_devices_change
from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.certificates import time_fault
from services.ingest.protocols.opcua.commands import Commands
from services.ingest.protocols.opcua.conditions import Conditions
from services.ingest.protocols.opcua.connection import Connection, connected, said
from services.ingest.protocols.opcua.history import History
from services.ingest.protocols.opcua.items import Items
from services.ingest.protocols.opcua.points import Points
from services.ingest.protocols.opcua.progress import Progress
from services.ingest.protocols.opcua.site import OpcUaSettings
from services.ingest.protocols.opcua.subscription import Subscription
from services.ingest.usecases.connectors import Connector, Report
from services.ingest.usecases.reception import Reception

CERTIFICATES_LOOKED_AT_S = 3_600.0
"""How often it is looked whether a certificate expires soon."""


class Reader:
    """Brings in what one server has, from one connection to its end."""

    def __init__(
        self,
        connector: Connector,
        reception: Reception,
        report: Report,
        certificate: Path | None,
        key: Path | None,
    ) -> None:
        """The files are our application's certificate and its key."""
        self._connector = connector
        self._settings: OpcUaSettings = connector.settings
        self._reception = reception
        self._files = certificate, key
        self._label = f"the connector {connector.name!r}"
        self._health = Health(report)
        self._items = Items(connector, reception, self._health)
        self._points = Points(reception, self._health)
        self._progress = Progress(connector)

    async def run(self) -> None:
        """Connect and listen until the connection is lost. Raises what ended it."""
        self._points.open()
        try:
            async with connected(self._connector, *self._files) as connection:
                await until_devices_change(
                    self._connector,
                    self._reception.sources,
                    self._listen(connection),
                    self._items.devices,
                    self._items.unknown,
                )
        except (ua.UaError, ConnectionError, TimeoutError) as error:
            raise Unavailable(said(error)) from error
        finally:
            self._points.close()
            self._progress.leave()
            for device in self._items.devices.values():
                device.inlet.close()

    async def _listen(self, connection: Connection) -> None:
        session, settings, reception = connection.session, self._settings, self._reception
        items, points, progress, health = self._items, self._points, self._progress, self._health
        self._note_certificates(connection.certificates)
        await items.find(session)
        conditions = Conditions(session, settings, self._label, reception, items, progress, health)
        subscription = Subscription(
            session, settings, reception, items, points, conditions, progress, health
        )
        history = History(session, self._connector, reception, items, points, progress, health)
        await subscription.create()
        try:
            with self._present(Commands(session, reception)):
                health.connected()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._watch_certificates(connection.certificates))
                    tasks.create_task(history.catch_up())
                    if settings.events:
                        tasks.create_task(conditions.refresh(subscription.id))
                    tasks.create_task(subscription.listen())
        except* AppError as group:
            raise _first(group) from group
        except* (ua.UaError, ConnectionError, TimeoutError) as group:
            raise Unavailable(said(_first(group))) from group

    @contextmanager
    def _present(self, commands: Commands) -> Iterator[None]:
        """Have the devices online, and their commands carried out."""
        attached = []
        for device in self._items.devices.values():
            self._reception.presence.came(device.source, device, f"connected by {self._label}")
            if device.is_commanded:
                send = commands.sender(device)
                self._reception.downlinks.attach(device.source, send)
                attached.append((device.source, send))
        try:
            yield
        finally:
            for source, send in attached:
                self._reception.downlinks.detach(source, send)
            for device in self._items.devices.values():
                self._reception.presence.went(
                    device.source, device, f"{self._label} is not connected"
                )

    def _note_certificates(self, certificates: Mapping[str, bytes]) -> None:
        """Note those that have expired, or soon will.

        Of all that can be wrong with a certificate its time is what may be overlooked (OPC 10000-4
        6.1.3): it is the one that the tenant named, or ours, and a plant that is no longer seen for
        a date would be worse. But it is told.
        """
        for called, certificate in certificates.items():
            fault = time_fault(certificate, self._reception.clock.now())
            if fault is None:
                self._health.forget(called)
            else:
                self._health.note(called, fault)

    async def _watch_certificates(self, certificates: Mapping[str, bytes]) -> None:
        while certificates:
            await asyncio.sleep(CERTIFICATES_LOOKED_AT_S)
            self._note_certificates(certificates)


def _first(group: BaseExceptionGroup[Any]) -> Any:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
