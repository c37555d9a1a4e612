"""The gateway before the real tenancy: what the two say to each other."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
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
    open_tenant: Callable[[], Awaitable[tuple[str, str]]]
    admin: str = ""

    async def log_in(self, email: str, password: str = PASSWORD) -> httpx2.Response:
        return await self.http.post(
            "/api/v1/auth/login", json={"email": email, "password": password}
        )

    async def headers(self, email: str) -> dict[str, str]:
        answer = await self.log_in(email)
        assert answer.status_code == 200, answer.text
        return bearer(answer.json()["access_token"])

    async def accept(self, token: str, password: str = PASSWORD) -> httpx2.Response:
        return await self.http.post(
            "/api/v1/auth/invitations/accept", json={"token": token, "password": password}
        )

    async def me(self, answer: httpx2.Response) -> dict[str, Any]:
        """Return who is logged in by an answer."""
        assert answer.status_code == 200, answer.text
        headers = bearer(answer.json()["access_token"])
        who = await self.http.get("/api/v1/auth/me", headers=headers)
        assert who.status_code == 200, who.text
        me: dict[str, Any] = who.json()
        return me

    async def new_admin(self) -> str:
        """Open a tenant as the platform's admin does; return its admin's address."""
        email, token = await self.open_tenant()
        assert (await self.accept(token)).status_code == 200
        return email

    async def invite(
        self, headers: dict[str, str], role: str, email: str | None = None
    ) -> dict[str, Any]:
        """Let the admin invite a user to a role."""
        invited = await self.http.post(
            "/api/v1/users",
            json={
                "email": email or f"{uuid4().hex}@plant.example",
                "name": "Ben",
                "roles": [role],
            },
            headers=headers,
        )
        assert invited.status_code == 201, invited.text
        user: dict[str, Any] = invited.json()
        return user

    async def add(self, headers: dict[str, str], role: str) -> dict[str, Any]:
        """Let a user join whom the admin invites."""
        user = await self.invite(headers, role)
        assert (await self.accept(user["invitation"]["token"])).status_code == 200
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
        site = Site(http, partial(_open_tenant, database_urls, bus, clock))
        site.admin = await site.new_admin()
        yield site
        await bus.stop()


async def _open_tenant(urls: DatabaseUrls, bus: LocalBus, clock: SystemClock) -> tuple[str, str]:
    """Open a tenant; return its admin's address and invitation."""
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
    email = f"boss@{slug}.example"
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://t") as http,
    ):
        opened = await http.post(
            "/api/v1/tenants",
            json={"slug": slug, "name": slug, "admin": {"email": email, "name": "Boss"}},
            headers={HEADER: PrincipalSigner(key, "k").sign(platform, clock.now())},
        )
        assert opened.status_code == 201, opened.text
    return email, opened.json()["admin"]["invitation"]["token"]


async def test_an_admin_logs_in_and_invites_a_user_who_joins_and_logs_in(site: Site) -> None:
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


HERS = "a password of Mallory's own"
THEIRS = "a password of the victim's own"


async def test_nobody_takes_over_the_account_of_another_tenants_user(site: Site) -> None:
    mallory, bob = await site.headers(site.admin), await site.headers(await site.new_admin())
    victim = f"{uuid4().hex}@plant.example"
    # She registers the address first, with a password that she chooses.
    hers = await site.invite(mallory, "admin", victim)
    assert (await site.accept(hers["invitation"]["token"], HERS)).status_code == 200
    theirs = await site.invite(bob, "admin", victim)

    tokens = await site.log_in(victim, HERS)
    me = await site.me(tokens)
    [membership] = me["memberships"]
    assert me["tenant_id"] == membership["tenant_id"]
    tenant = (await site.http.get("/api/v1/auth/me", headers=bob)).json()["tenant_id"]
    assert membership["tenant_id"] != tenant
    slug = (await site.http.get(f"/api/v1/tenants/{tenant}", headers=bob)).json()["slug"]
    chosen = {"email": victim, "password": HERS, "tenant": slug}
    assert (await site.http.post("/api/v1/auth/login", json=chosen)).status_code == 401
    headers = bearer(tokens.json()["access_token"])
    switched = await site.http.post(
        "/api/v1/auth/switch", json={"tenant_id": tenant}, headers=headers
    )
    assert switched.status_code == 403
    refreshed = await site.http.post(
        "/api/v1/auth/refresh", json={"refresh_token": tokens.json()["refresh_token"]}
    )
    assert len((await site.me(refreshed))["memberships"]) == 1

    # And Bob, who holds the token, does not take over what she has in A.
    assert (await site.accept(theirs["invitation"]["token"], THEIRS)).status_code == 401
    assert (await site.log_in(victim, THEIRS)).status_code == 401


