"""Logging in with more than a password: codes of an app, recovery codes, passkeys."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import unquote
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pyotp
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from starlette.types import ASGIApp

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.gateway.app import build
from services.gateway.settings import Settings
from services.tenancy.app import build as build_tenancy
from services.tenancy.settings import Settings as TenancySettings
from tests.database import DatabaseUrls
from tests.service.gateway.authenticator import Authenticator
from tests.service.gateway.conftest import bearer
from tests.waiting import until

PASSWORD = "correct horse battery staple"
HASHED = PasswordHash((Argon2Hasher(),)).hash(PASSWORD)
ORIGIN = "https://iiot.example"
Answer = httpx2.Response


@dataclass(slots=True)
class Site:
    """A gateway before the real tenancy, at its public address."""

    http: httpx2.AsyncClient
    clock: SystemClock
    urls: DatabaseUrls

    def forward(self, **by: float) -> None:
        """Let time pass."""
        self.clock.offset += timedelta(**by)

    async def post(
        self, path: str, headers: dict[str, str] | None = None, /, **body: object
    ) -> Answer:
        """Ask the part of the API that logs people in."""
        return await self.http.post(f"/api/v1/auth/{path}", json=body, headers=headers or {})

    async def execute(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    async def person(self) -> "Person":
        """Let someone be the admin of a tenant of their own."""
        return await Person(self, f"{uuid4().hex[:12]}@plant.example").settle()


@dataclass(slots=True)
class Person:
    """Someone with an account, and perhaps an authenticator app."""

    site: Site
    email: str
    id: UUID = field(default_factory=uuid4)
    tenant_id: UUID = field(default_factory=uuid4)
    secret: str = ""

    async def settle(self) -> "Person":
        """Exist, as a member of a new tenant, with the password."""
        await self.site.execute(
            "INSERT INTO tenancy.users (id, email, password_hash, created_at)"
            " VALUES ($1, $2, $3, now())",
            self.id,
            self.email,
            HASHED,
        )
        await self.join(self.tenant_id)
        return self

    async def join(self, tenant_id: UUID) -> None:
        """Be the admin of another new tenant."""
        await self.site.execute(
            "INSERT INTO tenancy.tenants (tenant_id, slug, name, created_at, updated_at)"
            " VALUES ($1, $2, 'Plant', now(), now())",
            tenant_id,
            f"plant-{tenant_id.hex}",
        )
        await self.site.execute(
            "INSERT INTO tenancy.memberships (tenant_id, user_id, name, roles, status, created_at,"
            " updated_at) VALUES ($1, $2, 'Ann', '{admin}', 'active', now(), now())",
            tenant_id,
            self.id,
        )

    async def begin(self, **more: object) -> Answer:
        """Show the password."""
        return await self.site.post("login", email=self.email, password=PASSWORD, **more)

    async def headers(self) -> dict[str, str]:
        """Log in by the password alone; return the headers of a request."""
        answer = await self.begin()
        assert answer.status_code == 200, answer.text
        return bearer(answer.json()["access_token"])

    async def pending(self) -> str:
        """Show the password; return what the second step is asked for with."""
        answer = await self.begin()
        assert answer.status_code == 202, answer.text
        token: str = answer.json()["mfa_token"]
        return token

    async def headers_of(self, passkey: Authenticator) -> dict[str, str]:
        """Log in by a passkey; return the headers of a request."""
        options = (await self.site.post("login/passkey/options")).json()
        answer = await self.site.post("login/passkey", credential=passkey.get(options))
        assert answer.status_code == 200, answer.text
        return bearer(answer.json()["access_token"])

    def code(self) -> str:
        """Return what the app shows now."""
        return pyotp.TOTP(self.secret).at(self.site.clock.now())

    async def set_app_up(self, headers: dict[str, str]) -> list[str]:
        """Set an authenticator app up; return the recovery codes."""
        begun = await self.site.post("factors/totp", headers)
        assert begun.status_code == 200, begun.text
        self.secret = begun.json()["secret"]
        assert pyotp.parse_uri(begun.json()["address"]).secret == self.secret
        assert unquote(begun.json()["qr_code"]).startswith("data:image/svg+xml")
        confirmed = await self.site.post("factors/totp/confirm", headers, code=self.code())
        assert confirmed.status_code == 200, confirmed.text
        codes: list[str] = confirmed.json()["recovery_codes"]
        assert len(set(codes)) == 10
        self.site.forward(seconds=30)
        return codes

    async def register(self, headers: dict[str, str], **more: Any) -> Authenticator:
        """Register a passkey."""
        passkey = Authenticator(ORIGIN, **more)
        options = (await self.site.post("passkeys/options", headers)).json()
        made = passkey.create(options)
        added = await self.site.post("passkeys", headers, name="Phone", credential=made)
        assert added.status_code == 201, added.text
        return passkey


@pytest.fixture
async def site(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> AsyncIterator[Site]:
    """Both services, as the edge composes them."""
    clock = SystemClock()
    apps: dict[str, ASGIApp] = {}
    ours = settings.model_copy(update={"public_url": ORIGIN, "logins_per_minute": 1_000})
    gateway = build(ours, bus, clock, upstreams=apps)
    tenancy = apps["tenancy"] = build_tenancy(
        TenancySettings(
            database_url=database_urls.rw("tenancy"),
            engine_database_url=database_urls.engine("tenancy"),
            sealing_key="only-for-tests-and-long-enough",
        ),
        bus,
        clock,
        keys=gateway.state.keyring,
    )
    async with (
        gateway.router.lifespan_context(gateway),
        tenancy.router.lifespan_context(tenancy),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gateway), base_url=ORIGIN) as http,
    ):
        await bus.start()
        yield Site(http, clock, database_urls)
        await bus.stop()


async def test_an_authenticator_app_is_asked_for_from_then_on_and_each_code_is_good_once(
    site: Site,
) -> None:
    ann = await site.person()
    headers = await ann.headers()
    recovery_codes = await ann.set_app_up(headers)

    answer = await ann.begin()
    assert answer.status_code == 202
    assert answer.json() | {"mfa_token": ""} == {
        "mfa_token": "",
        "factors": ["totp", "recovery"],
        "enrol": False,
        "expires_in": 300,
    }
    token, code = answer.json()["mfa_token"], ann.code()
    for path in ("me", "sessions", "factors"):
        refused = await site.http.get(f"/api/v1/auth/{path}", headers=bearer(token))
        assert refused.status_code == 401, "the token of a first step opens nothing"
    wrong = await site.post("login/totp", mfa_token=token, code="000000")
    assert wrong.status_code == 401
    entered = await site.post("login/totp", mfa_token=token, code=code)
    assert entered.status_code == 200, entered.text
    sessions = await site.http.get(
        "/api/v1/auth/sessions", headers=bearer(entered.json()["access_token"])
    )
    assert sessions.json()["items"][0]["methods"] == ["pwd", "otp"]
    for again in (token, await ann.pending()):
        used = await site.post("login/totp", mfa_token=again, code=code)
        assert used.status_code == 401, "neither the login nor the code is good twice"

    recovered = await site.post(
        "login/recovery", mfa_token=await ann.pending(), code=recovery_codes[0].upper()
    )
    assert recovered.status_code == 200
    twice = await site.post("login/recovery", mfa_token=await ann.pending(), code=recovery_codes[0])
    assert twice.status_code == 401
    listed = (await site.http.get("/api/v1/auth/factors", headers=headers)).json()
    assert listed["recovery_codes_left"] == 9
    [app] = listed["items"]
    assert (app["kind"], app["last_used_at"] is not None) == ("totp", True)
    # At rest: sealed, and hashed.
    [row] = await site.execute("SELECT * FROM tenancy.one_time_codes WHERE user_id = $1", ann.id)
    assert ann.secret.encode() not in row["secret"]
    kept = await site.execute("SELECT * FROM tenancy.recovery_codes WHERE user_id = $1", ann.id)
    assert not {bytes(r["code_hash"]) for r in kept} & {c.encode() for c in recovery_codes}


async def test_codes_cannot_be_guessed_with_one_login_nor_with_many_at_once(site: Site) -> None:
    ann = await site.person()
    recovery_codes = await ann.set_app_up(await ann.headers())
    token = await ann.pending()
    tried = await asyncio.gather(
        *[site.post("login/recovery", mfa_token=token, code=f"{n:016}") for n in range(12)]
    )
    assert {answer.status_code for answer in tried} == {401}
    spent = await site.post("login/recovery", mfa_token=token, code=recovery_codes[0])
    assert spent.status_code == 401, "five wrong codes void the login"

    tokens = [await ann.pending() for _ in range(8)]
    guessed = await asyncio.gather(
        *[site.post("login/totp", mfa_token=token, code="000000") for token in tokens]
    )
    assert sorted(answer.status_code for answer in guessed) == [401] * 5 + [429] * 3
    held = await site.post("login/totp", mfa_token=await ann.pending(), code=ann.code())
    assert held.status_code == 429, "the account's codes count together"
    assert 0 < int(held.headers["retry-after"]) <= 30
    # Its owner is not locked out by it.
    other = await site.post("login/recovery", mfa_token=await ann.pending(), code=recovery_codes[1])
    assert other.status_code == 200
    site.forward(seconds=31)
    after = await site.post("login/totp", mfa_token=await ann.pending(), code=ann.code())
    assert after.status_code == 200
    late = await ann.pending()
    site.forward(minutes=5)
    assert (await site.post("login/totp", mfa_token=late, code=ann.code())).status_code == 401


async def test_factors_are_changed_by_who_showed_the_password_just_now(site: Site) -> None:
    ann, ben = await site.person(), await site.person()
    headers = await ann.headers()
    site.forward(minutes=10)
    refused = await site.post("factors/totp", headers)
    assert refused.status_code == 403
    assert refused.json()["type"] == "urn:iiot:problem:proof-needed"
    assert (await site.post("proof", headers, password="something else")).status_code == 401
    assert (await site.post("proof", headers, password=PASSWORD)).status_code == 204
    old_codes = await ann.set_app_up(headers)
    assert (await site.post("factors/totp", headers)).status_code == 409
    renewed = await site.post("factors/recovery-codes", headers)
    codes = renewed.json()["recovery_codes"]
    for code, status in ((old_codes[0], 401), (codes[0], 200)):
        tried = await site.post("login/recovery", mfa_token=await ann.pending(), code=code)
        assert tried.status_code == status
    [app] = (await site.http.get("/api/v1/auth/factors", headers=headers)).json()["items"]
    path = f"/api/v1/auth/factors/{app['id']}"
    assert (await site.http.delete(path, headers=await ben.headers())).status_code == 404
    assert (await site.http.delete(path, headers=headers)).status_code == 204
    assert (await ann.begin()).status_code == 200
    assert not await site.execute(
        "SELECT FROM tenancy.recovery_codes WHERE user_id = $1", ann.id
    ), "the recovery codes go with the last factor"


async def test_a_passkey_is_a_second_factor_and_a_login_of_its_own(site: Site) -> None:
    ann = await site.person()
    headers = await ann.headers()
    phone = await ann.register(headers)

    options = (await site.post("login/passkey/options")).json()
    assert (options["rpId"], options["userVerification"]) == ("iiot.example", "required")
    answer = phone.get(options)
    entered = await site.post("login/passkey", credential=answer)
    assert entered.status_code == 200, entered.text
    replayed = await site.post("login/passkey", credential=answer)
    assert replayed.status_code == 401, "a challenge is good once"

    token = await ann.pending()
    asked = (await site.post("login/passkey/options", mfa_token=token)).json()
    assert [key["id"] for key in asked["allowCredentials"]] == [phone.get(asked)["id"]]
    second = await site.post("login/passkey", mfa_token=token, credential=phone.get(asked))
    assert second.status_code == 200, second.text
    listed = await site.http.get(
        "/api/v1/auth/sessions", headers=bearer(second.json()["access_token"])
    )
    methods = [session["methods"] for session in listed.json()["items"]]
    assert methods == [["pwd", "webauthn"], ["webauthn"], ["pwd"]]

    [factor] = (await site.http.get("/api/v1/auth/factors", headers=headers)).json()["items"]
    path = f"/api/v1/auth/factors/{factor['id']}"
    renamed = await site.http.patch(path, json={"name": "Old phone"}, headers=headers)
    assert renamed.json()["name"] == "Old phone"
    assert (await site.http.delete(path, headers=headers)).status_code == 204
    gone = phone.get((await site.post("login/passkey/options")).json())
    assert (await site.post("login/passkey", credential=gone)).status_code == 401


async def test_a_passkeys_answer_that_is_not_quite_right_opens_nothing(site: Site) -> None:
    ann, eve = await site.person(), await site.person()
    phone = await ann.register(await ann.headers())
    stick = await ann.register(await ann.headers_of(phone), knows_owner=False, counts=False)
    eves = await eve.register(await eve.headers())

    async def log_in(passkey: Authenticator, token: str | None = None, **other: Any) -> int:
        more = {"mfa_token": token} if token else {}
        options = (await site.post("login/passkey/options", **more)).json()
        answer = await site.post("login/passkey", credential=passkey.get(options, **other), **more)
        return answer.status_code

    assert await log_in(phone) == 200
    assert await log_in(phone, type="webauthn.create") == 401
    assert await log_in(phone, rp_id="evil.example") == 401
    assert await log_in(phone, challenge="AAAA") == 401, "a challenge that nobody made"
    assert await log_in(phone, user_handle=eves.user_handle) == 401
    assert await log_in(Authenticator("https://evil.example", key=phone.key, id=phone.id)) == 401
    assert await log_in(Authenticator(ORIGIN, id=phone.id, uses=99)) == 401, "another key"
    assert await log_in(stick) == 401, "alone it must know its owner"
    assert await log_in(stick, await ann.pending()) == 200, "beside the password it need not"
    assert await log_in(eves, await ann.pending()) == 401
    registered = (await site.post("passkeys/options", await ann.headers_of(phone))).json()
    crossed = phone.get({"challenge": registered["challenge"], "rpId": "iiot.example"})
    assert (await site.post("login/passkey", credential=crossed)).status_code == 401
    for junk in ({}, {"rawId": "%%"}, {"rawId": "AAAA", "response": {"clientDataJSON": "e30"}}):
        assert (await site.post("login/passkey", credential=junk)).status_code == 401

    # A copy of the phone was used meanwhile: the counter does not move on.
    phone.uses = 0
    assert await log_in(phone) == 401
    said = await site.execute(
        "SELECT convert_from(body, 'UTF8') AS body FROM bus.log"
        " WHERE tenant_id = $1 AND type = 'user.factors_changed.v1' ORDER BY position",
        ann.tenant_id,
    )
    assert "passkey_cloned" in said[-1]["body"]


async def test_who_has_no_second_factor_sets_one_up_where_the_tenant_asks_for_it(
    site: Site,
) -> None:
    ann, second = await site.person(), uuid4()
    await ann.join(second)
    headers = await ann.headers()
    policy = f"/api/v1/tenants/{ann.tenant_id}/login-policy"
    body = {"require_second_factor": True}
    assert (await site.http.put(policy, json=body, headers=headers)).json() == body

    elsewhere = await ann.begin(tenant=f"plant-{second.hex}")
    assert elsewhere.status_code == 200, "the other tenant asks for nothing"
    switched = await site.post(
        "switch", bearer(elsewhere.json()["access_token"]), tenant_id=str(ann.tenant_id)
    )
    assert switched.status_code == 202, "nobody gets in by way of another tenant"
    begun = await ann.begin()
    assert (begun.status_code, begun.json()["enrol"], begun.json()["factors"]) == (202, True, [])
    token, late = begun.json()["mfa_token"], switched.json()["mfa_token"]
    assert (await site.post("login/totp", mfa_token=token, code="123456")).status_code == 401

    app = await site.post("login/enrol/totp", mfa_token=token)
    ann.secret = app.json()["secret"]
    entered = await site.post("login/enrol/totp/confirm", mfa_token=token, code=ann.code())
    assert entered.status_code == 200, entered.text
    assert len(entered.json()["recovery_codes"]) == 10
    # Who has shown the password alone adds no factor to those there are by now.
    for path in ("login/enrol/totp", "login/enrol/passkey/options"):
        assert (await site.post(path, mfa_token=late)).status_code == 409
    strong = bearer(entered.json()["access_token"])
    assert (await site.post("switch", strong, tenant_id=str(second))).status_code == 200


async def test_the_password_alone_neither_makes_a_place_familiar_nor_outlives_its_change(
    site: Site,
) -> None:
    ann = await site.person()
    headers = await ann.headers()
    await ann.set_app_up(headers)

    async def familiar() -> int:
        seen = "SELECT FROM tenancy.familiar_origins WHERE user_id = $1"
        return len(await site.execute(seen, ann.id))

    await site.execute("DELETE FROM tenancy.familiar_origins WHERE user_id = $1", ann.id)
    token = await ann.pending()
    assert await familiar() == 0, "who guessed the password is a stranger still"
    site.forward(minutes=1)
    entered = await site.post("login/totp", mfa_token=token, code=ann.code())
    assert entered.status_code == 200, entered.text
    assert await familiar() == 1

    stolen = await ann.pending()
    changed = await site.post(
        "password", headers, current=PASSWORD, new="eleven grey herons at dusk"
    )
    assert changed.status_code == 204, changed.text
    begun = "SELECT FROM gateway.pending_logins WHERE user_id = $1"

    async def is_void() -> bool:
        return not await site.execute(begun, ann.id)

    await until(is_void, "what was begun with the old password is void", within_s=5)
    site.forward(minutes=1)
    late = await site.post("login/totp", mfa_token=stolen, code=ann.code())
    assert late.status_code == 401


async def test_the_first_factor_may_be_a_passkey(site: Site) -> None:
    ann = await site.person()
    await site.execute("INSERT INTO tenancy.login_policies VALUES ($1, true, now())", ann.tenant_id)
    token = await ann.pending()
    options = (await site.post("login/enrol/passkey/options", mfa_token=token)).json()
    phone = Authenticator(ORIGIN)
    entered = await site.post(
        "login/enrol/passkey", mfa_token=token, name="Phone", credential=phone.create(options)
    )
    assert entered.status_code == 200, entered.text
    assert len(entered.json()["recovery_codes"]) == 10
    assert (await ann.begin()).json()["factors"] == ["passkey", "recovery"]


async def test_the_platforms_admin_takes_away_the_factors_of_who_has_lost_them(site: Site) -> None:
    ann = await site.person()
    headers = await ann.headers()
    await ann.set_app_up(headers)
    path = f"/api/v1/users/{ann.id}/factors"
    assert (await site.http.delete(path, headers=headers)).status_code == 403
    root = await site.person()
    await site.execute("UPDATE tenancy.users SET is_platform_admin = true WHERE id = $1", root.id)
    admin = await root.headers()
    assert (await site.http.delete(path, headers=admin)).status_code == 204
    assert (await ann.begin()).status_code == 200
    unknown = f"/api/v1/users/{uuid4()}/factors"
    assert (await site.http.delete(unknown, headers=admin)).status_code == 404


async def test_an_invitation_of_an_account_with_a_second_factor_opens_no_session_by_itself(
    site: Site,
) -> None:
    ann, boss = await site.person(), await site.person()
    await ann.set_app_up(await ann.headers())
    invited = await site.http.post(
        "/api/v1/users",
        json={"email": ann.email, "name": "Ann", "roles": ["viewer"]},
        headers=await boss.headers(),
    )
    token = invited.json()["invitation"]["token"]
    joined = await site.post("invitations/accept", token=token, password=PASSWORD)
    assert joined.status_code == 202, joined.text
    entered = await site.post("login/totp", mfa_token=joined.json()["mfa_token"], code=ann.code())
    me = await site.http.get("/api/v1/auth/me", headers=bearer(entered.json()["access_token"]))
    assert me.json()["tenant_id"] == str(boss.tenant_id)
