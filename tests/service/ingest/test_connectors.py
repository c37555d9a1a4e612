"""Connections out: set up over HTTP, run by one process at a time, their secrets kept."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import to_message
from libs.common.events.tenancy import TenantUpdated
from services.ingest import app as ingest_app
from services.ingest.domain.connector import State
from services.ingest.settings import Settings
from services.ingest.usecases import connectors as usecases
from services.ingest.usecases.connectors import Connector, Kind, Report
from services.ingest.usecases.reception import Reception
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.waiting import until


class LineSettings(BaseModel):
    """Settings of a kind that only tests have."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    speed: int = 1


class Line:
    """A kind of connection that does as the test says, and remembers who ran it."""

    def __init__(self) -> None:
        self.runs: list[Connector] = []
        self.open: list[Connector] = []
        self.fails: list[Exception] = []
        self.lost = asyncio.Event()
        """Set: the connection that is open is lost."""
        self.parts: dict[str, asyncio.Event] = {}
        """Connections that end when the test says so, by the connector's name."""

    @property
    def kind(self) -> Kind:
        return Kind(
            "line", LineSettings, self.run, secrets=frozenset({"password"}), browse=self.browse
        )

    async def run(self, connector: Connector, reception: Reception, report: Report) -> None:
        self.runs.append(connector)
        await connector.destinations.address_of(connector.settings.host, 1)
        if self.fails:
            raise self.fails.pop(0)
        self.open.append(connector)
        report(State.CONNECTED, "")
        try:
            await self.lost.wait()
            self.lost.clear()
            raise ConnectionResetError("the line was lost")
        finally:
            await self.parting(connector)
            self.open.remove(connector)

    async def parting(self, connector: Connector) -> None:
        while connector.name in self.parts and not self.parts[connector.name].is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.parts[connector.name].wait()

    async def browse(self, connector: Connector, node: str | None) -> list[dict[str, object]]:
        if self.fails:
            raise self.fails.pop(0)
        if node == "nowhere":
            raise ConnectionRefusedError("refused")
        return [{"node": node or "root", "password": connector.secret("password")}]


Start = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, no_connectors_left: None) -> Line:
    """The tests' own kind, in place of all others."""
    line = Line()
    monkeypatch.setattr(ingest_app, "bridge_kind", lambda most_bytes: line.kind)
    return line


