import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from sqlalchemy import text
from starlette.types import Message as AsgiMessage

from libs.common.auth.permission import Permission, principal
from libs.common.auth.principal import KeySource, Principal, PrincipalVerifier
from libs.common.bus.outbox import TableOutbox
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.db.idempotency import trim_idempotency_keys
from libs.common.db.transactions import Store, Transactions
from libs.common.errors import Conflict
from libs.common.http.app import create_app
from libs.common.http.doors import transaction
from libs.common.http.idempotency import (
    MAX_ANSWER_BYTES,
    IdempotentRoute,
    UnsafeRepeat,
    repeatable,
)
from libs.common.http.schemas import Body
from tests.alarms import shift_clock
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.waiting import until

Admin: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CanWrite = Annotated[Principal, Depends(Permission("parts:write"))]
InTransaction = Annotated[Store, Depends(transaction, scope="function")]


class Part(Body):
    """A part to make, and what is to become of it."""

    name: str
    end: str = "well"


@dataclass(slots=True)
class Mill:
    """A service that makes parts and gives each a secret, shown once. It keeps its keys where ingest does."""

    app: FastAPI
    admin: Admin
    http: httpx2.AsyncClient
    headers: PrincipalHeaders
    tenant_id: UUID = field(default_factory=uuid4)
    subject: UUID = field(default_factory=uuid4)

    async def make(
        self, name: str = "axle", *, key: str | None = None, path: str = "/parts", **changes: Any
    ) -> httpx2.Response:
        """Ask for a part."""
        who = {"tenant_id": self.tenant_id, "subject": self.subject}
        permissions = changes.pop("permissions", ("*",))
        who |= {name: changes.pop(name) for name in tuple(changes) if name in who}
        headers = self.headers(who["tenant_id"], *permissions, subject=who["subject"])
        if key is not None:
            headers["idempotency-key"] = key
        return await self.http.post(path, json={"name": name, **changes}, headers=headers)

    async def parts(self, tenant_id: UUID | None = None) -> int:
        """Return how many parts a tenant has."""
        count: int = await self.admin.fetchval(
            "SELECT count(*) FROM mill.parts WHERE tenant_id = $1", tenant_id or self.tenant_id
        )
        return count

    async def keys(self) -> int:
        """Return how many keys are remembered of the tenant."""
        count: int = await self.admin.fetchval(
            "SELECT count(*) FROM ingest.idempotency_keys WHERE tenant_id = $1", self.tenant_id
        )
        return count


def routes() -> APIRouter:
    """Return the mill's routes."""
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/parts", status_code=201)
    @router.post("/spares", status_code=201, name="make_spare")
    async def make_part(
        body: Part, who: CanWrite, store: InTransaction, request: Request, response: Response
    ) -> dict[str, str]:
        part = await put_away(store, body.name)
        await request.app.state.while_making()
        match body.end:
            case "refused":
                raise Conflict("the mill is full")
            case "broken":
                raise RuntimeError("the mill broke")
            case "late" | "cut":
                await store.session.execute(
                    text("INSERT INTO mill.ends VALUES (:end)"), {"end": body.end}
                )
            case "long":
                return {"id": str(part), "secret": "x" * MAX_ANSWER_BYTES}
        response.headers["Location"] = f"/parts/{part}"
        response.headers["ETag"] = '"1"'
        return {"id": str(part), "secret": secrets.token_urlsafe(32)}

    @router.post("/forgotten", status_code=201)
    async def make_by_the_wrong_door(
        body: Part, who: CanWrite, store: Annotated[Store, Depends(forgetful, scope="function")]
    ) -> dict[str, str]:
        return {"id": str(await put_away(store, body.name))}

    return router


async def put_away(store: Store, name: str) -> UUID:
    """Store a part."""
    part = uuid4()
    await store.session.execute(
        text("INSERT INTO mill.parts VALUES (:tenant, :id, :name)"),
        {"tenant": store.tenant_id, "id": part, "name": name},
    )
    return part


async def forgetful(request: Request, who: Annotated[Principal, Depends(principal)]) -> Any:
    """A door that hands its store out before it has claimed the key."""
    async with request.app.state.transactions.begin(who.tenant_id) as store:
        yield store


