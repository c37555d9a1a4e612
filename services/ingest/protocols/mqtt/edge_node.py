"""A Sparkplug B edge node that is connected here: it speaks for itself and for the devices behind it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.errors import AppError
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.gateway import NotBehind
from services.ingest.domain.protocol import Protocol
from services.ingest.domain.sparkplug import parse_topic
from services.ingest.protocols.mqtt.actions import SaidAside
from services.ingest.protocols.mqtt.asides import Asides
from services.ingest.protocols.sparkplug_host import SparkplugHost
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.telemetry import Done


class EdgeNode:
    """One connection's. The edge node is the device that connected, by the name it gives itself first;
    those behind it are called as it calls them, and registered as `group/node/device`.
    """

    def __init__(self, asides: Asides) -> None:
        self._asides = asides
        self._path: str | None = None
        """`group/node`."""
        self._at = asides.desk.reception.clock.now()
        self._host = SparkplugHost(
            asides.desk.reception,
            Protocol.MQTT,
            self._inlet_of,
            self._transmit,
            self._let_go,
            asides.source,
        )

    async def take(self, said: SaidAside, done: Done) -> None:
        """Take a message of the edge node. Raises NotBehind if it is another node's, or another's device."""
        spoken = parse_topic(said.topic)
        assert spoken is not None
        if self._path is None:
            self._path = spoken.node_path
        elif spoken.node_path != self._path:
            raise NotBehind(f"the connection is that of the edge node {self._path!r}")
        self._at = said.received_at
        await self._host.take(
            said.topic, said.payload, said.received_at, done, self._asides.desk.largest
        )

    def leave(self, reason: str) -> None:
        """Say that nobody hears it any more."""
        self._host.leave(reason)

    def attributes_changed(self, device_id: UUID, values: dict[str, Any], gone: list[str]) -> None:
        """Tell nothing: Sparkplug knows no attributes."""

    async def _inlet_of(self, path: str) -> Inlet:
        assert self._path is not None
        if path == self._path:
            return self._asides.own
        return await self._asides.inlet_of(path.removeprefix(f"{self._path}/"), path, self._at)

    async def _transmit(self, outgoing: Outgoing | None, topic: str, payload: bytes) -> Delivered:
        if outgoing is not None:
            return await self._asides.line.transmit(outgoing, topic.encode(), payload)
        self._asides.line.tell(topic.encode(), payload)
        return Delivered.SENT

    def _let_go(self, topic: str, payload: bytes, at: datetime, done: Done, why: str) -> None:
        self._asides.refuse(AppError(why), payload, at, done)