@pytest.fixture
def process(
    settings: Settings,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> Start:
    """Run a process of ingest on a bus of its own; several of them share the database."""

    @asynccontextmanager
    async def run(tenant_id: UUID, bus: LocalBus, **update: object) -> AsyncIterator[World]:
        own = settings.model_copy(
            # Long enough that a loaded machine renews it in time, short enough to be waited out.
            update={"connector_lease": timedelta(seconds=3), "writer": False, **update}
        )
        app = ingest_app.build(own, bus, SystemClock(), keys=keys)
        async with running(
            app, bus, database_urls, tenant_id, principal_headers(tenant_id)
        ) as world:
            yield world

    return run


@pytest.fixture
async def plant(line: Line, process: Start, bus: LocalBus) -> AsyncIterator[World]:
    """A running ingest that knows the tests' kind of connection."""
    async with process(uuid4(), bus) as world:
        yield world


async def create(world: World, name: str = "line 1", **body: object) -> httpx2.Response:
    return await world.http.post(
        "/api/v1/connectors",
        json={"name": name, "kind": "line", "settings": {}, **body},
        headers=world.headers,
    )


async def created(world: World, name: str = "line 1", **body: object) -> str:
    answer = await create(world, name, **body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def shown(world: World, connector_id: str) -> dict[str, object]:
    answer = await world.http.get(f"/api/v1/connectors/{connector_id}", headers=world.headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


async def until_state(world: World, connector_id: str, *states: str) -> dict[str, object]:
    async def is_so() -> bool:
        return (await shown(world, connector_id))["state"] in states

    await until(is_so, f"the connector is {states}")
    return await shown(world, connector_id)


async def change(world: World, connector_id: str, **body: object) -> httpx2.Response:
    return await world.http.patch(
        f"/api/v1/connectors/{connector_id}", json=body, headers=world.headers
    )


async def test_a_connection_is_made_as_it_is_set_up_and_ends_when_it_is_removed(
    plant: World, line: Line
) -> None:
    connector_id = await created(plant, secrets={"password": "hush"})
    await until_state(plant, connector_id, "connected")
    await until(lambda: len(line.open) == 1, "it runs")
    [connector] = line.open
    assert (connector.tenant_id, connector.secret("password")) == (plant.tenant_id, "hush")
    assert connector.settings.speed == 1
    listed = await plant.http.get("/api/v1/connectors", headers=plant.headers)
    assert [found["id"] for found in listed.json()["items"]] == [connector_id]
    gone = await plant.http.delete(f"/api/v1/connectors/{connector_id}", headers=plant.headers)
    assert gone.status_code == 204
    await until(lambda: not line.open, "the connection ended")
    again = await plant.http.delete(f"/api/v1/connectors/{connector_id}", headers=plant.headers)
    assert again.status_code == 404


async def test_a_change_starts_it_anew_at_once_and_a_switch_ends_it(
    plant: World, line: Line
) -> None:
    connector_id = await created(plant)
    await until(lambda: len(line.open) == 1, "it runs")
    assert (await change(plant, connector_id, settings={"speed": 2})).status_code == 200
    await until(lambda: [c.settings.speed for c in line.open] == [2], "it runs anew", within_s=5)
    assert (await change(plant, connector_id, is_enabled=False)).json()["state"] == "disabled"
    await until(lambda: not line.open, "it ended")
    assert (await shown(plant, connector_id))["state"] == "disabled"
    await change(plant, connector_id, is_enabled=True)
    await until(lambda: len(line.open) == 1, "it runs again")


async def test_a_secret_is_kept_sealed_and_never_shown(plant: World, line: Line) -> None:
    connector_id = await created(plant, secrets={"password": "hush"})
    answers = [
        await shown(plant, connector_id),
        (await change(plant, connector_id, name="line one")).json(),
        (await plant.http.get("/api/v1/connectors", headers=plant.headers)).json(),
    ]
    assert "hush" not in str(answers)
    assert answers[0]["secrets"] == ["password"]
    [row] = await plant.query(
        "SELECT secrets::text FROM ingest.connectors WHERE id = $1", UUID(connector_id)
    )
    assert "hush" not in row["secrets"]
    await until(lambda: bool(line.open) and line.open[0].name == "line one", "it runs anew")
    assert line.open[0].secret("password") == "hush"
    await change(plant, connector_id, secrets={"password": None})
    await until(lambda: bool(line.open) and line.open[0].version == 3, "it runs anew")
    assert line.open[0].secret("password") is None


async def test_a_secret_put_in_another_connector_s_place_opens_nothing(
    plant: World, line: Line
) -> None:
    one = await created(plant, "one", secrets={"password": "hush"}, is_enabled=False)
    other = await created(plant, "other", is_enabled=False)
    await plant.query(
        "UPDATE ingest.connectors SET secrets = (SELECT secrets FROM ingest.connectors"
        " WHERE id = $1) WHERE id = $2",
        UUID(one),
        UUID(other),
    )
    await change(plant, other, is_enabled=True)
    failed = await until_state(plant, other, "failed")
    assert "set them again" in str(failed["reason"])
    assert line.runs == []


async def test_without_a_key_no_secret_is_kept(
    line: Line, process: Start, bus: LocalBus, settings: Settings
) -> None:
    no_key = type(settings.credentials_key)("")
    async with process(uuid4(), bus, credentials_key=no_key) as world:
        answer = await create(world, secrets={"password": "hush"})
        assert answer.status_code == 503
        assert "key" in answer.json()["detail"]
        await created(world)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "telepathy"}, "/kind"),
        ({"settings": {"speed": "fast"}}, "/settings/speed"),
        ({"settings": {"colour": "red"}}, "/settings/colour"),
        ({"secrets": {"pin": "1"}}, "/secrets/pin"),
        ({"secrets": {"password": "x" * 20_000}}, "/secrets/password"),
        ({"name": ""}, "/name"),
    ],
)
async def test_what_is_wrong_is_named(plant: World, body: dict[str, object], pointer: str) -> None:
    answer = await plant.http.post(
        "/api/v1/connectors",
        json={"name": "line 1", "kind": "line", "settings": {}, **body},
        headers=plant.headers,
    )
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"].lstrip("#") == pointer
    assert "hush" not in answer.text


