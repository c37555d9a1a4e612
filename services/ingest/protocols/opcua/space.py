"""What one session sees: a device of its own, on top of the standard's nodes.

Each session has an address space, not a filter on a common one: another device's nodes are not in
it, so no service, present or future, can name them. The standard's nodes are shared and never
written.
"""

from collections import ChainMap
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from uuid import UUID

from asyncua import ua
from asyncua.server.address_space import AddressSpace, AttributeValue, NodeData

from libs.common.historian.point import Kind
from services.ingest.domain.payload import Point
from services.ingest.protocols.opcua.values import moment_of, status_of

NAMESPACE_URI = "urn:insa-iiot-platform:devices"
NAMESPACE = 2
"""Its index in all our servers: 0 is the standard's, 1 the application's."""
MOST_COMMANDS = 100
"""How many commands wait in a subscription for a device that does not fetch them."""

Method = Callable[..., Awaitable[list[ua.Variant]]]

_DATA_TYPES = {
    Kind.NUMBER: ua.NodeId(ua.ObjectIds.Number),
    Kind.BOOL: ua.NodeId(ua.ObjectIds.Boolean),
    Kind.TEXT: ua.NodeId(ua.ObjectIds.String),
}
_VARIANTS = {
    Kind.NUMBER: ua.VariantType.Double,
    Kind.BOOL: ua.VariantType.Boolean,
    Kind.TEXT: ua.VariantType.String,
}
_DEVICES = ua.NodeId("Devices", NAMESPACE)
_READ = int(ua.AccessLevel.CurrentRead.mask)
_READ_WRITE = _READ | int(ua.AccessLevel.CurrentWrite.mask)


def device_node(device_id: UUID) -> ua.NodeId:
    """Return the node of a device."""
    return ua.NodeId(str(device_id), NAMESPACE)


def metric_node(device_id: UUID, metric: str) -> ua.NodeId:
    """Return the node of a device's metric."""
    return ua.NodeId(f"{device_id}/{metric}", NAMESPACE)


def part_node(device_id: UUID, name: str) -> ua.NodeId:
    """Return the node of what every device has besides its metrics: its methods, its commands."""
    return ua.NodeId(f"{device_id}#{name}", NAMESPACE)


