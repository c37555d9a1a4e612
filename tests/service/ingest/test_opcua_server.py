"""Devices and SCADA systems that come in by OPC UA, with asyncua's own client."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest
from asyncua import Client, Node, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.crypto.uacrypto import CertProperties

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.historian.point import Quality
from services.ingest.app import build
from services.ingest.protocols.opcua.certificates import VALID, Identity, new_identity
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.service.ingest.test_closed_tenants import hear, said
from tests.waiting import until

CLIENT_URI = "urn:test:client"
Serving: TypeAlias = "Callable[..., AbstractAsyncContextManager[World]]"


@pytest.fixture
def serving(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> Serving:
    """Run an ingest with an OPC UA server."""

    @asynccontextmanager
    async def run(**update: Any) -> AsyncIterator[World]:
        own = settings.model_copy(
            update={"opcua_host": "127.0.0.1", "opcua_port": 0, **update},
        )
        app, tenant_id = build(own, bus, SystemClock(), keys=keys), uuid4()
        headers = principal_headers(tenant_id)
        async with running(app, bus, database_urls, tenant_id, headers) as world:
            yield world

    return run


@pytest.fixture
async def served(serving: Serving) -> AsyncIterator[World]:
    """An ingest with an OPC UA server that trusts any client's certificate."""
    async with serving() as world:
        yield world


IDENTITY = new_identity(datetime.now(UTC), CLIENT_URI)


def url(world: World) -> str:
    return f"opc.tcp://127.0.0.1:{world.app.state.opcua_port}"


async def client_of(
    world: World,
    user: str,
    password: str,
    *,
    mode: ua.MessageSecurityMode = ua.MessageSecurityMode.SignAndEncrypt,
    identity: Identity = IDENTITY,
) -> Client:
    client = Client(url(world), timeout=20)
    client.application_uri = CLIENT_URI
    await client.set_security(
        SecurityPolicyBasic256Sha256,
        CertProperties(identity.certificate, "der"),
        CertProperties(identity.key, "pem"),
        mode=mode,
    )
    client.set_user(user)
    client.set_password(password)
    return client


@asynccontextmanager
async def session(world: World, device_id: UUID, token: str, **kind: Any) -> AsyncIterator[Client]:
    client = await client_of(world, str(device_id), token, **kind)
    async with client:
        yield client


def metric(device_id: UUID, name: str) -> ua.NodeId:
    return ua.NodeId(f"{device_id}/{name}", 2)


async def call(client: Client, device_id: UUID, method: str, *arguments: str) -> Any:
    device = client.get_node(ua.NodeId(str(device_id), 2))
    return await device.call_method(ua.NodeId(f"{device_id}#{method}", 2), *arguments)


