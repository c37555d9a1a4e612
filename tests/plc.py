"""A PLC with an OPC UA server, in the test's own process: nodes, history, methods, faults."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from asyncua import Node, Server, ua
from asyncua.server.event_generator import EventGenerator
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_subscription import InternalSubscription

from services.ingest.protocols.opcua.certificates import Identity
from services.ingest.protocols.opcua.standard import fill

URI = "urn:test:plc"


class _Small(InternalServer):
    """The library's server with few of the standard's nodes: all of them take a second to make."""

    async def load_standard_address_space(self, shelffile: Path | None = None) -> None:
        fill(self.node_mgt_service)


_start = InternalSubscription.start


async def _start_looked_at(subscription: InternalSubscription) -> None:
    """Start the library's task, and look at what it ends with: a client that has gone, mostly.

    The library has told of it by then. Unlooked at, it is told again whenever the garbage is collected,
    which may be in the midst of anything: also where Python cannot bear it (3.11, within `ast.parse`).
    """
    await _start(subscription)
    if subscription._task is not None:
        subscription._task.add_done_callback(lambda task: task.cancelled() or task.exception())


InternalSubscription.start = _start_looked_at  # it has no hook


class Plc:
    """A line with a press: `2:Line1/2:Press/2:Temp` and whatever else the test adds."""

    def __init__(
        self, port: int = 0, identity: Identity | None = None, *, is_whole: bool = False
    ) -> None:
        """`is_whole`: with all of the standard's nodes, as alarms and methods need."""
        self.port = port
        self._identity = identity
        self.server = Server(iserver=InternalServer() if is_whole else _Small())
        self.server.iserver.bind_condition_methods = is_whole
        self.nodes: dict[str, Node] = {}
        self.called: list[tuple[Any, ...]] = []

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}"

    async def start(self, *, history: Sequence[str] = ()) -> None:
        """Open the port; the nodes named keep a history."""
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        server = self.server
        await server.init()
        await server.set_application_uri(URI)
        await server.register_namespace("urn:test:line")
        server.set_endpoint(f"opc.tcp://127.0.0.1:{self.port}")
        if self._identity is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        else:
            server.set_security_policy(
                [
                    ua.SecurityPolicyType.NoSecurity,
                    ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
                ]
            )
            await server.load_certificate(self._identity.certificate, "der")
            await server.load_private_key(self._identity.key, None, "pem")
        self.line = line = await server.nodes.objects.add_object(2, "Line1")
        self.press = await line.add_object(ua.NodeId("Press", 2), ua.QualifiedName("Press", 2))
        await self.add("Temp", 20.0)
        for name in history:
            if name not in self.nodes:
                await self.add(name, 0.0)
        await server.start()
        if self.port == 0:
            self.port = server.bserver.port
        for name in history:
            await server.historize_node_data_change(self.nodes[name], timedelta(hours=1))

    async def stop(self) -> None:
        """Close the port, and with it all connections."""
        await self.server.stop()

    async def add(self, name: str, value: Any, kind: ua.VariantType | None = None) -> Node:
        """Add a node that anybody may write."""
        node = await self.press.add_variable(
            ua.NodeId(name, 2), ua.QualifiedName(name, 2), value, varianttype=kind
        )
        await node.set_writable()
        self.nodes[name] = node
        return node

    async def set(
        self, name: str, value: Any, *, status: int = 0, at: datetime | None = None
    ) -> datetime:
        """Let a node have a value; return the time it was given."""
        moment = at or datetime.now(UTC)
        node = self.nodes[name]
        kind = (await node.read_data_type_as_variant_type()) if value is not None else None
        await node.write_value(
            ua.DataValue(
                ua.Variant(value, kind) if value is not None else None,
                StatusCode=ua.StatusCode(status),
                SourceTimestamp=moment,
                ServerTimestamp=moment,
            )
        )
        return moment

    async def add_method(self, name: str) -> Node:
        """Add a method that takes a number and returns twice as much."""

        async def double(parent: ua.NodeId, number: ua.Variant) -> list[ua.Variant]:
            self.called.append((name, number.Value))
            return [ua.Variant(2 * number.Value, ua.VariantType.Double)]

        argument = ua.Argument()
        argument.Name = "number"
        argument.DataType = ua.NodeId(ua.ObjectIds.Double)
        argument.ValueRank = -1
        method: Node = await self.press.add_method(
            ua.NodeId(name, 2), ua.QualifiedName(name, 2), double, [argument], [argument]
        )
        return method

    async def alarm(self, source: Node) -> "PlcAlarm":
        """Give a node an alarm, which is told as the server's own events are."""
        generator = await self.server.get_event_generator(
            ua.ObjectIds.AlarmConditionType, ua.ObjectIds.Server
        )
        return PlcAlarm(generator, source)

    def subscriptions(self) -> list[InternalSubscription]:
        """Return the subscriptions of clients; the server's own history is one too."""
        every = self.server.iserver.subscription_service.subscriptions.values()
        return [each for each in every if each.pub_request_callback is not None]


class PlcAlarm:
    """An alarm of a node's: `OilAlarm`."""

    def __init__(self, generator: EventGenerator, source: Node) -> None:
        self._generator = generator
        self._source = source

    async def fire(
        self, message: str, severity: int, *, is_active: bool, source: str | None = None
    ) -> None:
        """Let it begin, go on or end."""
        event: Any = self._generator.event
        name = (await self._source.read_browse_name()).Name
        event.SourceNode, event.SourceName = self._source.nodeid, source or name
        event.ConditionName, event.Severity = "OilAlarm", severity
        setattr(event, "ActiveState/Id", is_active)
        event.Retain = is_active
        event.NodeId = ua.NodeId(f"{event.SourceName}.OilAlarm", 2)
        await self._generator.trigger(message=message)
