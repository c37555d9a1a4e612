"""OPC UA clients that mean harm: raw bytes on the socket, and asyncua's client gone wrong."""

import asyncio
import contextlib
import struct
from typing import Any

import pytest
from asyncua import Client, ua
from asyncua.ua.ua_binary import struct_to_binary, uatcp_to_binary

from services.ingest.protocols.opcua import session as opcua_session
from tests.service.ingest.conftest import World
from tests.service.ingest.test_opcua_server import (  # noqa: F401 - `serving` is what `served` asks for
    Seen,
    call,
    metric,
    served,
    serving,
    session,
    status_of,
)
from tests.waiting import until


def hello(buffer_bytes: int = 65_535) -> bytes:
    said = ua.Hello()
    said.EndpointUrl = "opc.tcp://127.0.0.1"
    said.ReceiveBufferSize = said.SendBufferSize = buffer_bytes
    return bytes(uatcp_to_binary(ua.MessageType.Hello, said))


def open_channel(request: bytes, sequence: int = 1) -> bytes:
    """Return an OpenSecureChannel without security, with whatever in it."""
    security = ua.AsymmetricAlgorithmHeader()
    security.SecurityPolicyURI = "http://opcfoundation.org/UA/SecurityPolicy#None"
    inner = bytes(struct_to_binary(security)) + struct.pack("<II", sequence, sequence) + request
    return b"OPNF" + struct.pack("<II", len(inner) + 12, 0) + inner


def request_with(header: bytes) -> bytes:
    """Return an OpenSecureChannelRequest whose header ends with these bytes."""
    type_id = b"\x01\x00" + struct.pack(
        "<H", ua.ObjectIds.OpenSecureChannelRequest_Encoding_DefaultBinary
    )
    plain = b"\x00\x00" + struct.pack("<qIIiI", 0, 1, 0, -1, 0)
    return type_id + plain + header


def extension(body: bytes) -> bytes:
    """Return what claims to be a DataChangeNotification: it may hold any value."""
    type_id = b"\x01\x00" + struct.pack(
        "<H", ua.ObjectIds.DataChangeNotification_Encoding_DefaultBinary
    )
    one_value = struct.pack("<iIB", 1, 0, 1) + body
    return type_id + b"\x01" + struct.pack("<i", len(one_value)) + one_value


BOMBS = {
    "two thousand million nothings": b"\x80" + struct.pack("<i", 2**31 - 1),
    "texts that lead back": b"\x8f" + struct.pack("<ii", 2**31 - 1, -4) + b"\0" * 8,
    "a matrix of a million": b"\xc3" + struct.pack("<iBii", 1, 1, 1, 1_000_000),
    "values within values": b"\x18" * 60_000,
    "fewer than nothing": b"\x8b" + struct.pack("<i", -2),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
async def test_a_message_that_would_fill_the_memory_ends_its_connection_at_once(
    served: World,  # noqa: F811
    bomb: bytes,
) -> None:
    device_id, token = await served.device()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.app.state.opcua_port)
    writer.write(hello() + open_channel(request_with(extension(bomb))))
    async with asyncio.timeout(10):
        assert (await reader.read(4))[:3] == b"ACK"
        # To its end.
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    async with session(served, device_id, token) as client:
        await call(client, device_id, "Publish", '{"temp": 1}')


async def test_answers_are_not_cut_into_crumbs_nor_channels_opened_in_a_row(
    served: World,  # noqa: F811
) -> None:
    async def told(*sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.app.state.opcua_port)
        writer.write(b"".join(sent))
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()

    refused = await told(hello(100))
    assert refused[:3] == b"ERR"
    assert struct.unpack("<I", refused[8:12]) == (ua.StatusCodes.BadConnectionRejected,)
    request = ua.OpenSecureChannelRequest()
    request.Parameters.SecurityMode = ua.MessageSecurityMode.None_
    request.Parameters.ClientNonce = b""
    asked = struct_to_binary(request)
    twice = await told(hello(), open_channel(asked, 1), open_channel(asked, 2))
    assert twice.count(b"OPNF") == 1
    assert b"ERRF" in twice


async def test_who_reads_no_answers_is_asked_no_more_questions(served: World) -> None:  # noqa: F811
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        protocol = client.uaclient.protocol
        assert protocol is not None
        assert protocol.transport is not None
        (connection,) = served.app.state.opcua._binary.clients
        protocol.transport.pause_reading()
        browse = ua.BrowseRequest()
        browse.Parameters.NodesToBrowse = [
            whole(ua.NodeId(ua.ObjectIds.ReferenceTypesFolder))
        ] * 500
        asked = 0

        def is_full() -> bool:
            nonlocal asked
            if asked < 10_000 and connection.messages.qsize() < 3:
                asked += 1
                protocol._send_request(browse, 0)
            return not connection._may_answer.is_set()

        await until(is_full, "its answers wait")
        size = connection.transport.get_write_buffer_size()
        assert size < 4 * 1024 * 1024
        protocol.transport.abort()
        await until(lambda: not served.app.state.opcua._binary.clients, "it is gone")