async def nothing() -> None:
    """Make a part without further ado."""


def build(database: Database, keys: KeySource) -> FastAPI:
    """Return the mill as an app."""
    app = create_app("ingest", version="1", routers=[routes()])
    app.state.clock = SystemClock()
    app.state.transactions = Transactions(database, TableOutbox("ingest"), Store)
    app.state.verifier = PrincipalVerifier(keys)
    app.state.while_making = nothing
    return app


@pytest.fixture
async def admin(database_urls: DatabaseUrls) -> AsyncIterator[Admin]:
    """The database's admin, and the mill's tables."""
    connection = await asyncpg.connect(database_urls.admin)
    await connection.execute(
        """
        CREATE SCHEMA mill;
        CREATE TABLE mill.parts (tenant_id uuid, id uuid PRIMARY KEY, name text);
        CREATE TABLE mill.ends (how text);
        CREATE FUNCTION mill.end() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF NEW.how = 'cut' THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
          END IF;
          RAISE 'it is too late';
        END $$;
        -- Ends at the commit what went well up to there.
        CREATE CONSTRAINT TRIGGER ends AFTER INSERT ON mill.ends
          DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mill.end();
        GRANT USAGE ON SCHEMA mill TO ingest_rw;
        GRANT INSERT ON mill.parts, mill.ends TO ingest_rw;
        """
    )
    yield connection
    await connection.execute("DROP SCHEMA mill CASCADE")
    await connection.close()


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """The database as ingest has it."""
    database = Database(database_urls.rw("ingest"))
    yield database
    await database.close()


@pytest.fixture
async def mill(
    database: Database, keys: KeySource, admin: Admin, principal_headers: PrincipalHeaders
) -> AsyncIterator[Mill]:
    """The mill, called as a client does, who sees answers and no exceptions."""
    app = build(database, keys)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://mill") as http:
        yield Mill(app, admin, http, principal_headers)


def told(answer: httpx2.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return what the client was told, but for what says which telling it was."""
    passing = {b"x-request-id", b"idempotency-replayed"}
    headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in passing]
    return answer.status_code, headers, answer.content


async def test_the_same_request_again_gets_the_first_answer_and_makes_nothing(mill: Mill) -> None:
    first = await mill.make(key="7d9f")
    again = await mill.make(key="7d9f")
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert told(again) == told(first)
    assert {"location", "etag", "content-type", "content-length"} <= set(again.headers)
    assert await mill.parts() == 1


async def test_without_a_key_each_request_makes_one_and_nothing_is_remembered(mill: Mill) -> None:
    await mill.make()
    await mill.make()
    assert await mill.parts() == 2
    assert await mill.keys() == 0


@pytest.mark.parametrize(
    "other", [{"name": "bolt"}, {"path": "/spares"}, {"path": "/parts?line=2"}], ids=str
)
async def test_a_key_is_not_good_for_another_request(mill: Mill, other: dict[str, str]) -> None:
    await mill.make(key="k")
    answer = await mill.make(key="k", **other)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "urn:iiot:problem:idempotency-key-reused"
    assert [error["pointer"] for error in problem["errors"]] == ["Idempotency-Key:"]
    assert await mill.parts() == 1
    # The first request is answered as before.
    assert (await mill.make(key="k")).headers["idempotency-replayed"] == "true"


async def test_a_key_is_the_callers_own(mill: Mill) -> None:
    other_tenant, other_user = uuid4(), uuid4()
    answers = [
        await mill.make(key="1"),
        await mill.make(key="1", subject=other_user),
        await mill.make(key="1", tenant_id=other_tenant),
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.json()["id"] for answer in answers}) == 3
    assert (await mill.parts(), await mill.parts(other_tenant)) == (2, 1)


async def test_who_may_no_longer_gets_no_answer_again(mill: Mill) -> None:
    await mill.make(key="k", permissions=("parts:write",))
    assert (await mill.make(key="k", permissions=("parts:read",))).status_code == 403


@dataclass(slots=True)
class Gate:
    """Holds the mill up until it is opened."""

    reached: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self) -> None:
        self.reached += 1
        await self.opened.wait()


async def waits_for_a_row(admin: Admin) -> bool:
    """Whether a session waits for another one's transaction."""
    waiting: bool = await admin.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND query LIKE '%idempotency_keys%')"
    )
    return waiting


