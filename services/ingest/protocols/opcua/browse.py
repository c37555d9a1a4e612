"""Finding nodes in a server's address space: by paths to them, and for a person who looks around."""

import re
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.client.ua_session import UaSession

from libs.common.errors import Invalid, Unavailable
from services.ingest.protocols.opcua.connection import connected, said
from services.ingest.protocols.opcua.values import clean
from services.ingest.usecases.connectors import Connector

MOST_REFERENCES = 10_000
"""That one look at a node lists."""
REFERENCES_AT_ONCE = 1_000
"""In one answer; the others come with those that follow."""

OBJECTS = ua.NodeId(ua.ObjectIds.ObjectsFolder)


async def browse(
    connector: Connector, node: str | None, certificate: Path | None, key: Path | None
) -> list[dict[str, Any]]:
    """List the nodes below one, None for the Objects folder. Raises AppError."""
    try:
        start = OBJECTS if node is None else ua.NodeId.from_string(node)
    except ua.UaError as error:
        raise Invalid("a node id is written ns=2;s=Line1.Temp or i=2258") from error
    try:
        async with connected(connector, certificate, key) as connection:
            found = await below(connection.session, start)
    except (ua.UaError, ConnectionError, TimeoutError) as error:
        raise Unavailable(said(error)) from error
    return [
        {
            "node_id": clean(reference.NodeId.to_string()),
            "browse_name": clean(reference.BrowseName.to_string()),
            "name": clean(reference.DisplayName.Text or ""),
            "class": reference.NodeClass.name.lower(),
        }
        for reference in found
    ]


async def below(session: UaSession, node: ua.NodeId) -> list[ua.ReferenceDescription]:
    """Return what lies below a node, as far as a person could look at it."""
    wanted = ua.BrowseDescription()
    wanted.NodeId = node
    wanted.BrowseDirection = ua.BrowseDirection.Forward
    wanted.ReferenceTypeId = ua.NodeId(ua.ObjectIds.HierarchicalReferences)
    wanted.IncludeSubtypes = True
    wanted.ResultMask = ua.BrowseResultMask.All
    params = ua.BrowseParameters()
    params.NodesToBrowse = [wanted]
    params.RequestedMaxReferencesPerNode = REFERENCES_AT_ONCE
    (result,) = await session.browse(params)
    found: list[ua.ReferenceDescription] = []
    while True:
        result.StatusCode.check()
        found += result.References or []
        if not result.ContinuationPoint or not result.References or len(found) >= MOST_REFERENCES:
            return found[:MOST_REFERENCES]
        following = ua.BrowseNextParameters()
        following.ReleaseContinuationPoints = False
        following.ContinuationPoints = [result.ContinuationPoint]
        (result,) = await session.browse_next(following)


def browse_path(written: str) -> ua.BrowsePath:
    """Return a path from the Objects folder, as a tenant writes it."""
    names = re.split(r"(?<!\\)/", written.strip("/"))
    return _path(
        OBJECTS,
        ua.NodeId(ua.ObjectIds.HierarchicalReferences),
        [ua.QualifiedName.from_string(name.replace("\\/", "/")) for name in names],
    )


def property_path(node_id: ua.NodeId, name: str) -> ua.BrowsePath:
    """Return the path from a node to a property of the standard's."""
    return _path(node_id, ua.NodeId(ua.ObjectIds.HasProperty), [ua.QualifiedName(name, 0)])


def _path(start: ua.NodeId, by: ua.NodeId, names: list[ua.QualifiedName]) -> ua.BrowsePath:
    path = ua.BrowsePath()
    path.StartingNode = start
    for name in names:
        element = ua.RelativePathElement()
        element.ReferenceTypeId = by
        element.IsInverse = False
        element.IncludeSubtypes = True
        element.TargetName = name
        path.RelativePath.Elements.append(element)
    return path
