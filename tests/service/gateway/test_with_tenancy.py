"""The gateway before the real tenancy: what the two say to each other."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from libs.common.auth.principal import HEADER, Principal
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.gateway.app import build
from services.gateway.settings import Settings
from services.tenancy.app import build as build_tenancy
from services.tenancy.settings import Settings as TenancySettings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import bearer
from tests.waiting import until

PASSWORD = "correct horse battery staple"


@dataclass(slots=True)
class Site:
    """A gateway and a tenancy, and a tenant with its first admin."""

    http: httpx2.AsyncClient
    gateway: FastAPI
    tenancy: httpx2.AsyncClient
    """Straight to tenancy, for what the platform's admin does."""
    admin: str = ""

    async def by_platform(self, method: str, path: str, **body: object) -> dict[str, Any]:
        """Have the platform's admin do something in tenancy, which must be granted."""
        admin = Principal(subject=uuid4(), tenant_id=uuid4(), platform_admin=True)
        signed = self.gateway.state.keyring.signer().sign(admin, datetime.now(UTC))
        answer = await self.tenancy.request(
            method, path, json=body, headers={HEADER: signed, "idempotency-key": str(uuid4())}
        )
        assert answer.is_success, answer.text
        document: dict[str, Any] = answer.json()
        return document

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
        slug = f"plant-{uuid4().hex[:12]}"
        email = f"boss@{slug}.example"
        admin = {"email": email, "name": "Boss"}
        opened = await self.by_platform(
            "POST", "/api/v1/tenants", slug=slug, name=slug, admin=admin
        )
        accepted = await self.accept(opened["admin"]["invitation"]["token"])
        assert accepted.status_code == 200, accepted.text
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
) -> AsyncIterator[Site]:
    """Both, as the edge composes them."""
    clock = SystemClock()
    apps: dict[str, ASGIApp] = {}
    gateway = build(settings, bus, clock, upstreams=apps)
    tenancy = build_tenancy(
        TenancySettings(
            database_url=database_urls.rw("tenancy"),
            engine_database_url=database_urls.engine("tenancy"),
            sealing_key="only for tests, and random",
            identity_networks=(IPv4Network("127.0.0.0/8"),),
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
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=tenancy), base_url="http://tenancy"
        ) as behind,
    ):
        await bus.start()
        site = Site(http, gateway, behind)
        site.admin = await site.new_admin()
        yield site
        await bus.stop()


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


async def test_a_program_comes_in_with_a_key_until_that_is_revoked(site: Site) -> None:
    admin = await site.headers(site.admin)
    body = {"name": "directory", "scopes": ["users:read"]}
    made = (await site.http.post("/api/v1/api-keys", json=body, headers=admin)).json()
    program = {"x-api-key": made["key"]}
    path = f"/api/v1/api-keys/{made['id']}"
    assert (await site.http.get("/api/v1/users", headers=program)).status_code == 200
    assert (await site.http.get("/api/v1/roles", headers=program)).status_code == 403
    assert (await site.http.get(path, headers=program)).status_code == 403

    # Its scopes count as they are now, and a new secret beside the old one.
    wider = {"scopes": ["users:read", "roles:read"]}
    assert (await site.http.patch(path, json=wider, headers=admin)).status_code == 200
    rotated = await site.http.post(f"{path}/rotate", json={}, headers=admin)
    for key in (made["key"], rotated.json()["key"]):

        async def may_read_roles(key: str = key) -> bool:
            answer = await site.http.get("/api/v1/roles", headers=bearer(key))
            return answer.status_code == 200

        await until(may_read_roles, "the wider scopes count", within_s=5)

    assert (await site.http.delete(path, headers=admin)).status_code == 204

    async def is_out() -> bool:
        return (await site.http.get("/api/v1/users", headers=program)).status_code == 401

    await until(is_out, "the revoked key is out", within_s=5)


async def test_a_limit_by_plan_holds_for_the_users_and_the_keys_of_a_tenant_with_that_plan(
    site: Site,
) -> None:
    admin = await site.headers(site.admin)
    key = {"name": "directory", "scopes": ["roles:read"]}
    made = (await site.http.post("/api/v1/api-keys", json=key, headers=admin)).json()
    callers = {"user": admin, "key": {"x-api-key": made["key"]}}
    plan = f"small-{uuid4().hex[:8]}"
    limit = {"name": "small", "match": {"plan": plan, "path": "/api/v1/roles"}, "requests": 7}
    set_ = await site.http.post("/api/v1/rate-limits", json=limit, headers=admin)
    assert set_.status_code == 201, set_.text

    async def small(headers: dict[str, str]) -> bool:
        answer = await site.http.get("/api/v1/roles", headers=headers)
        assert answer.status_code in {200, 429}, answer.text
        return '"small";q=7' in answer.headers.get("ratelimit-policy", "")

    for headers in callers.values():
        assert not await small(headers), "it has another plan"
    tenant = (await site.http.get("/api/v1/auth/me", headers=admin)).json()["tenant_id"]
    await site.by_platform("POST", "/api/v1/plans", name=plan, quotas={})
    await site.by_platform("PATCH", f"/api/v1/tenants/{tenant}", plan=plan)
    for who, headers in callers.items():
        await until(partial(small, headers), f"the limit of the plan holds for a {who}", within_s=5)
        for _ in range(7):
            last = await site.http.get("/api/v1/roles", headers=headers)
        assert last.status_code == 429, who


async def test_one_enters_another_tenant_of_ones_own_and_a_stranger_does_not(site: Site) -> None:
    here, there = await site.headers(site.admin), await site.headers(await site.new_admin())
    email = f"{uuid4().hex}@plant.example"
    await site.accept((await site.invite(here, "viewer", email))["invitation"]["token"])
    joined = await site.accept((await site.invite(there, "operator", email))["invitation"]["token"])
    before = bearer(joined.json()["access_token"])
    first, second = (await site.me(joined))["memberships"]

    path = f"/api/v1/tenants/{first['tenant_id']}/switch"
    switched = await site.http.post(path, json={}, headers=before)
    me = await site.me(switched)
    assert (me["tenant_id"], me["session_id"] != (await site.me(joined))["session_id"]) == (
        first["tenant_id"],
        True,
    )
    assert (await site.me(joined))["tenant_id"] == second["tenant_id"], "it goes on"
    after = bearer(switched.json()["access_token"])
    assert (await site.http.get(f"/api/v1/tenants/{first['tenant_id']}", headers=after)).is_success
    elsewhere = f"/api/v1/tenants/{second['tenant_id']}"
    assert (await site.http.get(elsewhere, headers=after)).status_code == 404

    strange = [
        await site.http.post(f"/api/v1/tenants/{tenant}/switch", json={}, headers=there)
        for tenant in (first["tenant_id"], uuid4())
    ]
    assert [answer.status_code for answer in strange] == [403, 403]
    told = [{**answer.json(), "request_id": None, "instance": None} for answer in strange]
    assert told[0] == told[1], "nor hears whether there is such a tenant"
    assert (await site.http.post(path, json={})).status_code == 401
