"""What is read of a server: its nodes, and the devices whose metrics they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog
from asyncua import ua
from asyncua.client.ua_session import UaSession

from libs.common.historian.point import Kind
from services.ingest.domain.device import Source
from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.browse import browse_path, property_path
from services.ingest.protocols.opcua.connection import said
from services.ingest.protocols.opcua.limits import Limits, limits_of
from services.ingest.protocols.opcua.site import ItemSettings, OpcUaSettings
from services.ingest.protocols.opcua.values import clean, kind_of
from services.ingest.usecases.connectors import Connector
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Device:
    """A device that the server has values of."""

    name: str
    source: Source
    inlet: Inlet
    items: list["Item"] = field(default_factory=list)
    methods: set[tuple[str, str]] = field(default_factory=set)

    @property
    def is_commanded(self) -> bool:
        """Whether there is anything that a command may do."""
        return bool(self.methods) or any(item.settings.is_writable for item in self.items)


@dataclass(slots=True, eq=False)
class Item:
    """A node, and the metric that its values are."""

    settings: ItemSettings
    device: Device
    address: str
    """As the tenant wrote it."""
    node_id: ua.NodeId | None = None
    """None while it is not found."""
    unit: str | None = None
    kind: Kind | None = None
    """Of its values, as the server declares it; None: it cannot be told before there is one."""


class Items:
    """A connector's items in their order, by which the server names them, and their devices."""

    def __init__(self, connector: Connector, reception: Reception, health: Health) -> None:
        self._connector = connector
        self._settings: OpcUaSettings = connector.settings
        self._reception = reception
        self._health = health
        self._items: list[Item] = []
        self.devices: dict[str, Device] = {}
        """By what the tenant calls them, id or name."""
        self.unknown: set[str] = set()
        """Those that the tenant has not."""
        self.limits = Limits()
        """Of requests to the server, once `find` has asked for them."""

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, handle: int) -> Item:
        return self._items[handle]

    def found(self, at_once: int) -> Iterator[Sequence[tuple[int, Item]]]:
        """Yield the items whose nodes are known, with their handles, so many at a time."""
        known = [each for each in enumerate(self._items) if each[1].node_id is not None]
        for start in range(0, len(known), at_once):
            yield known[start : start + at_once]

    async def find(self, session: UaSession) -> None:
        """Look up the devices, the nodes, their kinds and units; what is not there is a problem."""
        await self._find_devices()
        self.limits = await limits_of(session)
        await self._find_nodes(session)
        await self._find_kinds(session)
        await self._find_units(session)

    async def find_device(self, name: str) -> Device | None:
        """Return the device of that id or name, None if the tenant has none."""
        if name not in self.devices:
            source = await self._connector.devices.source(name)
            if source is None:
                return None
            self.devices[name] = Device(name, source, Inlet(self._reception, source))
        return self.devices[name]

    async def _find_devices(self) -> None:
        wanted = [item.device for item in self._settings.items]
        wanted += [method.device for method in self._settings.methods]
        for name in dict.fromkeys(wanted):
            if await self.find_device(name) is None:
                self.unknown.add(name)
                self._health.note(name, "there is no such device")
        for settings in self._settings.items:
            if settings.device in self.devices:
                device = self.devices[settings.device]
                address = settings.node_id or settings.browse_path or ""
                item = Item(settings, device, address)
                device.items.append(item)
                self._items.append(item)
        for method in self._settings.methods:
            if method.device in self.devices:
                self.devices[method.device].methods.add((method.object, method.method))

    async def _find_nodes(self, session: UaSession) -> None:
        by_path = []
        for item in self._items:
            if item.settings.node_id is None:
                by_path.append(item)
                continue
            try:
                item.node_id = ua.NodeId.from_string(item.settings.node_id)
            except ua.UaError:
                self._health.note(item.address, "this is no node id")
        at_once = self.limits.translate
        for start in range(0, len(by_path), at_once):
            some = by_path[start : start + at_once]
            results = await session.translate_browsepaths_to_nodeids(
                [browse_path(item.address) for item in some]
            )
            for item, result in zip(some, results, strict=True):
                if result.StatusCode.is_good() and result.Targets:
                    item.node_id = result.Targets[0].TargetId
                else:
                    self._health.note(item.address, result.StatusCode.name)

    async def _find_kinds(self, session: UaSession) -> None:
        """Read the nodes' DataTypes, as far as they tell of a kind."""
        for some in self.found(self.limits.read):
            try:
                types = await session.read_attributes(
                    [item.node_id for _, item in some], ua.AttributeIds.DataType
                )
            except ua.UaStatusCodeError as error:
                log.info("a server does not tell its types", error=said(error))
                return
            for (_, item), data in zip(some, types, strict=True):
                held = data.Value.Value if data.Value is not None else None
                item.kind = kind_of(held) if isinstance(held, ua.NodeId) else None

    async def _find_units(self, session: UaSession) -> None:
        """Read the nodes' EngineeringUnits, as far as they have any."""
        for some in self.found(min(self.limits.translate, self.limits.read)):
            try:
                results = await session.translate_browsepaths_to_nodeids(
                    [property_path(item.node_id, "EngineeringUnits") for _, item in some]
                )
                with_unit = [
                    (item, result.Targets[0].TargetId)
                    for (_, item), result in zip(some, results, strict=True)
                    if result.StatusCode.is_good() and result.Targets
                ]
                if not with_unit:
                    continue
                values = await session.read_attributes(
                    [node for _, node in with_unit], ua.AttributeIds.Value
                )
            except ua.UaError as error:
                log.info("a server does not tell its units", error=said(error))
                return
            for (item, _), data in zip(with_unit, values, strict=True):
                unit = getattr(data.Value.Value, "DisplayName", None) if data.Value else None
                item.unit = (clean(unit.Text or "") or None) if unit is not None else None