async def test_names_are_unique_and_a_tenant_has_so_many(
    plant: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usecases, "MOST", 2)
    await created(plant, "one")
    assert (await create(plant, "one")).status_code == 409
    other = await created(plant, "two")
    assert (await change(plant, other, name="one")).status_code == 409
    assert (await create(plant, "three")).status_code == 409


async def test_as_many_as_there_may_be_also_if_all_come_at_once(
    plant: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usecases, "MOST", 3)
    answers = await asyncio.gather(
        *(create(plant, f"line {number}", is_enabled=False) for number in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 7


async def test_a_stale_version_changes_nothing(plant: World) -> None:
    connector_id = await created(plant)
    answer = await plant.http.patch(
        f"/api/v1/connectors/{connector_id}",
        json={"name": "other"},
        headers={**plant.headers, "if-match": '"7"'},
    )
    assert answer.status_code == 412
    assert (await shown(plant, connector_id))["name"] == "line 1"


async def test_what_fails_is_reported_and_tried_again_with_a_growing_pause(
    plant: World, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, pauses, sleep = asyncio.Event(), list[float](), asyncio.sleep

    async def pause(delay_s: float) -> None:
        task = asyncio.current_task()
        if task is None or not task.get_name().startswith("ingest.connector."):
            await sleep(delay_s)
            return
        pauses.append(delay_s)
        await may_go_on.wait()

    monkeypatch.setattr(asyncio, "sleep", pause)
    away = Unavailable("the broker is away")
    line.fails = [away]
    connector_id = await created(plant)
    failed = await until_state(plant, connector_id, "failed")
    assert failed["reason"] == "the broker is away"
    line.fails = [ConnectionRefusedError("refused"), RuntimeError("a fault"), *[away] * 4]
    may_go_on.set()
    await until_state(plant, connector_id, "connected")
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    # Who was connected begins with the short pause again.
    may_go_on.clear()
    line.lost.set()
    failed = await until_state(plant, connector_id, "failed")
    assert (failed["reason"], pauses[7:]) == ("the line was lost", [0.5])
    may_go_on.set()
    await until(lambda: len(line.runs) == 9, "it is tried again")


async def test_an_address_that_is_not_allowed_is_not_connected_to(
    line: Line, process: Start, bus: LocalBus
) -> None:
    async with process(uuid4(), bus, connector_addresses=()) as world:
        connector_id = await created(world, settings={"host": "localhost"})
        failed = await until_state(world, connector_id, "failed")
        assert "connects to nothing at" in str(failed["reason"])
        assert line.open == []


async def test_one_process_runs_a_connector_and_another_takes_over(
    line: Line, process: Start, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    tenant_id = uuid4()
    other_bus = LocalBus(database_urls.bus, SystemClock())
    async with process(tenant_id, other_bus) as second:
        async with process(tenant_id, bus) as first:
            connector_ids = [await created(first, f"line {n}") for n in range(5)]
            for connector_id in connector_ids:
                await until_state(second, connector_id, "connected")
            assert len(line.runs) == 5, "each runs once"
        await until(lambda: len(line.open) == 5, "all run in the process that is left")
        for connector_id in connector_ids:
            await until_state(second, connector_id, "connected")


async def test_a_process_that_hangs_loses_its_connectors(
    line: Line, process: Start, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    tenant_id = uuid4()
    other_bus = LocalBus(database_urls.bus, SystemClock())
    async with process(tenant_id, bus) as first, process(tenant_id, other_bus, connectors=0) as _:
        connector_id = await created(first)
        await until_state(first, connector_id, "connected")
        # Its lease ends, as if it had been silent, and another has it.
        await first.query(
            "UPDATE ingest.connectors SET runner_id = $1, lease_until = now() + interval '1 hour'"
            " WHERE id = $2",
            uuid4(),
            UUID(connector_id),
        )
        await until(lambda: not line.open, "the first lets go")


async def test_connections_of_a_suspended_tenant_end_and_begin_again(
    plant: World, line: Line, bus: LocalBus
) -> None:
    connector_id = await created(plant)
    await until_state(plant, connector_id, "connected")
    say = partial(TenantUpdated, tenant_id=plant.tenant_id, slug="plant", name="the plant")
    await bus.publish([to_message(say(at=datetime.now(UTC), status="suspended"))])
    await until(lambda: not line.open, "the connection ended")
    await until_state(plant, connector_id, "waiting")
    await bus.publish([to_message(say(at=datetime.now(UTC), status="active"))])
    await until(lambda: len(line.open) == 1, "it is there again")


async def test_what_a_run_remembers_is_there_for_the_next(plant: World, line: Line) -> None:
    connector_id = await created(plant)
    await until(lambda: len(line.open) == 1, "it runs")
    line.open[0].remember({"last": 42})
    await change(plant, connector_id, settings={"speed": 2})
    await until(lambda: bool(line.open) and line.open[0].version == 2, "it runs anew")
    assert line.open[0].memory == {"last": 42}


async def test_what_is_too_large_to_be_remembered_leaves_what_was(plant: World, line: Line) -> None:
    connector_id = await created(plant)
    await until(lambda: len(line.open) == 1, "it runs")
    line.open[0].remember({"last": 42})
    line.open[0].remember({"last": "x" * usecases.MOST_MEMORY_BYTES})
    await change(plant, connector_id, settings={"speed": 2})
    await until(lambda: bool(line.open) and line.open[0].version == 2, "it runs anew")
    assert line.open[0].memory == {"last": 42}


async def test_another_tenant_s_connector_is_none(
    plant: World, principal_headers: PrincipalHeaders
) -> None:
    connector_id = await created(plant)
    foreign = principal_headers(uuid4())
    for found in (connector_id, str(uuid4())):
        path = f"/api/v1/connectors/{found}"
        answers = [
            await plant.http.get(path, headers=foreign),
            await plant.http.patch(path, json={"name": "mine"}, headers=foreign),
            await plant.http.delete(path, headers=foreign),
            await plant.http.post(f"{path}/browse", json={}, headers=foreign),
        ]
        assert [answer.status_code for answer in answers] == [404] * 4
    assert (await shown(plant, connector_id))["name"] == "line 1"


async def test_who_may_only_read_changes_nothing(
    plant: World, principal_headers: PrincipalHeaders
) -> None:
    connector_id = await created(plant)
    reader = principal_headers(plant.tenant_id, "connectors:read")
    path = f"/api/v1/connectors/{connector_id}"
    assert (await plant.http.get(path, headers=reader)).status_code == 200
    assert (await plant.http.delete(path, headers=reader)).status_code == 403
    assert (await plant.http.post(f"{path}/browse", json={}, headers=reader)).status_code == 403


async def test_the_other_side_can_be_browsed(plant: World) -> None:
    connector_id = await created(plant, secrets={"password": "hush"}, is_enabled=False)
    path = f"/api/v1/connectors/{connector_id}/browse"
    answer = await plant.http.post(path, json={"node": "here"}, headers=plant.headers)
    assert answer.json() == [{"node": "here", "password": "hush"}]
    answer = await plant.http.post(path, json={"node": "nowhere"}, headers=plant.headers)
    assert answer.status_code == 503


async def test_the_kinds_say_what_they_ask_for(plant: World) -> None:
    answer = await plant.http.get("/api/v1/connector-kinds", headers=plant.headers)
    [kind] = [kind for kind in answer.json() if kind["name"] == "line"]
    assert (kind["name"], kind["secrets"], kind["can_be_browsed"]) == ("line", ["password"], True)
    assert "speed" in kind["settings_schema"]["properties"]


async def test_a_connection_that_is_slow_to_end_holds_no_other_up(plant: World, line: Line) -> None:
    """One tenant's machine must not cost the others their leases."""
    line.parts["slow"] = asyncio.Event()
    slow = await created(plant, "slow")
    other = await created(plant, "other")
    await until(lambda: len(line.open) == 2, "both run")
    await change(plant, slow, settings={"speed": 2})
    await change(plant, other, settings={"speed": 3})
    await until(
        lambda: 3 in {connector.settings.speed for connector in line.open}, "the other runs anew"
    )
    assert [c.settings.speed for c in line.open if c.name == "slow"] == [1]
    line.parts["slow"].set()
    await until(
        lambda: [c.settings.speed for c in line.open if c.name == "slow"] == [2], "it runs anew"
    )


async def test_the_reason_of_a_fault_of_ours_is_in_our_log_alone(plant: World, line: Line) -> None:
    line.fails = [RuntimeError("SELECT secret FROM 10.0.0.5")] * 1_000
    connector_id = await created(plant)
    failed = await until_state(plant, connector_id, "failed")
    assert failed["reason"] == "it failed here: RuntimeError"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied", "/etc/iiot/opcua.key"), "it could not be opened"),
        (FileNotFoundError(2, "No such file", "/etc/iiot/opcua.pem"), "it could not be opened"),
        (OSError("/etc/iiot is full"), "it could not be opened"),
        (ConnectionRefusedError(111, "Connect call failed"), "Connect call failed"),
        (OSError(113, "No route to host"), "No route to host"),
        (TimeoutError(), "TimeoutError"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
    ],
)
async def test_of_what_the_system_says_the_network_s_words_alone_are_shown(
    plant: World, line: Line, error: OSError, reason: str
) -> None:
    line.fails = [error] * 1_000
    connector_id = await created(plant)
    failed = await until_state(plant, connector_id, "failed")
    path = f"/api/v1/connectors/{connector_id}/browse"
    browsed = await plant.http.post(path, json={"node": "here"}, headers=plant.headers)
    assert reason in str(failed["reason"])
    assert "/etc" not in f"{failed['reason']} {browsed.json()['detail']}"


async def test_a_database_that_is_away_is_not_named_to_the_tenant(
    plant: World, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = plant.app.state.connectors._transactions
    begin, times = transactions.begin, 0

    def refuse(tenant_id: UUID) -> object:
        nonlocal times
        task = asyncio.current_task()
        if task is not None and task.get_name().startswith("ingest.connector."):
            times += 1
            raise ConnectionRefusedError("connect call failed ('10.0.0.5', 5432)")
        return begin(tenant_id)

    monkeypatch.setattr(transactions, "begin", refuse)
    connector_id = await created(plant)
    failed = await until_state(plant, connector_id, "failed")
    assert (failed["reason"], times > 0) == ("its settings cannot be read now", True)


async def test_a_process_that_goes_leaves_its_connectors_to_others_at_once(
    line: Line, process: Start, bus: LocalBus
) -> None:
    async with process(uuid4(), bus, connector_lease=timedelta(hours=1)) as world:
        connector_id = await created(world)
        await until_state(world, connector_id, "connected")
    [row] = await world.query(
        "SELECT runner_id, lease_until FROM ingest.connectors WHERE id = $1", UUID(connector_id)
    )
    assert (row["runner_id"], row["lease_until"]) == (None, None)
