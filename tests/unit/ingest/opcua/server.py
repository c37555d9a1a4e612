"""A server that answers what a test says, and a connector to it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from asyncua import ua
from asyncua.client.ua_client import UASocketProtocol
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_to_binary

from libs.common.destinations import Destinations
from services.ingest.protocols.opcua.site import OpcUaSettings
from services.ingest.usecases.connectors import Connector
from services.ingest.usecases.reception import Reception

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""By the server's clock."""


class Server:
    """A server's side of a session."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        """`answer` makes an answer of each request; None where there shall be none."""
        self._answer = answer
        self._protocol = UASocketProtocol()
        self.asked: list[Any] = []

    @property
    def session(self) -> Any:
        """It, as our client has it."""
        return self

    async def _send_request(self, request: Any, timeout: float = 0) -> Buffer:
        self.asked.append(request)
        answer = self._answer(request)
        if answer is None:
            await asyncio.Event().wait()
        data = Buffer(bytes(struct_to_binary(answer)))
        self._protocol.check_answer(data, "")  # raises what a ServiceFault says, as for any request
        return data

    async def browse(self, params: Any) -> list[Any]:
        """Answer one question."""
        await asyncio.sleep(0)  # as one that has to come over the network
        return [self._answer(params)]

    browse_next = history_read = browse

    async def read_attributes(self, nodes: list[Any], attribute: Any) -> list[ua.DataValue]:
        """Say of all nodes that all may be done with them."""
        return [ua.DataValue(ua.Variant(255, ua.VariantType.Byte)) for _ in nodes]


class Memory(dict[str, Any]):
    """What a connector remembers."""

    def keep(self, memory: dict[str, Any]) -> None:
        """Remember this."""
        self.update(memory)


def a_connector(memory: Memory | None = None, **settings: Any) -> Connector:
    """Return a connector to the server."""
    return Connector(
        id=uuid4(),
        tenant_id=uuid4(),
        name="plc",
        kind="opcua",
        settings=OpcUaSettings(
            endpoint="opc.tcp://plc", security="none", allow_insecure=True, **settings
        ),
        secrets={},
        version=1,
        devices=cast(Any, None),
        destinations=Destinations(),
        memory=dict(memory or {}),
        remember=(Memory() if memory is None else memory).keep,
    )


def a_reception() -> Reception:
    """Return a reception that has room, and whose clock stands still."""
    intake = SimpleNamespace(is_full=False)
    clock = SimpleNamespace(now=lambda: NOON)
    return cast(Reception, SimpleNamespace(intake=intake, clock=clock))
