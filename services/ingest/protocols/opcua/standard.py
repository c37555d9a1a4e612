"""The standard's own nodes, those of them that our server needs: `standard.bin`.

The library makes all six thousand, which takes a second and 50 MB, for the sake of types that no node
of ours has. Here are the folders, the server's own description, all types of references, and what
those need. The file holds them as OPC UA's own AddNodes and AddReferences; it is written anew, out of
what the library has, by

    python -m services.ingest.protocols.opcua.standard
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.server.address_space import NodeManagementService
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

FILE = Path(__file__).with_name("standard.bin")

_FOLDERS = (
    "RootFolder",
    "ObjectsFolder",
    "TypesFolder",
    "ViewsFolder",
    "ObjectTypesFolder",
    "VariableTypesFolder",
    "DataTypesFolder",
    "ReferenceTypesFolder",
)
_TYPES = ("Argument", "BaseObjectType", "BaseDataVariableType", "FolderType", "PropertyType")
_SERVER = (
    "Server_Auditing",
    "Server_NamespaceArray",
    "Server_ServerArray",
    "Server_ServerCapabilities_LocaleIdArray",
    "Server_ServerCapabilities_MaxArrayLength",
    "Server_ServerCapabilities_MaxBrowseContinuationPoints",
    "Server_ServerCapabilities_MaxHistoryContinuationPoints",
    "Server_ServerCapabilities_MaxQueryContinuationPoints",
    "Server_ServerCapabilities_MinSupportedSampleRate",
    "Server_ServerCapabilities_OperationLimits_",
    "Server_ServerCapabilities_ServerProfileArray",
    "Server_ServerCapabilities_SoftwareCertificates",
    "Server_ServerDiagnostics_EnabledFlag",
    "Server_ServerRedundancy_RedundancySupport",
    "Server_ServerStatus",
    "Server_ServiceLevel",
    "Server_VendorServerInfo",
)
"""What every server has to tell of itself, by the beginnings of the names."""
_LAST_BUILT_IN = 31


def fill(nodes: NodeManagementService) -> None:
    """Put the standard's nodes into an address space."""
    buffer = Buffer(FILE.read_bytes())
    added = struct_from_binary(ua.AddNodesParameters, buffer).NodesToAdd
    referred = struct_from_binary(ua.AddReferencesParameters, buffer).ReferencesToAdd
    failed = [*nodes.try_add_nodes(added, check=False), *nodes.try_add_references(referred)]
    if failed:
        raise ValueError(f"{FILE} does not hold together: {failed[0]}")


def chosen() -> bytes:
    """Return what belongs into the file, out of what the library has."""
    from asyncua.server.standard_address_space.standard_address_space import fill_address_space

    all_of_them = _Recorder()
    fill_address_space(all_of_them)
    by_id = {item.RequestedNewNodeId: item for item in all_of_them.nodes}
    wanted = _closure(by_id)
    kept = [item for item in all_of_them.nodes if item.RequestedNewNodeId in wanted]
    kept = list(_parents_first(kept))
    for item in kept:
        # Prose, which nobody reads off a server.
        item.NodeAttributes.Description = ua.LocalizedText()
    references = [
        each
        for each in all_of_them.references
        if each.SourceNodeId in wanted and each.TargetNodeId in wanted
    ]
    parts = ua.AddNodesParameters(kept), ua.AddReferencesParameters(references)
    return b"".join(map(struct_to_binary, parts))


class _Recorder:
    """Notes what the library adds."""

    def __init__(self) -> None:
        self.nodes: list[ua.AddNodesItem] = []
        self.references: list[ua.AddReferencesItem] = []

    def try_add_nodes(self, nodes: Iterable[ua.AddNodesItem], *, check: bool) -> Iterator[Any]:
        self.nodes += nodes
        return iter(())

    def try_add_references(self, references: Iterable[ua.AddReferencesItem]) -> Iterator[Any]:
        self.references += references
        return iter(())


def _closure(by_id: dict[ua.NodeId, ua.AddNodesItem]) -> set[ua.NodeId]:
    """Return the nodes that are wanted, and all that these need."""
    waiting = [ua.NodeId(getattr(ua.ObjectIds, name)) for name in (*_FOLDERS, *_TYPES)]
    for node_id, item in by_id.items():
        name = ua.ObjectIdNames.get(node_id.Identifier, "")
        if (
            name.startswith(_SERVER)
            or item.NodeClass is ua.NodeClass.ReferenceType
            or (node_id.Identifier <= _LAST_BUILT_IN and item.NodeClass is ua.NodeClass.DataType)
        ):
            waiting.append(node_id)
    wanted: set[ua.NodeId] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id in wanted or node_id not in by_id:
            continue
        wanted.add(node_id)
        item = by_id[node_id]
        waiting += [item.ParentNodeId, item.TypeDefinition]
        data_type = getattr(item.NodeAttributes, "DataType", None)
        if data_type is not None:
            waiting.append(data_type)
    return wanted


def _parents_first(items: list[ua.AddNodesItem]) -> Iterator[ua.AddNodesItem]:
    """Order nodes so that each comes after its parent and its type."""
    waiting, done = items, {ua.NodeId()}
    while waiting:
        ready = [each for each in waiting if {each.ParentNodeId, each.TypeDefinition} <= done]
        if not ready:
            raise ValueError(f"nothing leads to {waiting[0].BrowseName}")
        yield from ready
        done |= {each.RequestedNewNodeId for each in ready}
        waiting = [each for each in waiting if each.RequestedNewNodeId not in done]


if __name__ == "__main__":
    FILE.write_bytes(chosen())
