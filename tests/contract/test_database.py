"""What `libs.common.db` promises: a tenant is bound or nothing is done, and all of it commits or none."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.auth.permission import Permission
from libs.common.auth.principal import KeySource, Principal, PrincipalVerifier
from libs.common.bus.base import Outbox
from libs.common.bus.local import LocalBus
from libs.common.bus.outbox import TableOutbox
from libs.common.clock import SystemClock
from libs.common.db.engine import Database, NoTenantBound, bound_to, unbound
from libs.common.db.transactions import Store, Transactions
from libs.common.events.base import Event, Message
from libs.common.http.app import create_app
from libs.common.http.doors import Now, transaction
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.schemas import Body
from tests.database import DatabaseUrls, PrincipalHeaders

Admin: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

REGISTER = (
    "INSERT INTO ingest.devices (tenant_id, id, name, type, created_at, updated_at)"
    " VALUES (:tenant, gen_random_uuid(), :name, 'press', now(), now())"
)


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """The database as ingest sees it, with few connections."""
    database = Database(database_urls.rw("ingest"), pool_size=2)
    yield database
    await database.close()


@pytest.fixture
async def admin(database_urls: DatabaseUrls) -> AsyncIterator[Admin]:
    """The database as its admin."""
    connection = await asyncpg.connect(database_urls.admin)
    yield connection
    await connection.close()


async def register(database: Database, tenant: UUID, name: str = "press") -> None:
    """Write a device of a tenant."""
    with bound_to((tenant,)):
        async with database.connection() as connection:
            await connection.execute(text(REGISTER), {"tenant": tenant, "name": name})


async def tenants_seen(database: Database) -> set[UUID]:
    """Return whose devices are seen by a query that forgot its predicate."""
    async with database.connection() as connection:
        rows = await connection.execute(text("SELECT tenant_id FROM ingest.devices"))
        return set(rows.scalars())


async def test_a_transaction_without_a_tenant_does_not_begin(database: Database) -> None:
    with pytest.raises(NoTenantBound):
        async with database.connection():
            pass
    with pytest.raises(NoTenantBound):
        async with database.session() as session:
            await session.execute(text("SELECT 1"))


async def test_a_transaction_sees_the_bound_tenants_and_no_others(database: Database) -> None:
    one, two, three = uuid4(), uuid4(), uuid4()
    for tenant in (one, two, three):
        await register(database, tenant)
    with bound_to((one,)):
        assert await tenants_seen(database) == {one}
    with bound_to((one, three)):
        assert await tenants_seen(database) == {one, three}
    with bound_to(()):
        assert await tenants_seen(database) == set()


async def test_an_inner_binding_replaces_the_outer_one_until_it_ends(database: Database) -> None:
    one, two = uuid4(), uuid4()
    for tenant in (one, two):
        await register(database, tenant)
    with bound_to((one,)):
        with bound_to((two,)):
            assert await tenants_seen(database) == {two}
        with unbound(), pytest.raises(NoTenantBound):
            await tenants_seen(database)
        assert await tenants_seen(database) == {one}


async def test_a_binding_is_the_tasks_own(database: Database) -> None:
    one, two = uuid4(), uuid4()
    for tenant in (one, two):
        await register(database, tenant)

    async def look(tenant: UUID) -> set[UUID]:
        with bound_to((tenant,)):
            await asyncio.sleep(0)
            return await tenants_seen(database)

    seen = await asyncio.gather(look(one), look(two))
    assert list(seen) == [{one}, {two}]


async def test_a_row_for_someone_else_is_refused(database: Database) -> None:
    mine, another = uuid4(), uuid4()
    await register(database, mine)
    with bound_to((mine,)):
        with pytest.raises(DBAPIError, match="row-level security"):
            async with database.connection() as connection:
                await connection.execute(text(REGISTER), {"tenant": another, "name": "press"})
        with pytest.raises(DBAPIError, match="row-level security"):
            async with database.connection() as connection:
                await connection.execute(
                    text("UPDATE ingest.devices SET tenant_id = :another"), {"another": another}
                )


async def test_rows_of_someone_else_are_neither_changed_nor_removed(
    database: Database, admin: Admin
) -> None:
    mine, another = uuid4(), uuid4()
    await register(database, another, "theirs")
    with bound_to((mine,)):
        async with database.connection() as connection:
            await connection.execute(text("UPDATE ingest.devices SET name = 'mine'"))
            await connection.execute(text("DELETE FROM ingest.devices"))
    query = "SELECT name FROM ingest.devices WHERE tenant_id = $1"
    assert [row["name"] for row in await admin.fetch(query, another)] == ["theirs"]


async def test_crowds_cancellations_and_errors_leak_no_tenant(database: Database) -> None:
    tenants = [uuid4() for _ in range(8)]
    for tenant in tenants:
        await register(database, tenant)
    chance = random.Random(20261121)  # the same crowd at every run
    leaks: list[tuple[UUID, set[UUID]]] = []
    fates = {"seen": 0, "failed": 0, "cancelled": 0}

    async def ask(tenant: UUID, pause_s: float, *, fails: bool) -> None:
        with bound_to((tenant,)):
            async with database.connection() as connection:
                rows = await connection.execute(
                    text("SELECT tenant_id FROM ingest.devices, pg_sleep(:pause)"),
                    {"pause": pause_s},
                )
                seen = set(rows.scalars())
                if seen != {tenant}:
                    leaks.append((tenant, seen))
                if fails:
                    await connection.execute(text("SELECT 1 / 0"))
        fates["seen"] += 1

    async def one(number: int) -> None:
        pause_s = chance.random() * 0.004
        fails = number % 10 == 0
        task = asyncio.create_task(ask(chance.choice(tenants), pause_s, fails=fails))
        if number % 5 == 1:
            await asyncio.sleep(chance.random() * 0.008)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            fates["cancelled"] += 1
        except DBAPIError:
            fates["failed"] += 1

    for start in range(0, 1500, 12):
        await asyncio.gather(*(one(number) for number in range(start, start + 12)))

    assert leaks == []
    # The crowd was what it should be.
    assert fates["seen"] > 900
    assert fates["failed"] > 100
    assert fates["cancelled"] > 50
    # And the connections that went back to the pool hold nobody's tenant.
    for _ in range(8):
        with bound_to(()):
            assert await tenants_seen(database) == set()


async def test_an_error_does_not_tell_what_the_statement_was_given(database: Database) -> None:
    with bound_to((uuid4(),)), pytest.raises(DBAPIError) as refused:
        async with database.connection() as connection:
            await connection.execute(
                text("SELECT 1 / 0 WHERE :secret <> ''"), {"secret": "hunter2"}
            )
    assert "division by zero" in str(refused.value)
    assert "hunter2" not in str(refused.value)


async def test_an_engine_that_crosses_tenants_binds_none(database_urls: DatabaseUrls) -> None:
    engine = Database(database_urls.engine("ingest"), across_tenants=True)
    async with engine.connection() as connection:
        bound = await connection.execute(text("SELECT cardinality(sec.tenants())"))
        assert bound.scalar_one() == 0
        # What it was not granted, it does not see either.
        with pytest.raises(DBAPIError, match="permission denied"):
            await connection.execute(text("SELECT name FROM ingest.devices"))
    await engine.close()


class PressStopped(Event, frozen=True, kw_only=True):
    """A press stopped."""

    type: ClassVar[str] = "press.stopped.v1"
    source: ClassVar[str] = "ingest"


@pytest.fixture(params=["log", "table"])
def outbox(request: pytest.FixtureRequest, bus: LocalBus) -> Outbox:
    """Both ways in which events leave with a transaction."""
    return bus.outbox("ingest") if request.param == "log" else TableOutbox("ingest")


@pytest.fixture
async def late_check(admin: Admin) -> AsyncIterator[None]:
    """A table `late.parts` whose rows are checked when the transaction commits, and not before."""
    await admin.execute(
        """
        CREATE SCHEMA late;
        CREATE TABLE late.wholes (id uuid PRIMARY KEY);
        CREATE TABLE late.parts (
          id uuid REFERENCES late.wholes DEFERRABLE INITIALLY DEFERRED
        );
        GRANT USAGE ON SCHEMA late TO ingest_rw;
        GRANT INSERT ON late.wholes, late.parts TO ingest_rw;
        """
    )
    yield
    await admin.execute("DROP SCHEMA late CASCADE")


async def events_of(admin: Admin, tenant: UUID) -> int:
    """Return how many events of a tenant are on their way, in whichever outbox."""
    query = (
        "SELECT (SELECT count(*) FROM bus.log WHERE tenant_id = $1)"
        " + (SELECT count(*) FROM ingest.outbox WHERE tenant_id = $1)"
    )
    count: int = await admin.fetchval(query, tenant)
    return count


async def devices_of(admin: Admin, tenant: UUID) -> int:
    """Return how many devices a tenant has."""
    query = "SELECT count(*) FROM ingest.devices WHERE tenant_id = $1"
    count: int = await admin.fetchval(query, tenant)
    return count


async def stop_press(store: Store) -> None:
    """Change the state, and say so."""
    await store.session.execute(text(REGISTER), {"tenant": store.tenant_id, "name": "press"})
    store.emit(PressStopped(tenant_id=store.tenant_id, at=SystemClock().now()))


async def test_state_and_event_commit_together(
    database: Database, outbox: Outbox, admin: Admin
) -> None:
    tenant = uuid4()
    async with Transactions(database, outbox, Store).begin(tenant) as store:
        await stop_press(store)
        assert await devices_of(admin, tenant) == 0
        assert await events_of(admin, tenant) == 0
    assert await devices_of(admin, tenant) == 1
    assert await events_of(admin, tenant) == 1


async def test_an_error_undoes_both(database: Database, outbox: Outbox, admin: Admin) -> None:
    tenant = uuid4()

    async def door() -> None:
        async with Transactions(database, outbox, Store).begin(tenant) as store:
            await stop_press(store)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await door()
    assert await devices_of(admin, tenant) == 0
    assert await events_of(admin, tenant) == 0


async def test_a_cancelled_door_undoes_both(
    database: Database, outbox: Outbox, admin: Admin
) -> None:
    tenant, is_in = uuid4(), asyncio.Event()

    async def door() -> None:
        async with Transactions(database, outbox, Store).begin(tenant) as store:
            await stop_press(store)
            is_in.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(door())
    await is_in.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await devices_of(admin, tenant) == 0
    assert await events_of(admin, tenant) == 0


@pytest.mark.usefixtures("late_check")
async def test_a_commit_that_fails_sends_no_event(
    database: Database, outbox: Outbox, admin: Admin
) -> None:
    tenant = uuid4()

    async def door() -> None:
        async with Transactions(database, outbox, Store).begin(tenant) as store:
            await stop_press(store)
            await store.session.execute(text("INSERT INTO late.parts VALUES (gen_random_uuid())"))

    with pytest.raises(IntegrityError):
        await door()
    assert await devices_of(admin, tenant) == 0
    assert await events_of(admin, tenant) == 0
    if isinstance(outbox, TableOutbox):
        assert not outbox.filled.is_set()


async def test_an_event_that_cannot_be_written_undoes_the_state(
    database: Database, admin: Admin
) -> None:
    # Rules' outbox is not ingest's to write to.
    tenant = uuid4()
    with pytest.raises(DBAPIError, match="permission denied"):
        async with Transactions(database, TableOutbox("rules"), Store).begin(tenant) as store:
            await stop_press(store)
    assert await devices_of(admin, tenant) == 0


class Press(Body):
    """A press to register, and how its transaction is to end."""

    name: str
    end: str = "well"


InTransaction = Annotated[Store, Depends(transaction, scope="function")]
CanWrite = Annotated[Principal, Depends(Permission("devices:write"))]


def plant(database: Database, outbox: Outbox, keys: KeySource) -> FastAPI:
    """Return a service with one route, whose commit may fail."""
    router = APIRouter(prefix="/presses", route_class=IdempotentRoute)

    @router.post("", status_code=201)
    async def register_press(
        body: Press, who: CanWrite, store: InTransaction, now: Now
    ) -> dict[str, str]:
        await stop_press(store)
        if body.end == "refused":
            await store.session.execute(text("INSERT INTO late.parts VALUES (gen_random_uuid())"))
        return {"name": body.name}

    app = create_app("plant", version="1", routers=[router])
    app.state.clock = SystemClock()
    app.state.transactions = Transactions(database, outbox, Store)
    app.state.verifier = PrincipalVerifier(keys)
    return app


@asynccontextmanager
async def calling(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """Call an app as a client does, who sees answers and no exceptions."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://plant") as http:
        yield http


