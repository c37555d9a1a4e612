"""How many nodes a server takes in one request, as far as it says so (its OperationLimits)."""

from dataclasses import dataclass

import structlog
from asyncua import ua
from asyncua.client.ua_session import UaSession

from services.ingest.protocols.opcua.connection import said

log = structlog.get_logger(__name__)

AT_ONCE = 500
"""Nodes that we name in one request, however many it would take."""
HISTORIES_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How many nodes one request names, of each service."""

    read: int = AT_ONCE
    translate: int = AT_ONCE
    monitor: int = AT_ONCE
    read_history: int = HISTORIES_AT_ONCE


async def limits_of(session: UaSession) -> Limits:
    """Read a server's limits; 0, or none that is told, is none."""
    prefix = "Server_ServerCapabilities_OperationLimits_Max"
    names = (
        "NodesPerRead",
        "NodesPerTranslateBrowsePathsToNodeIds",
        "MonitoredItemsPerCall",
        "NodesPerHistoryReadData",
    )
    nodes = [ua.NodeId(getattr(ua.ObjectIds, prefix + name)) for name in names]
    try:
        told = await session.read_attributes(nodes, ua.AttributeIds.Value)
    except ua.UaStatusCodeError as error:
        log.info("a server does not tell its limits", error=said(error))
        return Limits()
    read, translate, monitor, history = (
        data.Value.Value if data.Value is not None and isinstance(data.Value.Value, int) else 0
        for data in told
    )
    return Limits(
        _within(read, AT_ONCE),
        _within(translate, AT_ONCE),
        _within(monitor, AT_ONCE),
        _within(history, HISTORIES_AT_ONCE),
    )


def _within(told: int, ours: int) -> int:
    return min(told, ours) if told > 0 else ours