class DeviceSpace(AddressSpace):
    """The address space of one session."""

    def __init__(self, standard: AddressSpace, device_id: UUID, number: int) -> None:
        super().__init__()
        self._own: dict[ua.NodeId, NodeData] = {}
        self._nodes = ChainMap(self._own, standard._nodes)
        # The handles of all sessions' subscriptions meet on the standard's nodes.
        self._datachange_callback_counter = number << 32
        self.device_id = device_id
        self.metrics: dict[ua.NodeId, tuple[str, Kind]] = {}
        self.methods: dict[ua.NodeId, Method] = {}
        self.commands = part_node(device_id, "Commands")
        self._device = _object(device_node(device_id), str(device_id))
        self._furnish(standard)

    def add_metric(self, metric: str, kind: Kind) -> ua.NodeId:
        """Return a metric's node, made if there is none."""
        node_id = metric_node(self.device_id, metric)
        if node_id not in self.metrics:
            node = _variable(node_id, metric, _DATA_TYPES[kind], _READ_WRITE)
            self.metrics[node_id] = (metric, kind)
            self._hang(self._device, node, ua.ObjectIds.HasComponent, ua.NodeClass.Variable)
        return node_id

    def add_method(
        self,
        name: str,
        method: Method,
        inputs: Sequence[tuple[str, str]],
        outputs: Sequence[tuple[str, ua.ObjectIds]] = (),
    ) -> None:
        """Offer a method; `inputs` are texts, each with what it means."""
        node_id = part_node(self.device_id, name)
        node = _node(node_id, name, ua.NodeClass.Method)
        node.attributes[ua.AttributeIds.Executable] = _TRUE
        node.attributes[ua.AttributeIds.UserExecutable] = _TRUE
        self.methods[node_id] = method
        self._hang(self._device, node, ua.ObjectIds.HasComponent, ua.NodeClass.Method)
        self._add_arguments(
            node,
            "InputArguments",
            [_argument(name, ua.ObjectIds.String, what) for name, what in inputs],
        )
        if outputs:
            self._add_arguments(
                node, "OutputArguments", [_argument(name, kind, "") for name, kind in outputs]
            )

    async def show(self, points: Sequence[Point]) -> None:
        """Let these be the values of their metrics, and tell who subscribed."""
        for metric, ts, kind, value, quality, _ in points:
            node_id = self.add_metric(metric, kind)
            shown = bool(value) if kind is Kind.BOOL else value
            await self._set(node_id, shown, _VARIANTS[kind], moment_of(ts), status_of(quality))

    async def show_command(self, written: str, at: datetime) -> None:
        """Let this be the newest command, and tell who subscribed."""
        await self._set(self.commands, written, ua.VariantType.String, at, 0)

    async def _set(
        self, node_id: ua.NodeId, value: object, kind: ua.VariantType, at: datetime, status: int
    ) -> None:
        attribute = self._own[node_id].attributes[ua.AttributeIds.Value]
        attribute.value = ua.DataValue(
            ua.Variant(value, kind),
            StatusCode=ua.StatusCode(status),
            SourceTimestamp=at,
            ServerTimestamp=at,
        )
        for handle, tell in list(attribute.datachange_callbacks.items()):
            await tell(handle, attribute.value)

    def _furnish(self, standard: AddressSpace) -> None:
        objects = ua.NodeId(ua.ObjectIds.ObjectsFolder)
        shared = standard[objects]
        own = NodeData(objects)
        own.attributes = shared.attributes
        own.references = list(shared.references)
        self._own[objects] = own
        devices = _node(_DEVICES, "Devices", ua.NodeClass.Object)
        _refer(
            devices,
            ua.NodeId(ua.ObjectIds.FolderType),
            "FolderType",
            ua.ObjectIds.HasTypeDefinition,
            ua.NodeClass.ObjectType,
        )
        self._hang(own, devices, ua.ObjectIds.Organizes, ua.NodeClass.Object)
        self._hang(devices, self._device, ua.ObjectIds.Organizes, ua.NodeClass.Object)
        commands = _variable(self.commands, "Commands", _DATA_TYPES[Kind.TEXT], _READ)
        self._hang(self._device, commands, ua.ObjectIds.HasComponent, ua.NodeClass.Variable)

    def _hang(
        self,
        parent: NodeData,
        node: NodeData,
        reference: ua.ObjectIds,
        node_class: ua.NodeClass,
    ) -> None:
        self._own[node.nodeid] = node
        _refer(parent, node.nodeid, _name_of(node), reference, node_class)
        _refer(node, parent.nodeid, _name_of(parent), reference, ua.NodeClass.Object, forward=False)

    def _add_arguments(self, method: NodeData, name: str, arguments: list[ua.Argument]) -> None:
        node_id = ua.NodeId(f"{method.nodeid.Identifier}.{name}", NAMESPACE)
        node = _variable(node_id, name, ua.NodeId(ua.ObjectIds.Argument), _READ, namespace=0)
        node.attributes[ua.AttributeIds.ValueRank] = _ONE_DIMENSION
        node.attributes[ua.AttributeIds.Value] = AttributeValue(
            ua.DataValue(ua.Variant(arguments, ua.VariantType.ExtensionObject))
        )
        self._hang(method, node, ua.ObjectIds.HasProperty, ua.NodeClass.Variable)


def _constant(value: object, kind: ua.VariantType) -> AttributeValue:
    """Return an attribute's value that all nodes share: it never changes."""
    return AttributeValue(ua.DataValue(ua.Variant(value, kind)))


