"""Who may call what: the matrix as it is written, against the platform as it runs."""

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from deploy.cli.permissions import MATRIX, SPECIAL, TABLE, declared, matrix, table
from libs.common.auth.permission import principal
from libs.common.auth.principal import HEADER, Kind, Principal
from libs.common.auth.roles import BUILT_IN, PERMISSIONS, covers
from libs.common.http.access import asks_permission, operations_of
from services.gateway.domain.access_token import Access
from services.gateway.domain.routes import OURSELVES, owner_of, segment_of
from services.gateway.usecases.callers import Caller
from tests.contract.isolation.test_walk import Platform, running
from tests.database import DatabaseUrls

HINT = "run `python -m deploy.cli permissions --write`"
SCOPES = ("devices:*", "*:read")


@dataclass(slots=True)
class Row:
    """An operation as the matrix has it."""

    method: str
    path: str
    needs: str
    roles: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def written() -> list[Row]:
    """Return the matrix as people read it."""
    _, _, operations = MATRIX.read_text().partition("## Operations\n")
    head, _, *lines = operations.strip().splitlines()
    names = [cell.strip() for cell in head.strip("|").split("|")][3:]
    rows = []
    for line in lines:
        method, path, needs, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        roles = frozenset(n for n, cell in zip(names, cells, strict=True) if cell)
        rows.append(Row(method, path.strip("`"), needs.replace("`", ""), roles))
    return rows


def test_the_table_of_operations_is_what_the_routes_declare() -> None:
    assert TABLE.read_text() == table(), HINT


def test_the_matrix_is_what_routes_and_roles_say() -> None:
    assert MATRIX.read_text() == matrix(), HINT


def test_the_permissions_there_are_are_those_that_routes_ask_for() -> None:
    asked = {p for operation in declared() for p in operation.permissions}
    assert asked - set(SPECIAL) == set(PERMISSIONS), (
        "a permission that no route asks for is no permission; one that is asked for has a text in"
        " libs/common/auth/roles.py"
    )


@dataclass(slots=True)
class Asker:
    """Somebody who calls, and whom the matrix lets call what."""

    name: str
    principal: Principal | None
    may: frozenset[str] = field(default_factory=frozenset)


def callers(rows: list[Row]) -> Iterator[Asker]:
    """Return nobody, a user of each built-in role, an API key and a platform admin without a role."""
    public = frozenset(row.name for row in rows if row.needs.startswith("nothing"))
    yield Asker("nobody", None, public)
    for role in BUILT_IN.values():
        may = frozenset(row.name for row in rows if role.name in row.roles)
        yield Asker(role.name, who(role.permissions), may)
    anyone = {row.name for row in rows if row.needs == SPECIAL["tenant:member"]}
    scoped = {r.name for r in rows if r.needs in PERMISSIONS and covers(SCOPES, r.needs)}
    yield Asker("an API key", who(SCOPES, kind=Kind.API_KEY), public | anyone | scoped)
    admins = {row.name for row in rows if row.needs == SPECIAL["platform:admin"]}
    yield Asker("a platform admin", who((), platform_admin=True), public | anyone | admins)


def who(permissions: Iterable[str], **more: object) -> Principal:
    return Principal(
        subject=uuid4(),
        tenant_id=uuid4(),
        permissions=frozenset(permissions),
        **more,  # type: ignore[arg-type]  # tests' own
    )


class Door:
    """Asks operations as somebody; those of the services themselves, without a way through the gateway."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._clients = {
            service: httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=app), base_url=f"http://{service}"
            )
            for service, app in platform.apps.items()
        }
        self._clients["gateway"] = platform.http

    async def status(self, row: Row, who: Principal | None, *, is_sound: bool) -> int:
        """Return the answer's status. What is not sound is wrong in all ways: it must not matter."""
        path = row.path
        while "{" in path:
            start, _, rest = path.partition("{")
            path = f"{start}{uuid4() if is_sound else 'nothing'}{rest.partition('}')[2]}"
        service = owner_of(segment_of(path), path) or OURSELVES
        headers = {"content-type": "application/json"}
        if who is not None:
            headers |= self._credential(service, who)
        has_body = row.method in {"POST", "PUT", "PATCH"}
        answer = await self._clients[service].request(
            row.method,
            path,
            content=(b"{}" if is_sound else b'{"') if has_body else None,
            headers=headers,
        )
        return answer.status_code

    async def faults(self, rows: list[Row], caller: Asker) -> list[str]:
        """Return where the platform answers somebody otherwise than the matrix says."""
        found = []
        for row in rows:
            if row.needs == SPECIAL["session:own"] and caller.principal is not None:
                continue  # asked below, with sessions
            may = row.name in caller.may
            if not may and row.needs == SPECIAL["device:itself"]:
                wanted = {401}
            else:
                wanted = {401} if caller.principal is None else {403}
            status = await self.status(row, caller.principal, is_sound=may)
            if may and (status in {401, 403} or status >= 500) and row.needs[:7] != "nothing":
                found.append(f"{caller.name} may {row.name}, and gets {status}")
            if not may and status not in wanted:
                found.append(f"{caller.name} may not {row.name}, and gets {status}")
        return found

    def _credential(self, service: str, who: Principal) -> dict[str, str]:
        signer = self._platform.gateway.state.keyring.signer()
        now = datetime.now(UTC)
        token = signer.sign(who, now)
        if service != "gateway":
            return {HEADER: token}
        # The gateway exchanges tokens for principals itself: this one is known to it already.
        end = now + timedelta(minutes=1)
        access = Access(who.subject, who.tenant_id, uuid4(), uuid4(), now, end)
        name = str(uuid4())
        self._platform.gateway.state.callers._by_token[name] = Caller(
            access=access, principal=who, principal_token=token.encode(), renew_at=end
        )
        return {"authorization": f"Bearer {name}"}


