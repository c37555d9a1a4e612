"""The walk itself: it finds every leak that is planted, and none in a sound service."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import APIRouter, Depends, Response

from libs.common.auth.permission import Permission
from libs.common.auth.principal import KeySource, Principal, PrincipalVerifier
from libs.common.errors import Forbidden, Invalid, NotFound
from libs.common.http.access import public
from libs.common.http.app import create_app
from libs.common.http.idempotency import repeatable
from libs.common.http.schemas import Body
from tests.contract.isolation.walker import Territory, walk
from tests.database import PrincipalHeaders

CANARY = "the canary of B"


class Link(Body):
    """A thing to link to, and how."""

    thing_id: UUID
    name: str


class Warehouse:
    """A service that keeps things for tenants, with a fault if one is named."""

    def __init__(self, fault: str | None) -> None:
        self.fault = fault
        self.things: dict[UUID, tuple[UUID, str]] = {}

    def add(self, tenant: UUID, name: str) -> UUID:
        """Put a thing in; return its id."""
        thing_id = uuid4()
        self.things[thing_id] = (tenant, name)
        return thing_id

    def get(self, tenant: UUID, thing_id: UUID) -> str:
        """Return the name of a tenant's thing."""
        owner, name = self.things.get(thing_id, (None, ""))
        if owner is None:
            raise NotFound("no such thing")
        if owner != tenant and self.fault != "reads":
            if self.fault == "says forbidden":
                raise Forbidden("not yours")
            raise NotFound("it is another's" if self.fault == "tells in words" else "no such thing")
        return name

    def router(self) -> APIRouter:
        """Return the service's routes."""
        router = APIRouter(prefix="/things")
        who = Annotated[Principal, Depends(Permission("devices:read"))]

        @router.get("/{thing_id}")
        async def get_thing(thing_id: UUID, who: who, response: Response) -> dict[str, str]:
            return {"id": str(thing_id), "name": self.get(who.tenant_id, thing_id)}

        @router.get("")
        async def list_things(who: who, near: UUID | None = None) -> dict[str, list[str]]:
            mine = [n for t, n in self.things.values() if t == who.tenant_id]
            if self.fault == "lists all":
                mine = [n for _, n in self.things.values()]
            if self.fault == "counts what is near" and near in self.things:
                mine.append("1 near")
            return {"items": mine}

        @router.delete("/{thing_id}", status_code=204)
        async def remove_thing(thing_id: UUID, who: who) -> Response:
            if self.fault == "removes":
                self.things.pop(thing_id, None)
                return Response(status_code=204)
            self.get(who.tenant_id, thing_id)
            del self.things[thing_id]
            return Response(status_code=204)

        @router.post("/links", status_code=201)
        @repeatable("no link is kept")
        async def link_thing(body: Link, who: who) -> dict[str, str]:
            if self.fault == "says invalid" and body.thing_id not in self.things:
                raise Invalid("there is no such thing")
            self.get(who.tenant_id, body.thing_id)
            return {"id": str(uuid4())}

        if self.fault == "lets anyone in":

            @router.get("/{thing_id}/open")
            @public("a mistake")
            async def open_thing(thing_id: UUID) -> dict[str, str]:
                return {"id": str(thing_id)}

        if self.fault == "tells in a header":

            @router.get("/{thing_id}/etag")
            async def tag_thing(thing_id: UUID, who: who) -> Response:
                known = thing_id in self.things
                return Response(status_code=200, headers={"etag": '"1"'} if known else {})

        if self.fault == "takes what nobody knows":

            @router.get("/{thing_id}/parts/{part_id}")
            async def get_part(thing_id: UUID, part_id: UUID, who: who) -> dict[str, str]:
                return {}

        return router


@asynccontextmanager
async def land(
    fault: str | None, keys: KeySource, principal_headers: PrincipalHeaders
) -> AsyncIterator[Territory]:
    """A warehouse with things of A and of B."""
    a, b = uuid4(), uuid4()
    warehouse = Warehouse(fault)
    theirs = warehouse.add(b, CANARY)
    app = create_app("warehouse", version="1", routers=[warehouse.router()])
    app.state.verifier = PrincipalVerifier(keys)

    async def credential(_: str) -> dict[str, str]:
        return principal_headers(a)

    async def mine() -> str:
        return str(warehouse.add(a, "mine"))

    async def fingerprint() -> dict[str, str]:
        rows = sorted(f"{i}{n}" for i, (t, n) in warehouse.things.items() if t == b)
        return {"things": hashlib.sha256("".join(rows).encode()).hexdigest()}

    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://warehouse"
    ) as http:
        yield Territory(
            http=http,
            document=app.openapi(),
            credential=credential,
            kinds={"thing_id": "thing", "near": "thing"},
            mine={"thing": mine},
            theirs={"thing": str(theirs)},
            canaries=frozenset({CANARY}),
            fingerprint=fingerprint,
        )


async def test_a_sound_service_is_clean(
    keys: KeySource, principal_headers: PrincipalHeaders
) -> None:
    async with land(None, keys, principal_headers) as territory:
        assert await walk(territory) == []


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("reads", "GET /things/{thing_id}: thing_id of B's gives (200"),
        ("says forbidden", "GET /things/{thing_id}: thing_id of B's gives (403"),
        ("tells in words", "GET /things/{thing_id}: thing_id of B's gives (404"),
        ("tells in a header", "GET /things/{thing_id}/etag: thing_id of B's gives (200"),
        ("lists all", "GET /things: the answer to A's own holds B's 'the canary of B'"),
        ("counts what is near", "GET /things: near of B's gives (200"),
        ("removes", "DELETE /things/{thing_id}: B's rows changed in things"),
        ("says invalid", "POST /things/links: thing_id of B's gives (404"),
        ("lets anyone in", "GET /things/{thing_id}/open: is open to anyone"),
        ("takes what nobody knows", "GET /things/{thing_id}/parts/{part_id}: the parameter"),
    ],
)
async def test_a_planted_leak_is_found(
    fault: str, report: str, keys: KeySource, principal_headers: PrincipalHeaders
) -> None:
    async with land(fault, keys, principal_headers) as territory:
        found = await walk(territory)
    assert any(line.startswith(report) for line in found), found
