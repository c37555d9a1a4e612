"""Tenancy as one process: real PostgreSQL, the local bus."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI

from libs.common.auth.principal import KeySource, Kind
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.audit import AuditRecorded
from libs.common.events.base import Event, to_message
from services.tenancy.app import build
from services.tenancy.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders

PASSWORD = "correct horse battery staple"


@dataclass(slots=True)
class Plant:
    """A tenant with its first admin, and how that admin calls."""

    id: UUID
    slug: str
    admin_email: str
    headers: dict[str, str]


@dataclass(slots=True)
class World:
    """A running tenancy, and what it takes to look behind it."""

    app: FastAPI
    bus: LocalBus
    http: httpx2.AsyncClient
    urls: DatabaseUrls
    principal_headers: PrincipalHeaders

    @property
    def platform(self) -> dict[str, str]:
        """How the platform's admin calls."""
        return self.principal_headers(uuid4(), "*", platform_admin=True)

    @property
    def gateway(self) -> dict[str, str]:
        """How the gateway calls."""
        return self.principal_headers(uuid4(), "tenancy:internal", kind=Kind.SERVICE)

    async def plant(self) -> Plant:
        """Open a tenant; its admin's password is PASSWORD."""
        slug = f"plant-{uuid4().hex[:12]}"
        email = f"boss@{slug}.example"
        opened = await self.open_tenant(slug, email)
        await self.accept(opened["admin"]["invitation"]["token"])
        tenant_id = UUID(opened["id"])
        return Plant(tenant_id, slug, email, self.principal_headers(tenant_id, "*"))

    async def open_tenant(self, slug: str, email: str) -> dict[str, Any]:
        """Open a tenant, whose admin is invited; return the answer."""
        opened = await self.http.post(
            "/api/v1/tenants",
            json={"slug": slug, "name": slug, "admin": {"email": email, "name": "Boss"}},
            headers=self.platform,
        )
        assert opened.status_code == 201, opened.text
        tenant: dict[str, Any] = opened.json()
        return tenant

    async def invite(self, plant: Plant, email: str, **more: object) -> dict[str, Any]:
        """Invite a user to a plant; return the answer."""
        body = {"email": email, "name": "Ann", "roles": ["operator"], **more}
        invited = await self.http.post("/api/v1/users", json=body, headers=plant.headers)
        assert invited.status_code == 201, invited.text
        user: dict[str, Any] = invited.json()
        return user

    async def try_to_accept(self, token: str, password: str = PASSWORD) -> httpx2.Response:
        """Ask as the gateway does when someone accepts an invitation."""
        return await self.http.post(
            "/internal/v1/invitations/accept",
            json={"token": token, "password": password},
            headers=self.gateway,
        )

    async def accept(self, token: str, password: str = PASSWORD) -> None:
        """Accept an invitation, which must be good."""
        answer = await self.try_to_accept(token, password)
        assert answer.status_code == 200, answer.text

    async def add_user(
        self, plant: Plant, email: str, password: str = PASSWORD, **more: object
    ) -> dict[str, Any]:
        """Let a user join a plant; return them."""
        invited = await self.invite(plant, email, **more)
        await self.accept(invited["invitation"]["token"], password)
        answer = await self.http.get(f"/api/v1/users/{invited['id']}", headers=plant.headers)
        user: dict[str, Any] = answer.json()
        return user

    async def users(self, plant: Plant) -> dict[str, dict[str, Any]]:
        """Return the plant's users by their address."""
        answer = await self.http.get("/api/v1/users", headers=plant.headers)
        return {user["email"]: user for user in answer.json()["items"]}

    async def log_in(self, email: str, password: str = PASSWORD) -> httpx2.Response:
        """Ask as the gateway does when someone logs in."""
        return await self.http.post(
            "/internal/v1/credentials/verify",
            json={"email": email, "password": password},
            headers=self.gateway,
        )

    async def publish(self, event: Event) -> None:
        """Let another service say something."""
        await self.bus.publish([to_message(event)])

    async def events(self, tenant_id: UUID) -> list[tuple[str, dict[str, Any]]]:
        """Return what was said of a tenant, but for its trail: type and body, in order."""
        rows = await self.query(
            "SELECT type, convert_from(body, 'UTF8') AS body FROM bus.log"
            " WHERE tenant_id = $1 AND type <> $2 ORDER BY position",
            tenant_id,
            AuditRecorded.type,
        )
        return [(row["type"], json.loads(row["body"])) for row in rows]

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()


@pytest.fixture
def settings(database_urls: DatabaseUrls) -> Settings:
    """Tenancy's settings for a test."""
    return Settings(
        database_url=database_urls.rw("tenancy"),
        engine_database_url=database_urls.engine("tenancy"),
    )


@pytest.fixture
async def world(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """A running tenancy."""
    app = build(settings, bus, SystemClock(), keys=keys)
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://tenancy") as http:
            yield World(app, bus, http, database_urls, principal_headers)
        await bus.stop()