async def both_at_once(mill: Mill, gate: Gate) -> tuple[httpx2.Response, httpx2.Response]:
    """Ask twice with one key, the second time while the first is under way."""
    one = asyncio.create_task(mill.make(key="k"))
    await until(lambda: gate.reached == 1, "the first is being made")
    two = asyncio.create_task(mill.make(key="k"))
    await until(lambda: waits_for_a_row(mill.admin), "the second waits for the first")
    gate.opened.set()
    return await one, await two


async def test_a_request_sent_again_too_soon_waits_for_the_first_answer(mill: Mill) -> None:
    gate = mill.app.state.while_making = Gate()
    first, second = await both_at_once(mill, gate)
    assert told(second) == told(first)
    assert second.headers["idempotency-replayed"] == "true"
    assert (gate.reached, await mill.parts()) == (1, 1)


async def test_if_the_first_attempt_fails_the_one_that_waited_is_made(mill: Mill) -> None:
    gate = Gate()
    endings = iter([RuntimeError("the mill broke"), None])

    async def fail_once() -> None:
        await gate()
        if (error := next(endings)) is not None:
            raise error

    mill.app.state.while_making = fail_once
    first, second = await both_at_once(mill, gate)
    assert (first.status_code, second.status_code) == (500, 201)
    assert (gate.reached, await mill.parts()) == (2, 1)


@pytest.mark.parametrize(
    ("end", "status"),
    [("refused", 409), ("broken", 500), ("late", 500), ("cut", 503), ("long", 413), ("?", 422)],
)
async def test_what_failed_is_not_remembered(mill: Mill, end: str, status: int) -> None:
    answer = await mill.make(key="k", **({"colour": "red"} if end == "?" else {"end": end}))
    assert answer.status_code == status, answer.text
    assert (await mill.parts(), await mill.keys()) == (0, 0)
    # The key is free for the request as it should have been.
    assert (await mill.make(key="k")).status_code == 201


async def test_an_answer_that_got_lost_on_its_way_is_given_again(mill: Mill) -> None:
    headers = mill.headers(mill.tenant_id, subject=mill.subject) | {
        "idempotency-key": "k",
        "content-type": "application/json",
    }
    request = httpx2.Request("POST", "http://mill/parts", json={"name": "axle"}, headers=headers)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/parts",
        "query_string": b"",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }

    async def receive() -> AsgiMessage:
        return {"type": "http.request", "body": request.read()}

    async def send(_message: AsgiMessage) -> None:
        raise OSError("the client is gone")

    with pytest.raises(OSError, match="the client is gone"):
        await mill.app(scope, receive, send)
    assert await mill.parts() == 1
    again = await mill.http.send(request)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert await mill.parts() == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "cl\u00e9", "a\tb"], ids=ascii)
async def test_a_key_that_is_none_is_named(mill: Mill, key: str) -> None:
    headers = mill.headers(mill.tenant_id)
    answer = await mill.http.post(
        "/parts",
        json={"name": "axle"},
        headers=[
            *((n.encode(), v.encode()) for n, v in headers.items()),
            (b"idempotency-key", key.encode()),
        ],
    )
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["Idempotency-Key:"]
    assert await mill.parts() == 0


async def test_a_key_may_be_any_printable_text(mill: Mill) -> None:
    key = '"8e03978e-40d5-43dd-bc93-6894a57f9324"; ' + "~" * 215
    assert len(key) == 255
    assert (await mill.make(key=key)).status_code == 201
    assert (await mill.make(key=key)).headers["idempotency-replayed"] == "true"


async def test_two_keys_are_one_too_many(mill: Mill) -> None:
    headers = [*mill.headers(mill.tenant_id).items(), *[("idempotency-key", "k")] * 2]
    answer = await mill.http.post("/parts", json={"name": "axle"}, headers=headers)
    assert answer.status_code == 400
    assert await mill.parts() == 0


