"""Live connections, over real sockets."""

import asyncio
import contextlib
import json
from array import array
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from libs.common.bus.local import LocalBus
from libs.common.events.alerting import AlertOpened
from libs.common.events.base import to_message
from libs.common.events.ingest import DeviceStatusChanged, TelemetryReceived, Text
from libs.common.events.tenancy import MembershipChanged
from libs.common.severity import Severity
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import Person, World, bearer, running, serving

TS = 1_790_000_000_123_456


@contextlib.asynccontextmanager
async def listening(
    world: World, port: int, person: Person | None = None, **more: Any
) -> AsyncIterator[ClientConnection]:
    """Connect with a ticket of the person's."""
    address = f"ws://127.0.0.1:{port}/api/v1/ws"
    if person is not None:
        address += "?ticket=" + await ticket(world, person)
    async with connect(address, proxy=None, **more) as socket:
        yield socket


async def ticket(world: World, person: Person) -> str:
    """Log in and get a ticket."""
    answer = await world.http.post("/api/v1/auth/ws-ticket", headers=await world.headers(person))
    assert answer.status_code == 201
    issued: str = answer.json()["ticket"]
    return issued


async def frame(socket: ClientConnection) -> dict[str, Any]:
    """Return the next frame."""
    async with asyncio.timeout(10):
        received: dict[str, Any] = json.loads(await socket.recv())
    return received


