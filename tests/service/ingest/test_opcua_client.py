"""Connecting out to OPC UA servers: a PLC of asyncua's, set up by API, its tags stored."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from asyncua import ua

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.historian.point import Kind, Quality
from services.ingest.app import build
from services.ingest.protocols import connectors
from services.ingest.protocols.opcua import connection, subscription
from services.ingest.protocols.opcua.certificates import VALID, fingerprint, new_identity
from services.ingest.protocols.opcua.progress import Progress
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.plc import URI, Plc
from tests.service.ingest.conftest import World, running
from tests.waiting import until


@pytest.fixture
async def site(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """An ingest whose connectors may connect to this machine."""
    own = Settings(
        **settings.model_dump()
        | {"connector_addresses": ["127.0.0.0/8"], "credentials_key": "k" * 32}
    )
    app, tenant_id = build(own, bus, SystemClock(), keys=keys), uuid4()
    headers = principal_headers(tenant_id)
    async with running(app, bus, database_urls, tenant_id, headers) as world:
        yield world
        for connector in (await world.http.get("/api/v1/connectors", headers=headers)).json()[
            "items"
        ]:
            await world.http.delete(f"/api/v1/connectors/{connector['id']}", headers=headers)


@asynccontextmanager
async def a_plc(
    *, history: tuple[str, ...] = (), port: int = 0, is_whole: bool = False
) -> AsyncIterator[Plc]:
    plc = Plc(port, is_whole=is_whole)
    await plc.start(history=history)
    try:
        yield plc
    finally:
        await plc.stop()


async def connect(world: World, plc: Plc, items: list[dict[str, Any]], **settings: Any) -> UUID:
    """Set a connector up."""
    secrets = settings.pop("secrets", {})
    answer = await world.http.post(
        "/api/v1/connectors",
        json={
            "name": f"plc {uuid4()}",
            "kind": "opcua",
            "settings": {
                "endpoint": plc.url,
                "security": "none",
                "allow_insecure": True,
                "publishing_ms": 20,
                "items": items,
            }
            | settings,
            "secrets": secrets,
        },
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


async def until_it_is(world: World, connector: UUID, state: str, reason: str = "") -> str:
    """Wait until the connector is in a state; return its reason."""
    shown: dict[str, Any] = {}

    async def is_so() -> bool:
        answer = await world.http.get(f"/api/v1/connectors/{connector}", headers=world.headers)
        shown.clear()
        shown.update(answer.json())
        return shown["state"] == state and reason in shown["reason"]

    try:
        await until(is_so, f"the connector is {state}: {reason}")
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {shown['state']}: {shown['reason']}") from None
    return str(shown["reason"])


def item(device: object, metric: str, node: str = "", **more: Any) -> dict[str, Any]:
    return (
        {"device": str(device), "metric": metric}
        | ({"node_id": f"ns=2;s={node}"} if node else {})
        | more
    )


async def test_what_a_plc_measures_is_stored_with_its_quality_time_and_unit(site: World) -> None:
    device_id, _ = await site.device("press 7")
    async with a_plc() as plc:
        unit = ua.EUInformation()
        unit.DisplayName = ua.LocalizedText("°C")
        await plc.nodes["Temp"].add_property(
            ua.NodeId("Temp.Unit", 2), ua.QualifiedName("EngineeringUnits", 0), unit
        )
        await plc.add("Running", False)
        await plc.add("State", "idle")
        await plc.add("Count", 1, ua.VariantType.UInt16)
        connector = await connect(
            site,
            plc,
            [
                item("press 7", "temp", browse_path="2:Line1/2:Press/2:Temp"),
                item(device_id, "running", "Running"),
                item(device_id, "state", "State"),
                item(device_id, "count", "Count"),
            ],
        )
        await until_it_is(site, connector, "connected")
        await site.until_stored(device_id, 3)
        first = await plc.set("Temp", 21.5)
        uncertain = await plc.set("Temp", 22.5, status=ua.StatusCodes.UncertainLastUsableValue)
        bad = await plc.set("Temp", None, status=ua.StatusCodes.BadSensorFailure)

        async def temps() -> list[tuple[datetime, float, int]]:
            return [
                (row["ts"], row["value"], row["quality"])
                for row in await site.query(
                    "SELECT p.ts, p.value, p.quality FROM historian.series s"
                    " JOIN historian.points p ON p.tenant = s.tenant AND p.series = s.id"
                    " WHERE s.device_id = $1 AND s.metric = 'temp' ORDER BY p.ts",
                    device_id,
                )
            ]

        async def all_there() -> bool:
            return len(await temps()) >= 4

        await until(all_there, "all of the press's temperatures are stored")
        stored = (await temps())[-3:]
        assert [(ts, quality) for ts, _, quality in stored] == [
            (first, Quality.GOOD),
            (uncertain, Quality.UNCERTAIN),
            (bad, Quality.BAD),
        ]
        assert [value for _, value, _ in stored[:2]] == [21.5, 22.5]
        assert await site.query(
            "SELECT 1 FROM historian.series WHERE device_id = $1 AND metric = 'temp'"
            " AND unit = 'degC'",
            device_id,
        ) or await site.query(
            "SELECT 1 FROM historian.series WHERE device_id = $1 AND metric = 'temp'"
            " AND unit = '°C'",
            device_id,
        )


async def values(world: World, device_id: UUID, metric: str = "temp") -> list[float]:
    return [value for name, _, value in await world.stored(device_id) if name == metric]


async def until_there_are(world: World, device_id: UUID, *expected: float) -> None:
    async def are_there() -> bool:
        return set(expected) <= set(await values(world, device_id))

    try:
        await until(are_there, f"{expected} are stored")
    except AssertionError as error:
        missing = sorted(set(expected) - set(await values(world, device_id)))
        raise AssertionError(f"{len(missing)} are missing: {missing[:5]}") from error


async def test_a_node_that_is_not_there_is_named_and_the_others_go_on(site: World) -> None:
    device_id, _ = await site.device()
    async with a_plc() as plc:
        await plc.add("Profile", [1.0, 2.0])
        connector = await connect(
            site,
            plc,
            [
                item(device_id, "temp", "Temp"),
                item(device_id, "ghost", "Ghost"),
                item(device_id, "lost", browse_path="2:Line1/2:Nowhere"),
                item(device_id, "profile", "Profile"),
                item(uuid4(), "temp", "Temp"),
            ],
        )
        await until_there_are(site, device_id, 20.0)
        reason = await until_it_is(site, connector, "degraded", "array")
        assert "ns=2;s=Ghost: BadNodeIdUnknown" in reason
        assert "2:Line1/2:Nowhere: BadNoMatch" in reason
        assert "there is no such device" in reason
        await plc.set("Temp", 31.0)
        await until_there_are(site, device_id, 31.0)


async def test_what_was_missed_is_read_from_the_history(site: World) -> None:
    device_id, _ = await site.device()
    async with a_plc(history=("Temp",)) as plc:
        connector = await connect(
            site, plc, [item(device_id, "temp", "Temp")], history=True, history_overlap_s=1
        )
        await until_it_is(site, connector, "connected")
        await plc.set("Temp", 1.0)
        await until_there_are(site, device_id, 1.0)
        await change(site, connector, is_enabled=False)
        await until(lambda: not plc.subscriptions(), "the connector has left")
        before = datetime.now(UTC)
        for number in range(2, 2_502):
            await plc.set("Temp", float(number), at=before + timedelta(microseconds=number))
        await change(site, connector, is_enabled=True)
        await until_it_is(site, connector, "connected")
        await until_there_are(site, device_id, *map(float, range(1, 2_502)))
        stored = sorted(await values(site, device_id))
        # The 20 that it began with, and 20 as one of those that followed.
        assert stored == sorted([20.0, *map(float, range(1, 2_502))]), "the overlap is stored once"


async def change(world: World, connector: UUID, **what: Any) -> None:
    answer = await world.http.patch(
        f"/api/v1/connectors/{connector}", json=what, headers=world.headers
    )
    assert answer.status_code == 200, answer.text


async def test_without_a_history_the_gap_is_said_to_be_there(site: World) -> None:
    device_id, _ = await site.device()
    async with a_plc() as plc:
        connector = await connect(site, plc, [item(device_id, "temp", "Temp")], history=True)
        await until_it_is(site, connector, "connected")
        await plc.set("Temp", 1.0)
        await until_there_are(site, device_id, 1.0)
        await change(site, connector, is_enabled=False)
        await until(lambda: not plc.subscriptions(), "the connector has left")
        await change(site, connector, is_enabled=True)
        await until_it_is(site, connector, "degraded", "the server keeps no history")
        await until_it_counts_gaps(site, device_id, 1)
        await plc.set("Temp", 2.0)
        await until_there_are(site, device_id, 2.0)


async def test_it_comes_back_when_the_server_does(site: World) -> None:
    device_id, _ = await site.device()
    async with a_plc(history=("Temp",)) as plc:
        connector = await connect(site, plc, [item(device_id, "temp", "Temp")], history=True)
        await until_it_is(site, connector, "connected")
        await until_there_are(site, device_id, 20.0)
        port = plc.port
    await until_it_is(site, connector, "failed")
    async with a_plc(history=("Temp",), port=port) as plc:
        await plc.set("Temp", 2.0)
        await until_there_are(site, device_id, 2.0)
        await until_it_is(site, connector, "connected")


async def test_a_notification_is_acknowledged_when_it_is_durable(
    site: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await site.device()
    async with a_plc() as plc:
        connector = await connect(site, plc, [item(device_id, "temp", "Temp")])
        await until_it_is(site, connector, "connected")
        await until_there_are(site, device_id, 20.0)
        (subscribed,) = plc.subscriptions()
        unacknowledged = subscribed._not_acknowledged_results
        await until(lambda: not unacknowledged, "the first value is acknowledged")
        intake = site.app.state.intake
        publish, may_go, asked = intake._publish, asyncio.Event(), asyncio.Event()

        async def wait_first(messages: Any) -> None:
            asked.set()
            await may_go.wait()
            await publish(messages)

        monkeypatch.setattr(intake, "_publish", wait_first)
        await plc.set("Temp", 1.0)
        await asyncio.wait_for(asked.wait(), 10)
        await plc.set("Temp", 2.0)
        await until(lambda: len(unacknowledged) == 2, "the next value is on its way too")
        may_go.set()
        await until(lambda: not unacknowledged, "both are acknowledged")
        await until_there_are(site, device_id, 1.0, 2.0)


async def test_a_queue_that_was_too_short_shows(site: World) -> None:
    device_id, _ = await site.device()
    async with a_plc() as plc:
        connector = await connect(
            site, plc, [item(device_id, "temp", "Temp", queue_size=2)], publishing_ms=500
        )
        await until_it_is(site, connector, "connected")
        # The library's server drops in silence; others, as the standard says, set the overflow bit.
        await plc.set("Temp", 5.0, status=0x480)
        await until_it_is(site, connector, "degraded", "its queue is too short")
        await until_there_are(site, device_id, 5.0)
        await until_it_counts_gaps(site, device_id, 1)


async def test_a_server_that_has_nothing_to_say_is_listened_to_on(
    site: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for one that publishes each second, which has forty seconds until it answers a request.
    monkeypatch.setattr(subscription, "LEAST_SILENCE_S", 0.0)
    keep_alives = 0
    reach = Progress.reach

    def counting(self: Progress, published_us: int | None) -> None:
        nonlocal keep_alives
        keep_alives += 1
        reach(self, published_us)

    monkeypatch.setattr(Progress, "reach", counting)
    device_id, _ = await site.device()
    async with a_plc() as plc:
        connector = await connect(
            site, plc, [item(device_id, "temp", "Temp")], publishing_ms=50, history=True
        )
        await until_it_is(site, connector, "connected")
        before = plc.subscriptions()
        await until(lambda: keep_alives > 2 * subscription.UNDER_WAY, "it keeps itself alive")
        assert plc.subscriptions() == before
        await until_it_is(site, connector, "connected")


async def test_a_first_value_that_is_bad_and_empty_leaves_its_metric_the_kind_of_its_node(
    site: World,
) -> None:
    device_id, _ = await site.device()
    async with a_plc() as plc:
        for name, value in (("Running", False), ("State", "idle")):
            await plc.add(name, value)
            await plc.set(name, None, status=ua.StatusCodes.BadSensorFailure)
        connector = await connect(
            site,
            plc,
            [item(device_id, "running", "Running"), item(device_id, "state", "State")],
        )
        await until_it_is(site, connector, "connected")
        await until_there_are_kinds(site, device_id, running=Kind.BOOL, state=Kind.TEXT)
        await plc.set("Running", True)
        await until_there_are_of(site, device_id, "running", 1.0)


async def until_there_are_kinds(world: World, device_id: UUID, **kinds: Kind) -> None:
    held: dict[str, int] = {}

    async def are_there() -> bool:
        sql = "SELECT metric, kind FROM historian.series WHERE device_id = $1"
        held.update({row["metric"]: row["kind"] for row in await world.query(sql, device_id)})
        return held.keys() >= kinds.keys()

    await until(are_there, "its series are there")
    assert held == kinds


async def until_it_counts_gaps(world: World, device_id: UUID, gaps: int) -> None:
    """Wait until what is missing of a device is seen in its ledger."""

    async def are_there() -> bool:
        answer = await world.http.get(f"/api/v1/devices/{device_id}/ledger", headers=world.headers)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["totals"]["gaps"] == gaps)

    await until(are_there, f"{gaps} gaps are counted")


async def test_a_device_that_is_removed_is_no_longer_written(site: World) -> None:
    stays, _ = await site.device()
    goes, _ = await site.device()
    async with a_plc() as plc:
        connector = await connect(
            site, plc, [item(stays, "temp", "Temp"), item(goes, "temp", "Temp")]
        )
        await until_there_are(site, stays, 20.0)
        await until_there_are(site, goes, 20.0)
        gone = await site.http.delete(f"/api/v1/devices/{goes}", headers=site.headers)
        assert gone.status_code == 204
        await until_it_is(site, connector, "degraded", f"{goes}: there is no such device")
        await plc.set("Temp", 30.0)
        await until_there_are(site, stays, 30.0)
        assert 30.0 not in await values(site, goes)


async def test_a_device_that_is_registered_later_is_found(
    site: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors, "LOOKED_UP_EVERY_S", 0.05)
    device_id, _ = await site.device()
    async with a_plc() as plc:
        connector = await connect(
            site, plc, [item(device_id, "temp", "Temp"), item("line 2", "temp", "Temp")]
        )
        await until_it_is(site, connector, "degraded", "line 2: there is no such device")
        later, _ = await site.device("line 2")
        await until_there_are(site, later, 20.0)
        # The connection was made anew, and without a history nobody knows what changed meanwhile.
        reason = await until_it_is(site, connector, "degraded", "while not connected is missing")
        assert "no such device" not in reason


async def test_another_tenant_s_device_is_nobody_s(
    site: World, principal_headers: PrincipalHeaders
) -> None:
    foreign, _ = await World(
        site.app, site.http, site.urls, uuid4(), principal_headers(uuid4())
    ).device("theirs")
    async with a_plc() as plc:
        connector = await connect(
            site, plc, [item(foreign, "temp", "Temp"), item("theirs", "temp", "Temp")]
        )
        reason = await until_it_is(site, connector, "degraded", "there is no such device")
        assert reason.count("there is no such device") == 2
        assert await site.stored(foreign) == []


async def test_the_server_s_certificate_is_the_one_that_is_trusted(site: World) -> None:
    device_id, _ = await site.device()
    identity = new_identity(datetime.now(UTC), URI, ["127.0.0.1"])
    plc = Plc(identity=identity)
    await plc.start()
    try:
        secured = {"security": "sign_and_encrypt", "allow_insecure": False}
        wrong = await connect(
            site,
            plc,
            [item(device_id, "temp", "Temp")],
            **secured,
            server_fingerprint="00" * 32,
        )
        reason = await until_it_is(site, wrong, "failed", "not the one that is trusted")
        assert fingerprint(identity.certificate) in reason, "so that it can be compared"
        assert await site.stored(device_id) == []
        right = await connect(
            site,
            plc,
            [item(device_id, "temp", "Temp")],
            **secured,
            server_fingerprint=fingerprint(identity.certificate),
            username="anybody",
            secrets={"password": "secret"},
        )
        await until_it_is(site, right, "connected")
        await until_there_are(site, device_id, 20.0)
    finally:
        await plc.stop()


@pytest.mark.parametrize(
    ("left", "word"), [(timedelta(days=-1), "expired"), (timedelta(days=13), "expires")]
)
async def test_a_trusted_certificate_that_has_ended_or_soon_will_is_told_with_its_date(
    site: World, left: timedelta, word: str
) -> None:
    device_id, _ = await site.device()
    ends = datetime.now(UTC) + left
    identity = new_identity(ends - VALID, URI, ["127.0.0.1"])
    plc = Plc(identity=identity)
    await plc.start()
    try:
        connector = await connect(
            site,
            plc,
            [item(device_id, "temp", "Temp")],
            security="sign_and_encrypt",
            allow_insecure=False,
            server_fingerprint=fingerprint(identity.certificate),
        )
        told = f"the server's certificate: {word} on {ends:%Y-%m-%d}"
        await until_it_is(site, connector, "degraded", told)
        await until_there_are(site, device_id, 20.0)
    finally:
        await plc.stop()


async def test_our_own_certificate_that_ends_soon_is_told_with_its_date(
    site: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = datetime.now(UTC) + timedelta(days=13)
    ours = new_identity(ends - VALID)
    monkeypatch.setattr(connection, "_identity", lambda certificate, key: ours)
    device_id, _ = await site.device()
    identity = new_identity(datetime.now(UTC), URI, ["127.0.0.1"])
    plc = Plc(identity=identity)
    await plc.start()
    try:
        connector = await connect(
            site,
            plc,
            [item(device_id, "temp", "Temp")],
            security="sign_and_encrypt",
            allow_insecure=False,
            server_fingerprint=fingerprint(identity.certificate),
        )
        reason = await until_it_is(site, connector, "degraded", f"expires on {ends:%Y-%m-%d}")
        assert reason.startswith("our certificate: ")
        await until_there_are(site, device_id, 20.0)
    finally:
        await plc.stop()


async def test_a_server_that_says_it_is_elsewhere_leads_nowhere(site: World) -> None:
    device_id, _ = await site.device()
    identity = new_identity(datetime.now(UTC), URI, ["127.0.0.1"])
    plc = Plc(identity=identity)
    await plc.start()
    try:
        for endpoint in plc.server.iserver.endpoints:
            endpoint.EndpointUrl = "opc.tcp://127.0.0.9:1"
            endpoint.Server.DiscoveryUrls = ["opc.tcp://127.0.0.9:1"]
        connector = await connect(
            site,
            plc,
            [item(device_id, "temp", "Temp")],
            security="sign_and_encrypt",
            allow_insecure=False,
            server_fingerprint=fingerprint(identity.certificate),
        )
        await until_it_is(site, connector, "connected")
        await until_there_are(site, device_id, 20.0)
    finally:
        await plc.stop()


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"security": "none", "allow_insecure": False}, "/settings"),
        ({"security": "sign", "allow_insecure": False}, "/settings"),
        ({"endpoint": "http://plc:4840"}, "/settings/endpoint"),
        ({"endpoint": "opc.tcp://user:pw@plc"}, "/settings/endpoint"),
        ({"items": [{"device": "a", "metric": "m"}]}, "/settings/items/0"),
        (
            {"items": [{"device": "a", "metric": "m", "node_id": "Temp"}]},
            "/settings/items/0/node_id",
        ),
    ],
)
async def test_settings_that_cannot_be_meant_are_refused(
    site: World, wrong: dict[str, Any], pointer: str
) -> None:
    answer = await site.http.post(
        "/api/v1/connectors",
        json={
            "name": "plc",
            "kind": "opcua",
            "settings": {
                "endpoint": "opc.tcp://plc:4840",
                "security": "none",
                "allow_insecure": True,
                "items": [],
            }
            | wrong,
        },
        headers=site.headers,
    )
    assert answer.status_code == 422, answer.text
    assert pointer in answer.text


async def test_the_nodes_of_the_other_side_can_be_browsed(site: World) -> None:
    async with a_plc() as plc:
        connector = await connect(site, plc, [])

        async def below(node: str | None) -> dict[str, dict[str, Any]]:
            answer = await site.http.post(
                f"/api/v1/connectors/{connector}/browse", json={"node": node}, headers=site.headers
            )
            assert answer.status_code == 200, answer.text
            return {each["name"]: each for each in answer.json()}

        line = (await below(None))["Line1"]
        press = (await below(line["node_id"]))["Press"]
        temp = (await below(press["node_id"]))["Temp"]
        assert temp == {
            "node_id": "ns=2;s=Temp",
            "browse_name": "2:Temp",
            "name": "Temp",
            "class": "variable",
        }


async def command(world: World, device_id: UUID, name: str, **params: Any) -> UUID:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": name, "params": params},
        headers=world.headers,
    )
    assert answer.status_code in (201, 202), answer.text
    return UUID(answer.json()["id"])


async def outcome(world: World, device_id: UUID, command_id: UUID) -> dict[str, Any]:
    """Return what became of a command, once something has."""
    shown: dict[str, Any] = {}

    async def is_over() -> bool:
        answer = await world.http.get(
            f"/api/v1/devices/{device_id}/commands/{command_id}", headers=world.headers
        )
        assert answer.status_code == 200, answer.text
        shown.update(answer.json())
        return shown["status"] in ("succeeded", "failed", "expired")

    await until(is_over, "the command is over")
    return shown


async def test_commands_write_and_call_what_is_allowed_and_nothing_else(site: World) -> None:
    device_id, _ = await site.device()
    async with a_plc(is_whole=True) as plc:
        await plc.add("Speed", 0, ua.VariantType.Int16)
        await plc.add_method("Double")
        press = plc.press.nodeid.to_string()
        connector = await connect(
            site,
            plc,
            [
                item(device_id, "speed", "Speed", is_writable=True),
                item(device_id, "temp", "Temp"),
            ],
            methods=[{"device": str(device_id), "object": press, "method": "ns=2;s=Double"}],
        )
        await until_it_is(site, connector, "connected")

        done = await outcome(
            site, device_id, await command(site, device_id, "write", metric="speed", value=900)
        )
        assert done["status"] == "succeeded", done
        assert await plc.nodes["Speed"].read_value() == 900
        await until_there_are_of(site, device_id, "speed", 900.0)

        done = await outcome(
            site,
            device_id,
            await command(site, device_id, "call", object=press, method="ns=2;s=Double", args=[21]),
        )
        assert (done["status"], done["result"]) == ("succeeded", [42.0])
        assert plc.called == [("Double", 21.0)]

        for name, params, why in [
            ("write", {"metric": "temp", "value": 1}, "writable"),
            ("write", {"node_id": "ns=2;s=Temp", "value": 1}, "writable"),
            ("write", {"metric": "speed", "value": 70_000}, "whole number"),
            ("call", {"object": press, "method": "i=11492", "args": []}, "configured"),
            ("call", {"object": press, "method": "ns=2;s=Double", "args": []}, "1 arguments"),
            ("reboot", {}, "write"),
        ]:
            done = await outcome(site, device_id, await command(site, device_id, name, **params))
            assert done["status"] == "failed", done
            assert why in done["error"]
        assert await plc.nodes["Temp"].read_value() == 20.0


async def until_there_are_of(world: World, device_id: UUID, metric: str, value: float) -> None:
    async def is_there() -> bool:
        return value in await values(world, device_id, metric)

    await until(is_there, f"{metric} {value} is stored")


async def alarms(world: World, device_id: UUID) -> list[dict[str, Any]]:
    """Return the alarms that were said to the rest of the platform, oldest first."""
    rows = await world.query(
        "SELECT body FROM bus.log WHERE type = 'device.alert_reported.v1' ORDER BY position"
    )
    said = [json.loads(row["body"]) for row in rows]
    return [alarm for alarm in said if alarm["device_id"] == str(device_id)]


async def test_the_events_of_a_plc_are_alarms_of_the_devices_they_are_named_after(
    site: World,
) -> None:
    press, _ = await site.device("Press")
    pump, _ = await site.device("pump 7")
    async with a_plc(is_whole=True) as plc:
        alarm = await plc.alarm(plc.press)
        strange = await plc.alarm(plc.line)
        connector = await connect(
            site, plc, [], events=True, event_sources={"P7": "pump 7"}, publishing_ms=20
        )
        await until_it_is(site, connector, "connected")
        await alarm.fire("oil low", 700, is_active=True)
        await alarm.fire("oil is well", 100, is_active=False)
        await alarm.fire("started", 950, source="P7", is_active=True)
        await strange.fire("who am I", 500, is_active=True)
        await until_it_is(site, connector, "degraded", "events of Line1: there is no such device")

        async def are_said() -> bool:
            return len(await alarms(site, press)) >= 2 and bool(await alarms(site, pump))

        await until(are_said, "the alarms are said")
        assert [
            (said["severity"], said["message"], said["active"])
            for said in await alarms(site, press)
        ] == [("high", "oil low", True), ("info", "oil is well", False)]
        [started] = await alarms(site, pump)
        assert (started["severity"], started["key"]) == ("critical", "OilAlarm")


async def test_an_alarm_that_ended_while_we_were_away_is_over_and_no_other(site: World) -> None:
    press, _ = await site.device("Press")
    pump, _ = await site.device("pump 7")
    async with a_plc(is_whole=True) as plc:
        ends, goes_on = await plc.alarm(plc.press), await plc.alarm(plc.press)
        connector = await connect(
            site, plc, [], events=True, event_sources={"P7": "pump 7"}, publishing_ms=20
        )
        await until_it_is(site, connector, "connected")
        await ends.fire("oil low", 700, is_active=True)
        await goes_on.fire("too hot", 700, source="P7", is_active=True)

        async def are_said() -> bool:
            return bool(await alarms(site, press)) and bool(await alarms(site, pump))

        await until(are_said, "both have begun")
        await change(site, connector, is_enabled=False)
        await until(lambda: not plc.subscriptions(), "the connector has left")
        await ends.fire("oil is well", 100, is_active=False)
        await change(site, connector, is_enabled=True)

        async def is_over() -> bool:
            return not (await alarms(site, press))[-1]["active"]

        await until(is_over, "the press's alarm is over")
        last = (await alarms(site, press))[-1]
        assert last["message"] == "it ended while the server was not connected"
        assert last["key"] == "OilAlarm"
        assert all(said["active"] for said in await alarms(site, pump))