async def test_the_table_tells_nothing_of_the_answer_or_the_key(
    mill: Mill, database_urls: DatabaseUrls
) -> None:
    key = str(uuid4())
    made = await mill.make(key=key, name="a name to look for")
    row = await mill.admin.fetchrow(
        "SELECT * FROM ingest.idempotency_keys WHERE tenant_id = $1", mill.tenant_id
    )
    assert row is not None
    held = b"".join(value for value in row.values() if isinstance(value, bytes))
    wanted = [key, "a name to look for", made.json()["secret"], made.json()["id"], "location"]
    assert not [word for word in wanted if word.encode() in held]

    observer = await asyncpg.connect(database_urls.observer)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await observer.fetch("SELECT key, answer FROM ingest.idempotency_keys")
    await observer.close()


async def test_two_answers_are_never_sealed_alike(mill: Mill) -> None:
    query = "DELETE FROM ingest.idempotency_keys WHERE tenant_id = $1 RETURNING answer"
    nonces = set()
    for _ in range(2):
        # The same key and request make the same sealing key.
        await mill.make(key="k")
        nonces.add((await mill.admin.fetchval(query, mill.tenant_id))[:12])
    assert len(nonces) == 2


@pytest.fixture
async def shifted(database_urls: DatabaseUrls) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Moves PostgreSQL's clock, and back in the end."""
    yield lambda by: shift_clock(database_urls, by)
    await shift_clock(database_urls, "0")


async def test_a_key_is_remembered_as_long_as_is_said(
    mill: Mill, database_urls: DatabaseUrls, shifted: Callable[[str], Awaitable[None]]
) -> None:
    engine = Database(database_urls.engine("ingest"), across_tenants=True)
    kept = timedelta(hours=24)
    await mill.make(key="k")
    await shifted("23 hours 59 minutes")
    await trim_idempotency_keys(engine, "ingest", kept)
    assert (await mill.make(key="k")).headers["idempotency-replayed"] == "true"
    await shifted("24 hours 1 minute")
    await trim_idempotency_keys(engine, "ingest", kept)
    assert "idempotency-replayed" not in (await mill.make(key="k")).headers
    assert await mill.parts() == 2
    await engine.close()


# What does not start


async def test_a_door_that_forgets_the_key_fails_and_does_nothing(
    mill: Mill,
) -> None:
    assert (await mill.make(key="k", path="/forgotten")).status_code == 500
    assert await mill.parts() == 0
    assert (await mill.make(path="/forgotten")).status_code == 201


def app_of(router: APIRouter) -> FastAPI:
    """Return an app of one router."""
    return create_app("mill", version="1", routers=[router])


async def test_an_operation_that_creates_takes_a_key_or_does_not_start() -> None:
    router = APIRouter()

    @router.post("/parts", status_code=201)
    async def make_part(who: CanWrite, store: InTransaction) -> None: ...

    with pytest.raises(UnsafeRepeat, match=r"/parts \(make_part\) takes no Idempotency-Key"):
        app_of(router)


async def test_an_operation_asks_for_the_permission_before_a_replay_or_does_not_start() -> None:
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/parts", status_code=201)
    async def make_part(store: InTransaction, who: CanWrite) -> None: ...

    with pytest.raises(UnsafeRepeat, match="before it asks who may"):
        app_of(router)


async def test_an_operation_that_takes_a_key_has_a_transaction_or_does_not_start() -> None:
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/parts", status_code=201)
    async def make_part(who: CanWrite) -> None: ...

    with pytest.raises(UnsafeRepeat, match="has no transaction"):
        app_of(router)


async def test_an_operation_may_say_why_it_needs_no_key() -> None:
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/tickets", status_code=201)
    @repeatable("a ticket that nobody uses is void soon")
    async def issue_ticket(who: CanWrite) -> None: ...

    document = app_of(router).openapi()
    assert "parameters" not in document["paths"]["/tickets"]["post"]
    with pytest.raises(ValueError, match="say why"):
        repeatable(" ")