async def close_code(socket: ClientConnection) -> int:
    """Return the code the connection is closed with."""
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionClosed) as closed:
            await _read_all(socket)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def _read_all(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def subscribe(socket: ClientConnection, **wish: Any) -> dict[str, Any]:
    """Subscribe, and return the answer; what is said afterwards is heard."""
    await socket.send(json.dumps({"subscribe": wish}))
    return await frame(socket)


async def series(world: World, tenant_id: UUID, device_id: UUID, metric: str, kind: int = 0) -> Any:
    """Let the historian know a series; return its row (tenant, id)."""
    (number,) = await world.query("SELECT historian.tenant_number($1) AS n", tenant_id)
    (row,) = await world.query(
        "INSERT INTO historian.series (tenant, device_id, metric, kind) VALUES ($1, $2, $3, $4)"
        " RETURNING tenant, id",
        number["n"],
        device_id,
        metric,
        kind,
    )
    return row


def batch(*points: tuple[Any, float], texts: tuple[Text, ...] = ()) -> TelemetryReceived:
    """Put points of series into one batch, as ingest does."""
    return TelemetryReceived(
        at=datetime.now(UTC),
        shard=0,
        tenants=array("i", [row["tenant"] for row, _ in points]).tobytes(),
        series=array("i", [row["id"] for row, _ in points]).tobytes(),
        ts=array("q", [TS] * len(points)).tobytes(),
        values=array("d", [value for _, value in points]).tobytes(),
        quality=bytes(len(points)),
        texts=texts,
    )


async def test_one_hears_the_points_of_ones_own_tenant_and_no_others(world: World) -> None:
    ann, ben = world.person(), world.person()
    pump, press = uuid4(), uuid4()
    temp = await series(world, ann.tenant_id, pump, "temp")
    runs = await series(world, ann.tenant_id, pump, "runs", kind=1)
    state = await series(world, ann.tenant_id, pump, "state", kind=2)
    secret = await series(world, ben.tenant_id, press, "secret")
    async with (
        serving(world.app) as port,
        listening(world, port, ann) as hers,
        listening(world, port, ben) as his,
    ):
        await subscribe(hers)
        await subscribe(his)
        text = Text(state["tenant"], state["id"], TS, "idle", 0)
        await world.bus.publish(
            [batch((temp, 21.5), (secret, 42), (runs, 1), texts=(text,)).to_message()]
        )
        heard = await frame(hers)
        assert heard["type"] == "telemetry_update"
        ts = "2026-09-21T14:13:20.123456Z"
        assert heard["points"] == [
            {"device_id": str(pump), "metric": "temp", "ts": ts, "value": 21.5, "quality": 0},
            {"device_id": str(pump), "metric": "runs", "ts": ts, "value": True, "quality": 0},
            {
                "device_id": str(pump),
                "metric": "state",
                "ts": ts,
                "value": "idle",
                "quality": 0,
            },
        ]
        assert [p["metric"] for p in (await frame(his))["points"]] == ["secret"]


async def test_one_may_ask_for_some_devices_only(world: World) -> None:
    ann = world.person()
    pump, press = uuid4(), uuid4()
    wanted = await series(world, ann.tenant_id, pump, "temp")
    other = await series(world, ann.tenant_id, press, "temp")
    async with serving(world.app) as port, listening(world, port, ann) as socket:
        answer = await subscribe(socket, devices=[str(pump)], types=["telemetry_update"])
        assert answer["type"] == "subscribed"
        await world.bus.publish([batch((other, 1)).to_message(), batch((wanted, 2)).to_message()])
        heard = await frame(socket)
        assert [p["device_id"] for p in heard["points"]] == [str(pump)]


async def test_devices_and_alerts_are_told_as_they_happen(world: World) -> None:
    ann, ben = world.person(), world.person()
    pump = uuid4()
    async with serving(world.app) as port, listening(world, port, ann) as socket:
        await subscribe(socket)
        now = world.clock.now()

        def alert(tenant_id: UUID, title: str) -> AlertOpened:
            return AlertOpened(
                tenant_id=tenant_id,
                at=now,
                alert_id=uuid4(),
                severity=Severity.HIGH,
                title=title,
                message="",
                source_kind="rule",
                source_id=uuid4(),
                device_id=pump,
            )

        status = DeviceStatusChanged(
            tenant_id=ann.tenant_id, at=now, device_id=pump, status="offline", reason="silent"
        )
        events = [alert(ben.tenant_id, "not hers"), status, alert(ann.tenant_id, "too hot")]
        await world.bus.publish([to_message(event) for event in events])
        first, second = await frame(socket), await frame(socket)
        assert (first["type"], first["event"]) == ("device_update", "status_changed")
        assert first["device_id"] == str(pump)
        assert first["data"]["status"] == "offline"
        assert (second["type"], second["event"]) == ("alert", "opened")
        assert second["data"]["title"] == "too hot"
        assert second["data"]["severity"] == "high"


async def test_what_one_may_not_read_is_not_streamed(world: World) -> None:
    ann = world.person("devices:read")
    async with serving(world.app) as port, listening(world, port, ann) as socket:
        assert (await subscribe(socket))["types"] == ["device_update"]


async def test_logging_out_closes_the_connection(world: World) -> None:
    ann = world.person()
    headers = await world.headers(ann)
    issued = await world.http.post("/api/v1/auth/ws-ticket", headers=headers)
    async with serving(world.app) as port:
        address = f"ws://127.0.0.1:{port}/api/v1/ws?ticket={issued.json()['ticket']}"
        async with connect(address, proxy=None) as socket, listening(world, port, ann) as other:
            await subscribe(socket)
            await world.http.post("/api/v1/auth/logout", headers=headers)
            assert await close_code(socket) == 4401
            assert (await subscribe(other))["type"] == "subscribed"


async def test_a_change_of_permissions_closes_the_connection(world: World) -> None:
    ann = world.person()
    async with serving(world.app) as port, listening(world, port, ann) as socket:
        await subscribe(socket)
        changed = MembershipChanged(
            tenant_id=ann.tenant_id, at=world.clock.now(), user_id=ann.user_id, roles=["viewer"]
        )
        await world.bus.publish([to_message(changed)])
        assert await close_code(socket) == 4401


async def test_an_access_token_in_the_header_opens_it_until_the_token_expires(
    world: World,
) -> None:
    ann = world.person()
    token = (await world.log_in(ann))["access_token"]
    async with (
        serving(world.app) as port,
        listening(world, port, additional_headers=bearer(token)) as socket,
    ):
        await subscribe(socket)
        world.forward(minutes=15)
        assert await close_code(socket) == 4401


async def test_a_ticket_is_good_once_and_for_half_a_minute(world: World) -> None:
    ann = world.person()
    async with serving(world.app) as port:
        issued = await ticket(world, ann)
        address = f"ws://127.0.0.1:{port}/api/v1/ws?ticket={issued}"
        async with connect(address, proxy=None) as socket:
            await subscribe(socket)
        async with connect(address, proxy=None) as socket:
            assert await close_code(socket) == 4401
        late = await ticket(world, ann)
        world.forward(seconds=30)
        address = f"ws://127.0.0.1:{port}/api/v1/ws?ticket={late}"
        async with connect(address, proxy=None) as socket:
            assert await close_code(socket) == 4401


async def test_a_browser_may_bring_the_ticket_as_a_subprotocol(world: World) -> None:
    ann = world.person()
    async with serving(world.app) as port:
        issued = await ticket(world, ann)
        async with listening(world, port, subprotocols=["iiot.v1", issued]) as socket:
            assert socket.subprotocol == "iiot.v1"
            await subscribe(socket)


@pytest.mark.parametrize("query", ["", "?ticket=", "?ticket=iiotw_x", "?access_token={token}"])
async def test_without_a_ticket_it_closes(world: World, query: str) -> None:
    token = (await world.log_in(world.person()))["access_token"]
    async with serving(world.app) as port:
        address = f"ws://127.0.0.1:{port}/api/v1/ws" + query.format(token=token)
        async with connect(address, proxy=None) as socket:
            assert await close_code(socket) == 4401


async def test_a_page_of_another_site_may_not_connect(world: World) -> None:
    ann = world.person()
    async with serving(world.app) as port:
        with pytest.raises(InvalidStatus) as refused:
            async with listening(world, port, ann, origin="https://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        async with listening(world, port, ann, origin=f"http://127.0.0.1:{port}") as socket:
            await subscribe(socket)


@pytest.mark.parametrize(
    "text", ["{", '"x"', '{"subscribe":{"devices":["x"]}}', '{"subscribe":{},"more":1}']
)
async def test_what_cannot_be_read_is_answered_and_the_connection_lives(
    world: World, text: str
) -> None:
    async with serving(world.app) as port, listening(world, port, world.person()) as socket:
        await socket.send(text)
        assert (await frame(socket))["type"] == "error"
        assert (await subscribe(socket))["type"] == "subscribed"


async def test_a_message_that_is_too_long_closes_it(world: World) -> None:
    async with serving(world.app) as port, listening(world, port, world.person()) as socket:
        await socket.send("x" * (64 * 1024 + 1))
        assert await close_code(socket) == 1009


async def test_too_many_of_one_login_are_refused_with_the_reason(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    few = settings.model_copy(update={"live_connections_of_session": 1})
    async with running(few, bus, database_urls) as world, serving(world.app) as port:
        ann = world.person()
        headers = await world.headers(ann)
        address = f"ws://127.0.0.1:{port}/api/v1/ws"
        async with connect(address, proxy=None, additional_headers=headers) as first:
            await subscribe(first)
            async with connect(address, proxy=None, additional_headers=headers) as second:
                with pytest.raises(ConnectionClosed) as closed:
                    async with asyncio.timeout(10):
                        await second.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4429
                assert closed.value.rcvd.reason == "this session has 1 live connections already"
            await subscribe(first)


async def test_handshakes_from_one_address_are_limited(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    few = settings.model_copy(update={"live_connections_per_minute": 2})
    async with running(few, bus, database_urls) as world, serving(world.app) as port:
        for _ in range(2):
            async with listening(world, port) as socket:
                assert await close_code(socket) == 4401
        with pytest.raises(InvalidStatus) as refused:
            async with listening(world, port, world.person()):
                pass
        response = refused.value.response
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert b"urn:iiot:problem:too-many-requests" in response.body


async def test_by_a_name_that_is_not_ours_there_is_no_live_connection(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    named = settings.model_copy(update={"allowed_hosts": ("gateway",)})
    async with running(named, bus, database_urls) as world, serving(world.app) as port:
        with pytest.raises(InvalidStatus) as refused:
            async with listening(world, port, world.person()):
                pass
        assert refused.value.response.status_code == 421


async def test_whoever_reads_too_slowly_is_cut_and_the_others_are_not(world: World) -> None:
    ann = world.person()
    temp = await series(world, ann.tenant_id, uuid4(), "temp")
    async with (
        serving(world.app) as port,
        listening(world, port, ann, max_queue=1, ping_interval=None, compression=None) as slow,
        listening(world, port, ann, compression=None) as quick,
    ):
        await subscribe(slow)
        await subscribe(quick)
        big = batch(*[(temp, n) for n in range(2000)]).to_message()
        connections = world.app.state.live._all()
        async with asyncio.timeout(60):
            # The slow one reads nothing; sooner or later its frames fill all buffers.
            while not any(connection.closed.done() for connection in connections):
                await world.bus.publish([big])
                while (await frame(quick))["points"][-1]["value"] != 1999:
                    pass
        assert await close_code(slow) == 1013