async def test_who_accepts_is_logged_in_to_the_tenant_that_invited(site: Site) -> None:
    here, there = await site.headers(site.admin), await site.headers(await site.new_admin())
    email = f"{uuid4().hex}@plant.example"
    first = await site.invite(here, "viewer", email)
    me = await site.me(await site.accept(first["invitation"]["token"], THEIRS))
    # What the gateway remembers of them is without the second tenant.
    second = await site.invite(there, "operator", email)
    assert (await site.accept(second["invitation"]["token"])).status_code == 401
    joined = await site.me(await site.accept(second["invitation"]["token"], THEIRS))
    assert joined["user_id"] == me["user_id"] == second["id"]
    assert joined["tenant_id"] != me["tenant_id"]
    assert [m["roles"] for m in joined["memberships"]] == [["viewer"], ["operator"]]
    assert (await site.accept(second["invitation"]["token"], THEIRS)).status_code == 401


async def test_each_tenant_calls_a_user_by_a_name_of_its_own(site: Site) -> None:
    here, there = await site.headers(site.admin), await site.headers(await site.new_admin())
    user = await site.add(here, "viewer")
    again = await site.invite(there, "viewer", user["email"])
    renamed = await site.http.patch(
        f"/api/v1/users/{user['id']}", json={"name": "Benjamin"}, headers=here
    )
    assert renamed.status_code == 200
    joined = await site.me(await site.accept(again["invitation"]["token"]))
    assert joined["name"] == "Ben"
    assert [m["name"] for m in joined["memberships"]] == ["Benjamin", "Ben"]


async def test_a_password_that_cannot_be_is_told_where_it_stands(site: Site) -> None:
    user = await site.invite(await site.headers(site.admin), "viewer")
    answer = await site.accept(user["invitation"]["token"], "too short")
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/password"]
    assert (await site.accept(user["invitation"]["token"])).status_code == 200


async def test_guesses_by_new_invitations_and_by_login_count_together(site: Site) -> None:
    victim, admin = site.admin, await site.headers(await site.new_admin())
    user = await site.invite(admin, "viewer", victim)
    token, answers = user["invitation"]["token"], []
    for _ in range(4):
        answers.append(await site.accept(token, "a guess, long enough"))
        path = f"/api/v1/users/{user['id']}/invitation"
        token = (await site.http.post(path, headers=admin)).json()["invitation"]["token"]
    answers.append(await site.log_in(victim, "a guess, long enough"))
    answers.append(await site.accept(token))
    # The first attempt was when the victim joined.
    assert [answer.status_code for answer in answers] == [401] * 4 + [429] * 2
    assert "retry-after" in answers[-1].headers


async def test_a_token_that_is_nobodys_reads_and_counts_like_one_that_is(site: Site) -> None:
    user = await site.invite(await site.headers(site.admin), "viewer", await site.new_admin())
    refusals = [
        await site.accept(token, "a guess, long enough")
        for token in (user["invitation"]["token"], "iioti_" + "x" * 43)
    ]
    assert [answer.status_code for answer in refusals] == [401, 401]
    assert len({str(answer.json() | {"request_id": None}) for answer in refusals}) == 1
    assert len({frozenset(answer.headers) for answer in refusals}) == 1
    again = [await site.accept("iioti_" + "x" * 43, "a guess, long enough") for _ in range(5)]
    assert [answer.status_code for answer in again] == [401] * 4 + [429]