@pytest.fixture
async def platform(database_urls: DatabaseUrls) -> AsyncIterator[Platform]:
    """The whole platform in this process."""
    async with running(database_urls) as platform:
        yield platform


@pytest.mark.timeout(300)
async def test_everybody_may_what_the_matrix_says_and_nothing_else(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, door = written(), Door(platform)
    faults: list[str] = []
    for caller in callers(rows):
        faults += await door.faults(rows, caller)
    # A role of a tenant's own, with exactly what an operation needs; and one with all but that.
    for row in rows:
        if row.needs in PERMISSIONS:
            exact = Asker(f"a role of {row.needs}", who([row.needs]), frozenset({row.name}))
            others = Asker(f"a role without {row.needs}", who(set(PERMISSIONS) - {row.needs}))
            faults += await door.faults([row], exact) + await door.faults([row], others)
    assert not faults, "\n".join(faults)

    # And it would have been seen: a route that asks no more, and a role that holds more.
    asked = Row("DELETE", "/api/v1/devices/{device_id}", "devices:write", frozenset())
    viewer = Asker("viewer", who(BUILT_IN["viewer"].permissions))
    assert await door.faults([asked], viewer) == []
    with monkeypatch.context() as mutation:
        for guard in guards(platform.apps["ingest"], asked):
            mutation.setattr(guard, "call", principal)
        assert await door.faults([asked], viewer) != []
    wider = Asker("viewer", who([*BUILT_IN["viewer"].permissions, "devices:write"]))
    assert await door.faults([asked], wider) != []


async def test_what_is_for_a_session_takes_no_api_key(platform: Platform) -> None:
    own = [row for row in written() if row.needs == SPECIAL["session:own"]]
    assert len(own) >= 4
    for row in own:
        path = row.path.replace("{", "").replace("}", "")
        answer = await platform.http.request(
            row.method, path, json={}, headers={"x-api-key": f"iiotk_{'x' * 58}"}
        )
        assert answer.status_code == 403, f"{row.name}: {answer.text}"


async def test_the_matrix_leaves_no_operation_out(platform: Platform) -> None:
    document = (await platform.http.get("/api/v1/openapi.json")).json()
    described = {
        (f"{method.upper()} {path}", operation.get("x-permission"))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in {"get", "post", "put", "patch", "delete"}
    }
    assert described == {(o.name, " ".join(o.permissions) or None) for o in declared()}


async def test_a_permission_is_asked_for_before_anything_is_done(platform: Platform) -> None:
    """A door opened before would answer whoever comes: with the first answer to an Idempotency-Key."""
    for app in (*platform.apps.values(), platform.gateway):
        for operation in operations_of(app.routes):
            dependant: Dependant | None = getattr(operation.route, "dependant", None)
            if dependant is None or operation.permission is None:
                continue
            asks = [asks_permission(inner) for inner in dependant.dependencies]
            doors = [
                getattr(inner, "scope", None) == "function" for inner in dependant.dependencies
            ]
            if True in doors:
                assert asks.index(True) < doors.index(True), operation.name


def guards(app: FastAPI, row: Row) -> Iterator[Dependant]:
    """Return the dependencies by which a route of an app asks for its permission."""
    for context in iter_route_contexts(app.routes):
        if context.path_format == row.path and row.method in (context.methods or ()):
            for route in (context, context.original_route):
                for inner in route.dependant.dependencies:  # type: ignore[union-attr]  # an APIRoute
                    if asks_permission(inner):
                        yield inner