_TRUE = _constant(True, ua.VariantType.Boolean)
_FALSE = _constant(False, ua.VariantType.Boolean)
_ZERO = _constant(0, ua.VariantType.UInt32)
_NOTHING = _constant(0, ua.VariantType.Byte)
_SCALAR = _constant(-1, ua.VariantType.Int32)
_ONE_DIMENSION = _constant(1, ua.VariantType.Int32)
_AT_ONCE = _constant(0.0, ua.VariantType.Double)
_CLASSES = {each: _constant(each, ua.VariantType.Int32) for each in ua.NodeClass}
_LEVELS = {each: _constant(each, ua.VariantType.Byte) for each in (_READ, _READ_WRITE)}
_TYPES = {
    each: _constant(each, ua.VariantType.NodeId)
    for each in (*_DATA_TYPES.values(), ua.NodeId(ua.ObjectIds.Argument))
}
_NO_VALUE_YET = ua.StatusCode(ua.StatusCodes.BadWaitingForInitialData)


def _node(
    node_id: ua.NodeId, name: str, node_class: ua.NodeClass, namespace: int = NAMESPACE
) -> NodeData:
    node = NodeData(node_id)
    node.attributes = {
        ua.AttributeIds.NodeId: _constant(node_id, ua.VariantType.NodeId),
        ua.AttributeIds.NodeClass: _CLASSES[node_class],
        ua.AttributeIds.BrowseName: _constant(
            ua.QualifiedName(name, namespace), ua.VariantType.QualifiedName
        ),
        ua.AttributeIds.DisplayName: _constant(
            ua.LocalizedText(name), ua.VariantType.LocalizedText
        ),
        ua.AttributeIds.WriteMask: _ZERO,
        ua.AttributeIds.UserWriteMask: _ZERO,
    }
    return node


def _object(node_id: ua.NodeId, name: str) -> NodeData:
    node = _node(node_id, name, ua.NodeClass.Object)
    node.attributes[ua.AttributeIds.EventNotifier] = _NOTHING
    _refer(
        node,
        ua.NodeId(ua.ObjectIds.BaseObjectType),
        "BaseObjectType",
        ua.ObjectIds.HasTypeDefinition,
        ua.NodeClass.ObjectType,
    )
    return node


def _variable(
    node_id: ua.NodeId, name: str, data_type: ua.NodeId, level: int, namespace: int = NAMESPACE
) -> NodeData:
    node = _node(node_id, name, ua.NodeClass.Variable, namespace)
    node.attributes |= {
        ua.AttributeIds.DataType: _TYPES[data_type],
        ua.AttributeIds.ValueRank: _SCALAR,
        ua.AttributeIds.AccessLevel: _LEVELS[level],
        ua.AttributeIds.UserAccessLevel: _LEVELS[level],
        ua.AttributeIds.MinimumSamplingInterval: _AT_ONCE,
        ua.AttributeIds.Historizing: _FALSE,
        ua.AttributeIds.Value: AttributeValue(
            ua.DataValue(ua.Variant(None, ua.VariantType.Null), StatusCode=_NO_VALUE_YET)
        ),
    }
    _refer(
        node,
        ua.NodeId(ua.ObjectIds.BaseDataVariableType),
        "BaseDataVariableType",
        ua.ObjectIds.HasTypeDefinition,
        ua.NodeClass.VariableType,
    )
    return node


def _refer(
    node: NodeData,
    target: ua.NodeId,
    name: str,
    reference: ua.ObjectIds,
    node_class: ua.NodeClass,
    *,
    forward: bool = True,
) -> None:
    namespace = target.NamespaceIndex
    description = ua.ReferenceDescription()
    description.ReferenceTypeId = ua.NodeId(reference)
    description.IsForward = forward
    description.NodeId = target
    description.BrowseName = ua.QualifiedName(name, namespace)
    description.DisplayName = ua.LocalizedText(name)
    description.NodeClass = node_class
    node.references.append(description)


def _name_of(node: NodeData) -> str:
    shown = node.attributes[ua.AttributeIds.BrowseName].value
    return str(shown.Value.Value.Name)


def _argument(name: str, kind: ua.ObjectIds, what: str) -> ua.Argument:
    argument = ua.Argument()
    argument.Name = name
    argument.DataType = ua.NodeId(kind)
    argument.ValueRank = -1
    argument.Description = ua.LocalizedText(what)
    return argument
