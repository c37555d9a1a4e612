"""The standard's nodes that our server has."""

from asyncua import ua
from asyncua.server.address_space import AddressSpace, NodeManagementService

from services.ingest.protocols.opcua.standard import FILE, chosen, fill


def test_the_file_is_what_the_library_has() -> None:
    assert FILE.read_bytes() == chosen(), (
        "write it anew: python -m services.ingest.protocols.opcua.standard"
    )


def test_what_every_client_looks_at_is_there_and_holds_together() -> None:
    space = AddressSpace()
    fill(NodeManagementService(space))
    for name in ("ObjectsFolder", "Server_NamespaceArray", "Server_ServerStatus_State", "HasChild"):
        assert ua.NodeId(getattr(ua.ObjectIds, name)) in space
    assert len(space.keys()) < 500
    for node_id in space.keys():  # noqa: SIM118 - it is no mapping
        assert all(reference.NodeId in space for reference in space[node_id].references)