@pytest.mark.usefixtures("late_check")
async def test_a_client_holds_no_201_for_what_did_not_commit(
    database: Database,
    outbox: Outbox,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    admin: Admin,
) -> None:
    tenant = uuid4()
    headers = principal_headers(tenant)
    async with calling(plant(database, outbox, keys)) as http:
        refused = await http.post(
            "/presses", json={"name": "press", "end": "refused"}, headers=headers
        )
        assert refused.status_code in {500, 503}
        assert refused.headers["content-type"] == "application/problem+json"
        assert await devices_of(admin, tenant) == 0
        assert await events_of(admin, tenant) == 0
        made = await http.post("/presses", json={"name": "press"}, headers=headers)
        assert made.status_code == 201
        assert await devices_of(admin, tenant) == 1
        assert await events_of(admin, tenant) == 1


class CutOutbox(TableOutbox):
    """Cuts the connection when everything is written and only the commit is left."""

    def __init__(self, admin: Admin) -> None:
        super().__init__("ingest")
        self._admin = admin

    async def write(self, connection: AsyncConnection, messages: Sequence[Message]) -> None:
        """Write, then lose the server."""
        await super().write(connection, messages)
        pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
        await self._admin.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)


async def test_a_client_is_told_to_come_again_when_the_connection_is_cut_before_the_commit(
    database: Database,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
    admin: Admin,
) -> None:
    tenant = uuid4()
    async with calling(plant(database, CutOutbox(admin), keys)) as http:
        cut = await http.post("/presses", json={"name": "press"}, headers=principal_headers(tenant))
    assert cut.status_code in {500, 503}
    assert await devices_of(admin, tenant) == 0
    assert await events_of(admin, tenant) == 0