def whole(node_id: ua.NodeId) -> ua.BrowseDescription:
    wanted = ua.BrowseDescription()
    wanted.NodeId = node_id
    wanted.BrowseDirection = ua.BrowseDirection.Both
    wanted.ResultMask = ua.BrowseResultMask.All
    return wanted


async def test_the_same_large_node_is_not_told_a_thousand_times(
    served: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opcua_session, "MOST_REFERENCES", 500)
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        for number in range(60):
            await call(client, device_id, "AddMetric", f"m{number}", "number")
        params = ua.BrowseParameters()
        params.NodesToBrowse = [whole(ua.NodeId(str(device_id), 2))] * 1_000
        results = await client.uaclient.session.browse(params)
        assert len(results) == 1_000
        assert sum(len(result.References) for result in results) < 600
        assert results[0].StatusCode.is_good()
        assert results[-1].StatusCode.value == ua.StatusCodes.BadNoContinuationPoints
        params.NodesToBrowse = params.NodesToBrowse[:1] * 1_001
        assert await status_of(client.uaclient.session.browse(params)) == (
            ua.StatusCodes.BadTooManyOperations
        )


async def test_a_path_that_goes_up_and_down_for_ever_is_too_long(served: World) -> None:  # noqa: F811
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        path = ua.BrowsePath()
        path.StartingNode = ua.NodeId(str(device_id), 2)
        for number in range(3_002):
            element = ua.RelativePathElement()
            element.ReferenceTypeId = ua.NodeId(ua.ObjectIds.References)
            element.IncludeSubtypes = True
            element.IsInverse = bool(number % 2)
            element.TargetName = ua.QualifiedName(str(device_id) if number % 2 else "Commands", 2)
            path.RelativePath.Elements.append(element)
        translate = client.uaclient.session.translate_browsepaths_to_nodeids
        assert await status_of(translate([path])) == ua.StatusCodes.BadTooManyOperations
        path.RelativePath.Elements = path.RelativePath.Elements[:1_001]
        (found,) = await translate([path])
        assert [each.TargetId for each in found.Targets] == [ua.NodeId(f"{device_id}#Commands", 2)]


async def test_a_filter_that_cannot_be_applied_is_refused(served: World) -> None:  # noqa: F811
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        node = client.get_node(await call(client, device_id, "AddMetric", "name", "text"))
        seen = Seen()
        subscription = await client.create_subscription(100, seen)
        assert await status_of(subscription.deadband_monitor(node, 1.0)) == (
            ua.StatusCodes.BadMonitoredItemFilterUnsupported
        )
        await subscription.subscribe_data_change(node)
        await node.write_value(ua.Variant("press"))
        await until(lambda: "press" in seen.values, "others go on")


async def test_what_no_text_can_be_is_refused_and_its_neighbours_are_stored(
    served: World,  # noqa: F811
) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        for name, kind in (("name", "text"), ("temp", "number")):
            await call(client, device_id, "AddMetric", name, kind)
        for wrong in ("\udcff", "a\0b", "x" * 5_000):
            codes = await written(client, device_id, ("name", wrong), ("temp", 1.0))
            assert codes[0] != ua.StatusCodes.Good
            assert codes[1] == ua.StatusCodes.Good
        assert await status_of(call(client, device_id, "Publish", '{"a": "\udcff"}')) != (
            ua.StatusCodes.BadInternalError
        )
        stored = await served.until_stored(device_id, 3)
        assert {name for name, _, _ in stored} == {"temp"}


async def written(client: Client, device_id: Any, *values: tuple[str, Any]) -> list[int]:
    params = []
    for name, value in values:
        item = ua.WriteValue()
        item.NodeId, item.AttributeId = metric(device_id, name), ua.AttributeIds.Value
        item.Value = ua.DataValue(ua.Variant(value))
        params.append(item)
    request = ua.WriteParameters()
    request.NodesToWrite = params
    return [code.value for code in await client.uaclient.session.write(request)]


async def test_who_sends_too_much_is_told_to_wait_also_by_another_session(
    serving: Any,  # noqa: F811
) -> None:
    async with serving(device_messages_per_second=0.001, device_burst=2) as world:
        device_id, token = await world.device()
        shown: dict[str, Any] = {}

        async def is_said() -> bool:
            answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
            was, now = shown.get("status_at"), answer.json()
            if now["status_at"] == was or "over its quota" not in now["status_reason"]:
                return False
            shown.update(now)
            return True

        async with session(world, device_id, token) as client:
            node = client.get_node(await call(client, device_id, "AddMetric", "temp", "number"))
            codes = [await status_of(node.write_value(ua.Variant(1.0))) for _ in range(6)]
            assert codes[0] == ua.StatusCodes.Good
            assert codes[-1] == ua.StatusCodes.BadTooManyOperations
            await until(is_said, "the device's page says why")
        async with session(world, device_id, token) as again:
            assert await status_of(call(again, device_id, "Publish", '{"temp": 1}')) == (
                ua.StatusCodes.BadTooManyOperations
            )
            await until(is_said, "the device's page says so again, after its going and coming")
            assert shown["status"] == "online"