async def test_what_a_client_writes_is_stored_when_the_write_is_answered(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        temp = client.get_node(await call(client, device_id, "AddMetric", "temp", "number"))
        at = datetime.now(UTC).replace(microsecond=123_000)
        await temp.write_value(ua.DataValue(ua.Variant(21.5), SourceTimestamp=at))
        await temp.write_value(
            ua.DataValue(
                ua.Variant(22, ua.VariantType.Int32),
                StatusCode=ua.StatusCode(ua.StatusCodes.UncertainLastUsableValue),
                SourceTimestamp=at + timedelta(seconds=1),
            )
        )
        points = await served.until_stored(device_id, 2)
        assert [(name, value) for name, _, value in points] == [("temp", 21.5), ("temp", 22.0)]
        assert points[0][1] == at.timestamp()
        rows = await served.query(
            "SELECT quality FROM historian.points p JOIN historian.series s"
            " ON p.tenant = s.tenant AND p.series = s.id WHERE s.device_id = $1 ORDER BY ts",
            device_id,
        )
        assert [row["quality"] for row in rows] == [Quality.GOOD, Quality.UNCERTAIN]


async def status_of(work: Any) -> int:
    """Return the StatusCode that something ends with."""
    try:
        await work
    except ua.UaStatusCodeError as error:
        return int(error.code)
    return int(ua.StatusCodes.Good)


async def test_a_write_that_cannot_be_kept_is_refused_with_its_reason(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        temp = client.get_node(await call(client, device_id, "AddMetric", "temp", "number"))
        now = datetime.now(UTC)
        for value, code in [
            (ua.DataValue(ua.Variant("warm")), ua.StatusCodes.BadTypeMismatch),
            (ua.DataValue(ua.Variant([1.0, 2.0])), ua.StatusCodes.BadTypeMismatch),
            (ua.DataValue(ua.Variant(float("nan"))), ua.StatusCodes.BadOutOfRange),
            (
                ua.DataValue(ua.Variant(1.0), SourceTimestamp=now + timedelta(days=2)),
                ua.StatusCodes.BadInvalidTimestamp,
            ),
        ]:
            assert await status_of(temp.write_value(value)) == code
        assert await status_of(call(client, device_id, "AddMetric", "", "number")) == (
            ua.StatusCodes.BadInvalidArgument
        )
        assert await status_of(call(client, device_id, "Publish")) == (
            ua.StatusCodes.BadInvalidArgument
        )
        commands = client.get_node(ua.NodeId(f"{device_id}#Commands", 2))
        assert await status_of(commands.write_value("{}")) == ua.StatusCodes.BadNotWritable
        assert await served.stored(device_id) == []


async def test_nobody_sees_another_device_however_it_asks(
    served: World, principal_headers: PrincipalHeaders
) -> None:
    foreign, foreign_token = await World(
        served.app, served.http, served.urls, uuid4(), principal_headers(uuid4())
    ).device()
    own, own_token = await served.device()
    async with (
        session(served, foreign, foreign_token) as theirs,
        session(served, own, own_token) as ours,
    ):
        node = await call(theirs, foreign, "AddMetric", "temp", "number")
        await theirs.get_node(node).write_value(ua.Variant(66.0))
        seen = [node async for node in every_node(ours)]
        assert any(str(own) in text for text in seen)
        assert not any(str(foreign) in text for text in seen)

        there_never_was = uuid4()
        for asked in (
            lambda device: ours.get_node(metric(device, "temp")).read_value(),
            lambda device: ours.get_node(metric(device, "temp")).write_value(ua.Variant(1.0)),
            lambda device: browsed(ours, metric(device, "temp")),
            lambda device: ours.get_node(metric(device, "temp")).read_raw_history(None, None, 10),
            lambda device: ours.get_node(ua.NodeId(str(device), 2)).get_child("2:temp"),
            lambda device: call(ours, device, "Publish", '{"temp": 1}'),
            lambda device: subscribed(ours, metric(device, "temp")),
            lambda device: subscribed(ours, ua.NodeId(f"{device}#Commands", 2)),
            lambda device: ours.delete_nodes([ours.get_node(metric(device, "temp"))]),
        ):
            answer = await status_of(asked(foreign))
            assert answer == await status_of(asked(there_never_was))
            assert answer != ua.StatusCodes.Good
        registered = await ours.uaclient.session.register_nodes([metric(foreign, "temp")])
        assert await status_of(ours.get_node(registered[0]).read_value()) == (
            ua.StatusCodes.BadNodeIdUnknown
        )
        assert [value for _, _, value in await served.until_stored(foreign, 1)] == [66.0]


async def every_node(client: Client) -> AsyncIterator[str]:
    """Walk the plant's part of the address space, and name all that is met."""
    waiting = [client.nodes.objects]
    while waiting:
        node = waiting.pop()
        for reference in await node.get_references(direction=ua.BrowseDirection.Forward):
            yield f"{reference.NodeId.to_string()} {reference.BrowseName.Name}"
            if reference.NodeId.NamespaceIndex == 2:
                waiting.append(client.get_node(reference.NodeId))


async def browsed(client: Client, node_id: ua.NodeId) -> None:
    """Browse a node; the library's own call passes over what is wrong."""
    description = ua.BrowseDescription()
    description.NodeId = node_id
    params = ua.BrowseParameters()
    params.NodesToBrowse = [description]
    (result,) = await client.uaclient.session.browse(params)
    result.StatusCode.check()


class Seen:
    """What a subscription brought."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        self.values.append(value)


async def subscribed(client: Client, node_id: ua.NodeId) -> Seen:
    seen = Seen()
    subscription = await client.create_subscription(100, seen)
    try:
        await subscription.subscribe_data_change(client.get_node(node_id), queuesize=10)
    except ua.UaStatusCodeError:
        await subscription.delete()
        raise
    return seen


async def test_a_subscription_cannot_be_taken_over_nor_a_session(served: World) -> None:
    own, own_token = await served.device()
    other, other_token = await served.device()
    async with (
        session(served, own, own_token) as ours,
        session(served, other, other_token) as theirs,
    ):
        node = await call(theirs, other, "AddMetric", "temp", "number")
        seen = Seen()
        subscription = await theirs.create_subscription(100, seen)
        await subscription.subscribe_data_change(theirs.get_node(node))
        params = ua.TransferSubscriptionsParameters()
        params.SubscriptionIds = [subscription.subscription_id]
        assert await status_of(ours.uaclient.session.transfer_subscriptions(params)) == (
            ua.StatusCodes.BadServiceUnsupported
        )
        await theirs.get_node(node).write_value(ua.Variant(5.0))
        await until(lambda: 5.0 in seen.values, "it still tells its own session")

        thief = await client_of(served, str(own), own_token)
        await thief.connect_socket()
        await thief.send_hello()
        await thief.open_secure_channel()
        thief.uaclient.session.restore_authentication_token(
            theirs.uaclient.session.authentication_token
        )
        thief._server_nonce = theirs._server_nonce
        thief._policy_ids = theirs._policy_ids
        with pytest.raises(ua.UaStatusCodeError):
            await thief.activate_session(username=str(own), password=own_token)
        thief.disconnect_socket()


async def test_whoever_is_not_a_device_or_does_not_encrypt_is_not_let_in(served: World) -> None:
    device_id, token = await served.device()
    other_id, other_token = await served.device()
    for user, password in [
        (str(device_id), "iiotd_" + "x" * 43),
        (str(device_id), other_token),
        ("admin", token),
        ("", ""),
    ]:
        client = await client_of(served, user, password)
        with pytest.raises(ua.UaError):
            await client.connect()
        client.disconnect_socket()
    nobody = Client(url(served), timeout=20)
    endpoints = await nobody.connect_and_get_server_endpoints()
    assert {each.SecurityMode for each in endpoints} == {ua.MessageSecurityMode.SignAndEncrypt}
    assert {token.TokenType for each in endpoints for token in each.UserIdentityTokens} == {
        ua.UserTokenType.UserName
    }
    nobody.set_user(str(device_id))
    nobody.set_password(token)
    with pytest.raises((ua.UaError, ConnectionError)):
        await nobody.connect()
    nobody.disconnect_socket()
    async with session(served, other_id, other_token):
        pass


async def test_only_certificates_on_the_trust_list_open_a_channel(
    serving: Serving, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    now = datetime.now(UTC)
    stranger = new_identity(now, CLIENT_URI)
    expired = new_identity(now - VALID - timedelta(days=1), CLIENT_URI)
    (trusted / "expired.der").write_bytes(expired.certificate)
    async with serving(opcua_trusted=trusted) as world:
        device_id, token = await world.device()

        async def code(identity: Identity) -> int:
            client = await client_of(world, str(device_id), token, identity=identity)
            refused = await status_of(client.connect())
            client.disconnect_socket()
            return refused

        assert await code(stranger) == ua.StatusCodes.BadCertificateUntrusted
        assert await code(expired) == ua.StatusCodes.BadCertificateTimeInvalid
        (kept,) = (trusted / "rejected").iterdir()
        assert kept.read_bytes() == stranger.certificate
        kept.rename(trusted / kept.name)
        async with session(world, device_id, token, identity=stranger) as let_in:
            await call(let_in, device_id, "AddMetric", "temp", "number")


async def test_a_certificate_is_that_of_the_application_that_shows_it(served: World) -> None:
    device_id, token = await served.device()
    other = new_identity(datetime.now(UTC), "urn:somebody:else")
    client = await client_of(served, str(device_id), token, identity=other)
    assert await status_of(client.connect()) == ua.StatusCodes.BadCertificateUriInvalid
    client.disconnect_socket()


async def test_what_the_device_says_elsewhere_is_seen_live(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        node = await call(client, device_id, "AddMetric", "temp", "number")
        seen = await subscribed(client, node)
        answer = await served.http.post(
            "/api/v1/telemetry",
            json={"values": {"temp": 77.5, "running": True}},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == 202, answer.text
        await until(lambda: 77.5 in seen.values, "the value is shown")
        running = client.get_node(metric(device_id, "running"))

        async def is_shown() -> bool:
            return bool(await status_of(running.read_value()) == ua.StatusCodes.Good)

        await until(is_shown, "a metric that is new to the session has its node")
        assert await running.read_value() is True


async def test_published_json_and_reports_are_as_by_any_protocol(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        await call(client, device_id, "Publish", '{"temp": 1.5, "name": "press"}')
        assert ("temp", 1.5) in {
            (name, value) for name, _, value in await served.until_stored(device_id, 1)
        }
        await call(client, device_id, "Publish", "{not json")
        await call(client, device_id, "Report", "alerts", '{"message": "oil low"}')
        assert await status_of(call(client, device_id, "Report", "gossip", "{}")) == (
            ua.StatusCodes.BadInvalidArgument
        )

        async def is_quarantined() -> bool:
            listed = await served.http.get(
                f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=served.headers
            )
            reasons: list[str] = [entry["reason"] for entry in listed.json()["items"]]
            return reasons == ["malformed"]

        await until(is_quarantined, "what was no JSON is in quarantine")


async def test_commands_reach_who_subscribes_to_them_and_are_answered(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        seen = await subscribed(client, ua.NodeId(f"{device_id}#Commands", 2))
        asked = await served.http.post(
            f"/api/v1/devices/{device_id}/commands",
            json={"name": "reboot", "params": {"delay": 3}},
            headers=served.headers,
        )
        assert asked.status_code in (201, 202), asked.text
        await until(lambda: any(seen.values), "the command has arrived")
        command = json.loads(next(value for value in seen.values if value))
        assert (command["name"], command["params"]) == ("reboot", {"delay": 3})
        await call(client, device_id, "Reply", command["id"], "succeeded", '{"rpm": 0}')

        async def is_done() -> bool:
            answer = await served.http.get(
                f"/api/v1/devices/{device_id}/commands/{command['id']}", headers=served.headers
            )
            return bool(answer.json()["status"] == "succeeded")

        await until(is_done, "the command is done")


async def test_a_revoked_device_is_cut_off(served: World) -> None:
    device_id, token = await served.device()
    client = await client_of(served, str(device_id), token)
    await client.connect()
    gone = await served.http.delete(f"/api/v1/devices/{device_id}", headers=served.headers)
    assert gone.status_code == 204
    await until(lambda: is_over(client), "the connection is closed", within_s=5)
    client.disconnect_socket()


async def test_a_suspended_tenant_s_sessions_are_cut_and_none_gets_in(
    served: World, bus: LocalBus
) -> None:
    device_id, token = await served.device()
    client = await client_of(served, str(device_id), token)
    await client.connect()
    await hear(served, bus, said(served, "suspended"))
    await until(lambda: is_over(client), "the connection is closed", within_s=5)
    client.disconnect_socket()
    again = await client_of(served, str(device_id), token)
    assert await status_of(again.connect()) == ua.StatusCodes.BadUserAccessDenied
    again.disconnect_socket()


def is_over(client: Client) -> bool:
    protocol = client.uaclient.protocol
    return protocol is None or bool(protocol.is_closed)


async def test_a_chunk_longer_than_any_may_be_is_not_waited_for(served: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.app.state.opcua_port)
    writer.write(b"HELF" + (2**31 - 1).to_bytes(4, "little"))

    async def send_on() -> None:
        for _ in range(200):
            writer.write(b"\0" * 65_536)
            await writer.drain()
        await reader.readexactly(1)

    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await send_on()
    writer.close()


async def test_what_it_says_of_its_bounds_is_so(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        limits = client.get_node(ua.ObjectIds.Server_ServerCapabilities_OperationLimits)
        told = {
            (await each.read_browse_name()).Name: await each.read_value()
            for each in await limits.get_properties()
        }
        assert {name for name, most in told.items() if most} == {
            "MaxNodesPerRead",
            "MaxNodesPerWrite",
            "MaxNodesPerMethodCall",
            "MaxNodesPerBrowse",
            "MaxNodesPerRegisterNodes",
            "MaxNodesPerTranslateBrowsePathsToNodeIds",
            "MaxMonitoredItemsPerCall",
        }
        most = told["MaxNodesPerRead"]
        read = client.uaclient.session.read_attributes
        node = ua.NodeId(str(device_id), 2)
        assert len(await read([node] * most, ua.AttributeIds.BrowseName)) == most
        assert await status_of(read([node] * (most + 1), ua.AttributeIds.BrowseName)) == (
            ua.StatusCodes.BadTooManyOperations
        )


async def test_sessions_subscriptions_and_items_have_their_bounds(served: World) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        made = await client.create_subscription(0.001, Seen())
        service = served.app.state.opcua.by_device[device_id][0].subscription_service
        assert [each.data.RevisedPublishingInterval for each in service.subscriptions.values()] == [
            100.0
        ]
        node = client.get_node(await call(client, device_id, "AddMetric", "temp", "number"))
        await made.subscribe_data_change([node] * 900)
        await made.subscribe_data_change([node] * 900)
        assert await status_of(made.subscribe_data_change([node] * 900)) == (
            ua.StatusCodes.BadTooManyMonitoredItems
        )
        for _ in range(9):
            await client.create_subscription(500, Seen())
        assert await status_of(client.create_subscription(500, Seen())) == (
            ua.StatusCodes.BadTooManySubscriptions
        )


async def test_a_metric_that_exists_is_there_though_the_device_has_all_it_may(
    served: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await served.device()
    monkeypatch.setattr(served.app.state.opcua, "metrics", 1)
    async with session(served, device_id, token) as client:
        node = await call(client, device_id, "AddMetric", "temp", "number")
        assert await call(client, device_id, "AddMetric", "temp", "number") == node
        for name, kind in (("temp", "text"), ("pressure", "number")):
            assert await status_of(call(client, device_id, "AddMetric", name, kind)) == (
                ua.StatusCodes.BadInvalidArgument
            )


async def test_a_metric_without_values_is_of_no_other_type_than_it_was_made(
    served: World,
) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        await call(client, device_id, "AddMetric", "running", "bool")
        assert await status_of(call(client, device_id, "AddMetric", "running", "text")) == (
            ua.StatusCodes.BadInvalidArgument
        )
        running = client.get_node(metric(device_id, "running"))
        bad = ua.StatusCode(ua.StatusCodes.BadSensorFailure)
        await running.write_value(ua.DataValue(None, StatusCode=bad))
        await running.write_value(ua.Variant(True))
        points = await served.until_stored(device_id, 2)
        assert points[-1][2] == 1.0


async def test_a_write_is_not_answered_before_it_is_durable(
    served: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await served.device()
    async with session(served, device_id, token) as client:
        node = client.get_node(await call(client, device_id, "AddMetric", "temp", "number"))
        await node.write_value(ua.Variant(1.0))
        intake = served.app.state.intake
        publish, may_go = intake._publish, asyncio.Event()

        async def wait_first(messages: Any) -> None:
            await may_go.wait()
            await publish(messages)

        monkeypatch.setattr(intake, "_publish", wait_first)
        writing = asyncio.create_task(node.write_value(ua.Variant(2.0)))
        done, _ = await asyncio.wait([writing], timeout=0.5)
        assert not done
        may_go.set()
        await writing
