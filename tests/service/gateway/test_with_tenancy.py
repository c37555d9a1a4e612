"""The gateway before the real tenancy: what the two say to each other."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from starlette.types import ASGIApp

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.gateway.app import build
from services.gateway.settings import Settings
from services.tenancy.app import build as build_tenancy
from services.tenancy.settings import Settings as TenancySettings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.gateway.conftest import bearer
from tests.waiting import until

PASSWORD = "correct horse battery staple"


@dataclass(slots=True)
class Site:
    """A gateway and a tenancy, and a tenant with its first admin."""

    http: httpx2.AsyncClient
    admin: str

    async def log_in(self, email: str, password: str = PASSWORD) -> httpx2.Response:
        return await self.http.post(
            "/api/v1/auth/login", json={"email": email, "password": password}
        )

    async def headers(self, email: str) -> dict[str, str]:
        answer = await self.log_in(email)
        assert answer.status_code == 200, answer.text
        return bearer(answer.json()["access_token"])

    async def add(self, headers: dict[str, str], role: str) -> dict[str, Any]:
        """Let the admin add a user of a role."""
        added = await self.http.post(
            "/api/v1/users",
            json={
                "email": f"{uuid4().hex}@plant.example",
                "name": "Ben",
                "roles": [role],
                "password": PASSWORD,
            },
            headers=headers,
        )
        assert added.status_code == 201, added.text
        user: dict[str, Any] = added.json()
        return user


@pytest.fixture
async def site(
    settings: Settings,
    bus: LocalBus,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[Site]:
    """Both, as the edge composes them."""
    clock = SystemClock()
    apps: dict[str, ASGIApp] = {}
    gateway = build(settings, bus, clock, upstreams=apps)
    tenancy = build_tenancy(
        TenancySettings(
            database_url=database_urls.rw("tenancy"),
            engine_database_url=database_urls.engine("tenancy"),
        ),
        bus,
        clock,
        keys=gateway.state.keyring,
    )
    apps["tenancy"] = tenancy
    async with (
        gateway.router.lifespan_context(gateway),
        tenancy.router.lifespan_context(tenancy),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=gateway), base_url="http://gateway"
        ) as http,
    ):
        await bus.start()
        admin = await _found(database_urls, bus, clock)
        yield Site(http, admin)
        await bus.stop()


async def _found(urls: DatabaseUrls, bus: LocalBus, clock: SystemClock) -> str:
    """Open a tenant as the platform's admin does; return its admin's address."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from libs.common.auth.principal import HEADER, Principal, PrincipalSigner, StaticKeys

    key = ec.generate_private_key(ec.SECP256R1())
    app = build_tenancy(
        TenancySettings(
            database_url=urls.rw("tenancy"), engine_database_url=urls.engine("tenancy")
        ),
        LocalBus(urls.bus, clock),
        clock,
        keys=StaticKeys({"k": key.public_key()}),
    )
    platform = Principal(subject=uuid4(), tenant_id=uuid4(), platform_admin=True)
    slug = f"plant-{uuid4().hex[:12]}"
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://t") as http,
    ):
        opened = await http.post(
            "/api/v1/tenants",
            json={
                "slug": slug,
                "name": slug,
                "admin": {"email": f"boss@{slug}.example", "name": "Boss", "password": PASSWORD},
            },
            headers={HEADER: PrincipalSigner(key, "k").sign(platform, clock.now())},
        )
        assert opened.status_code == 201, opened.text
    return f"boss@{slug}.example"


async def test_an_admin_logs_in_and_adds_a_user_who_logs_in(site: Site) -> None:
    admin = await site.headers(site.admin)
    user = await site.add(admin, "viewer")
    viewer = await site.headers(user["email"])
    listed = await site.http.get("/api/v1/tenants", headers=viewer)
    refused = await site.http.get("/api/v1/users", headers=viewer)
    assert refused.status_code == 403
    assert listed.status_code in {200, 403}
    me = (await site.http.get("/api/v1/auth/me", headers=viewer)).json()
    assert me["memberships"][0]["roles"] == ["viewer"]


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(site: Site) -> None:
    wrong = await site.log_in(site.admin, "not the password at all")
    unknown = await site.log_in("nobody@plant.example")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json()["detail"] == unknown.json()["detail"]


async def test_a_user_who_is_removed_is_out_at_once(site: Site) -> None:
    admin = await site.headers(site.admin)
    user = await site.add(admin, "operator")
    headers = await site.headers(user["email"])
    removed = await site.http.delete(f"/api/v1/users/{user['id']}", headers=admin)
    assert removed.status_code == 204

    async def is_out() -> bool:
        return (await site.http.get("/api/v1/auth/me", headers=headers)).status_code == 401

    await until(is_out, "the removed user is out", within_s=5)
    assert (await site.log_in(user["email"])).status_code == 401


async def test_a_new_role_counts_without_logging_in_again(site: Site) -> None:
    admin = await site.headers(site.admin)
    user = await site.add(admin, "viewer")
    headers = await site.headers(user["email"])
    assert (await site.http.get("/api/v1/users", headers=headers)).status_code == 403
    changed = await site.http.patch(
        f"/api/v1/users/{user['id']}", json={"roles": ["admin"]}, headers=admin
    )
    assert changed.status_code == 200, changed.text

    async def may_read_users() -> bool:
        return (await site.http.get("/api/v1/users", headers=headers)).status_code == 200

    await until(may_read_users, "the new role counts", within_s=5)
