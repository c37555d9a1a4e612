"""The gateway as one process: real PostgreSQL, the local bus, and services that are stood in for."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.auth.api_key import new_handle, new_secret
from libs.common.auth.principal import HEADER, Kind, Principal, PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.http.bounds import Bounds
from libs.common.http.server import ServerConfig
from services.gateway.app import build
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.waiting import until

PASSWORD = "correct horse battery staple"


@dataclass(slots=True)
class Person:
    """Someone who may log in."""

    email: str
    user_id: UUID
    memberships: dict[UUID, list[str]]
    """Their permissions by tenant."""
    is_platform_admin: bool = False
    roles: tuple[str, ...] = ("operator",)
    plan: str | None = None
    """Of their tenants."""

    @property
    def tenant_id(self) -> UUID:
        """The tenant they have been in for longest."""
        return next(iter(self.memberships))


@dataclass(slots=True)
class Asked:
    """A request as a service got it."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return dict(self.headers).get(name)


@dataclass(slots=True)
class StubService:
    """Stands for any service: remembers what it was asked, and answers as it was told."""

    asked: list[Asked] = field(default_factory=list)
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(
        default_factory=lambda: [(b"content-type", b"application/json"), (b"server", b"secret/1")]
    )
    chunks: list[bytes] = field(default_factory=lambda: [b'{"ok":true}'])
    openapi: dict[str, Any] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    """Waited for before the last chunk."""
    received: list[bytes] = field(default_factory=list)
    """The pieces of the body as they came."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/openapi.json":
            await _answer(send, 200, json.dumps(self.openapi).encode())
            return
        self.received.clear()
        while True:
            message = await receive()
            self.received.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.asked.append(
            Asked(
                scope["method"],
                scope["path"],
                scope["query_string"].decode(),
                [(n.decode(), v.decode()) for n, v in scope["headers"]],
                b"".join(self.received),
            )
        )
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        *first, last = self.chunks
        for chunk in first:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if self.gate is not None:
            await self.gate.wait()
        await send({"type": "http.response.body", "body": last})


@dataclass(slots=True)
class StubTenancy:
    """Stands for tenancy: knows the people a test has made."""

    people: dict[str, Person] = field(default_factory=dict)
    invitations: dict[str, tuple[Person, UUID]] = field(default_factory=dict)
    """By token: who is invited, and to which tenant."""
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What API keys may do, by the hash of their secret."""
    uses: list[dict[str, Any]] = field(default_factory=list)
    """When keys were used, as it was told."""
    familiar: set[tuple[str, str]] = field(default_factory=set)
    """Accounts, and from where they were logged in to."""
    verifier: PrincipalVerifier | None = None
    is_away: bool = False
    asked: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        if self.is_away:
            await _answer(send, 503, b"{}")
            return
        if scope["path"] == "/openapi.json":
            await _answer(send, 200, b'{"paths":{},"components":{}}')
            return
        assert self.verifier is not None
        principal = dict(scope["headers"]).get(HEADER.encode(), b"").decode()
        vouched = await self.verifier.verify(principal)
        assert vouched.kind is Kind.SERVICE
        assert vouched.may("tenancy:internal")
        if scope["path"] == "/internal/v1/api-calls/lease":
            await _answer(send, 200, b'{"amount": null, "most": null}')
            return
        if scope["path"].startswith("/internal/v1/api-keys/"):
            body = json.loads((await receive())["body"])
            if scope["path"].endswith("/uses"):
                self.uses += body["uses"]
                await _answer(send, 204, b"")
                return
            key = self.keys.get(body["hash"])
            await _answer(send, 200 if key else 404, json.dumps(key or {}).encode())
            return
        found: Person | None
        if scope["path"] == "/internal/v1/origins/find":
            body = json.loads((await receive())["body"])
            is_familiar = (body["email"], body["origin"]) in self.familiar
            await _answer(send, 200, json.dumps({"is_familiar": is_familiar}).encode())
            return
        if scope["path"] == "/internal/v1/origins/note":
            body = json.loads((await receive())["body"])
            self.familiar.add((body["email"], body["origin"]))
            await _answer(send, 204, b"")
            return
        if scope["path"].startswith("/internal/v1/invitations/"):
            token = json.loads((await receive())["body"])["token"]
            if token not in self.invitations:
                await _answer(send, 401, b"{}")
                return
            person, tenant_id = self.invitations[token]
            if scope["path"].endswith("/accept"):
                del self.invitations[token]
                person.memberships[tenant_id] = ["*"]
            invited = {
                "tenant_id": str(tenant_id),
                "user_id": str(person.user_id),
                "email": person.email,
            }
            await _answer(send, 200, json.dumps(invited).encode())
            return
        if scope["path"] == "/internal/v1/credentials/verify":
            body = json.loads((await receive())["body"])
            found = self.people.get(body["email"])
            if found is None or body["password"] != PASSWORD:
                await _answer(send, 401, b"{}")
                return
        else:
            user_id = UUID(scope["path"].rpartition("/")[2])
            found = next((p for p in self.people.values() if p.user_id == user_id), None)
            if found is None or not found.memberships:
                await _answer(send, 404, b"{}")
                return
        account = {
            "user_id": str(found.user_id),
            "email": found.email,
            "platform_admin": found.is_platform_admin,
            "memberships": [
                {
                    "tenant_id": str(tenant_id),
                    "tenant_slug": f"plant-{tenant_id.hex}",
                    "tenant_name": "Plant",
                    "name": "Ann",
                    "roles": list(found.roles),
                    "device_groups": None,
                    "tenant_plan": found.plan,
                    "permissions": permissions,
                }
                for tenant_id, permissions in found.memberships.items()
            ],
        }
        await _answer(send, 200, json.dumps(account).encode())


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass(slots=True)
class World:
    """A running gateway, and what it takes to look behind it."""

    app: FastAPI
    http: httpx2.AsyncClient
    bus: Bus
    clock: SystemClock
    urls: DatabaseUrls
    tenancy: StubTenancy
    service: StubService
    """Ingest. What any stub was asked stands in its list."""
    upstreams: dict[str, StubService]
    verifier: PrincipalVerifier

    def person(self, *permissions: str) -> Person:
        """Let someone be known to tenancy, who may do these things in a tenant of their own."""
        email = f"{uuid4().hex[:12]}@plant.example"
        person = Person(email, uuid4(), {uuid4(): list(permissions or ["*"])})
        self.tenancy.people[email] = person
        return person

    def api_key(self, *scopes: str, **more: object) -> tuple[str, dict[str, Any]]:
        """Let a key be known to tenancy; return it, and what tenancy says of it."""
        secret = new_secret(new_handle())
        said = {
            "tenant_id": str(uuid4()),
            "key_id": str(uuid4()),
            "scopes": scopes or ("*",),
            "allowed_networks": [],
            "device_groups": None,
            "good_until": None,
            **more,
        }
        self.tenancy.keys[secret.key_hash.hex()] = said
        return secret.key, said

    async def log_in(self, person: Person, **more: object) -> dict[str, Any]:
        """Log in; return the tokens."""
        answer = await self.http.post(
            "/api/v1/auth/login", json={"email": person.email, "password": PASSWORD, **more}
        )
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def headers(self, person: Person) -> dict[str, str]:
        """Log in; return the headers of a request."""
        return bearer((await self.log_in(person))["access_token"])

    async def refresh(self, refresh_token: str) -> httpx2.Response:
        """Ask for the next pair of tokens."""
        return await self.http.post("/api/v1/auth/refresh", json={"refresh_token": refresh_token})

    async def me(self, access_token: str) -> int:
        """Return the status that an access token gets."""
        answer = await self.http.get("/api/v1/auth/me", headers=bearer(access_token))
        return answer.status_code

    async def principal(self) -> Principal:
        """Return the principal that the last request to the service came with."""
        token = self.service.asked[-1].header(HEADER)
        assert token is not None
        return await self.verifier.verify(token)

    def forward(self, **by: float) -> None:
        """Let time pass."""
        self.clock.offset += timedelta(**by)

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def settings(database_urls: DatabaseUrls) -> Settings:
    """The gateway's settings for a test: no limit that a test meets without meaning to."""
    return Settings(
        database_url=database_urls.rw("gateway"),
        engine_database_url=database_urls.engine("gateway"),
        REDIS_URL="",
        anonymous_per_minute=10_000,
    )


@pytest.fixture
async def world(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> AsyncIterator[World]:
    """A running gateway, before stubs in the same process."""
    async with running(settings, bus, database_urls) as world:
        yield world


@contextlib.asynccontextmanager
async def running(
    settings: Settings, bus: LocalBus, urls: DatabaseUrls, *, in_process: bool = True
) -> AsyncIterator[World]:
    """Run a gateway among stubs."""
    clock = SystemClock()
    tenancy = StubTenancy()
    asked: list[Asked] = []
    service = StubService(asked)
    stubs = {"ingest": service, "rules": StubService(asked), "alerting": StubService(asked)}
    apps: dict[str, ASGIApp] = {"tenancy": tenancy}
    if in_process:
        apps |= stubs
    app = build(settings, bus, clock, upstreams=apps)
    verifier = tenancy.verifier = PrincipalVerifier(app.state.keyring)
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield World(app, http, bus, clock, urls, tenancy, service, stubs, verifier)
        await bus.stop()


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, port: int = 0) -> AsyncIterator[int]:
    """Serve an app, whose lifespan is entered already, on a port (0: any free one)."""
    config = ServerConfig(app, Bounds(), port=port, lifespan="off", drain_s=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started, "uvicorn serves")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task
