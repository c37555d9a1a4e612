"""People see to their accounts by themselves: the gateway, the real tenancy, and a real mail server."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
import httpx2
import pyotp
import pytest
from starlette.types import ASGIApp

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.mail import Answer, Security, Verdict, hand_in
from services.gateway.app import build
from services.gateway.settings import Settings
from services.tenancy.adapters import postman
from services.tenancy.adapters.passwords import Passwords
from services.tenancy.app import build as build_tenancy
from services.tenancy.settings import Settings as TenancySettings
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.requests import AccountRequests
from tests.alarms import Mailbox, mailbox
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.gateway.conftest import bearer
from tests.waiting import until

PASSWORD = "correct horse battery staple"
ANOTHER = "eleven grey herons at dusk"
CONSOLE = "https://console.example/"


@dataclass(slots=True)
class Site:
    """A gateway and a tenancy that sends mail; and a tenant with its admin."""

    http: httpx2.AsyncClient
    mailbox: Mailbox
    clock: SystemClock
    urls: DatabaseUrls
    platform: dict[str, str]
    """How the platform's admin calls tenancy itself."""
    tenancy: httpx2.AsyncClient

    async def open_tenant(self) -> tuple[str, str, dict[str, str]]:
        """Open a tenant; return its id and slug, and how its admin, who was invited by mail, calls."""
        slug = f"works-{uuid4().hex[:12]}"
        email = self.address()
        opened = await self.tenancy.post(
            "/api/v1/tenants",
            json={"slug": slug, "name": slug, "admin": {"email": email, "name": "Boss"}},
            headers=self.platform,
        )
        assert opened.status_code == 201, opened.text
        joined = await self.post(
            "invitations/accept", token=await self.token(email), password=PASSWORD
        )
        assert joined.status_code == 200, joined.text
        return opened.json()["id"], slug, bearer(joined.json()["access_token"])

    def address(self) -> str:
        """Return a mail address that nobody has yet."""
        return f"{uuid4().hex[:12]}@people.example"

    async def post(self, path: str, _as: Any = None, **body: Any) -> httpx2.Response:
        """Ask under /api/v1/auth."""
        return await self.http.post(f"/api/v1/auth/{path}", json=body, headers=_as)

    async def log_in(self, email: str, password: str = PASSWORD, **more: Any) -> httpx2.Response:
        return await self.post("login", email=email, password=password, **more)

    async def invite(self, admin: dict[str, str], email: str, role: str = "viewer") -> str:
        """Invite somebody; return the token that the admin is shown."""
        invited = await self.http.post(
            "/api/v1/users",
            json={"email": email, "name": "Zoe", "roles": [role]},
            headers=admin,
        )
        assert invited.status_code == 201, invited.text
        token: str = invited.json()["invitation"]["token"]
        return token

    async def set_app_up(self, headers: dict[str, str]) -> None:
        """Have a code of an authenticator app asked for at the login."""
        app = await self.post("factors/totp", headers)
        code = pyotp.TOTP(app.json()["secret"]).at(self.clock.now())
        confirmed = await self.post("factors/totp/confirm", headers, code=code)
        assert confirmed.status_code == 200, confirmed.text

    async def mail(self, to: str, subject: str = "", *, nth: int = 1) -> EmailMessage:
        """Wait for a mail to an address."""

        def found() -> list[EmailMessage]:
            return [m for m in self.mailbox.to(to) if subject.lower() in m["Subject"].lower()]

        await until(lambda: len(found()) >= nth, f"mail {nth} to {to} about {subject!r}")
        return found()[nth - 1]

    async def token(self, to: str, subject: str = "", *, nth: int = 1) -> str:
        """Return the token in a mail's link, which both of its parts hold."""
        mail = await self.mail(to, subject, nth=nth)
        links = set()
        for kind in ("plain", "html"):
            part = mail.get_body((kind,))
            assert part is not None
            found = re.search(r"https://console\.example/\S+#token=[\w-]+", part.get_content())
            assert found, part.get_content()
            links.add(found[0])
        [link] = links
        return parse_qs(urlsplit(link).fragment)["token"][0]

    async def me(self, tokens: httpx2.Response) -> dict[str, Any]:
        """Return who is logged in by an answer."""
        assert tokens.status_code == 200, tokens.text
        headers = bearer(tokens.json()["access_token"])
        answer = await self.http.get("/api/v1/auth/me", headers=headers)
        assert answer.status_code == 200, answer.text
        me: dict[str, Any] = answer.json()
        return me

    async def until_out(self, tokens: httpx2.Response) -> None:
        """Wait until a session has ended: its access token and its refresh token."""
        headers = bearer(tokens.json()["access_token"])

        async def is_out() -> bool:
            return (await self.http.get("/api/v1/auth/me", headers=headers)).status_code == 401

        await until(is_out, "the session has ended", within_s=5)
        again = await self.post("refresh", refresh_token=tokens.json()["refresh_token"])
        assert again.status_code == 401

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()


@pytest.fixture
async def site(
    settings: Settings,
    bus: LocalBus,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[Site]:
    """Both, as the edge composes them, and a mail server."""
    clock = SystemClock()
    apps: dict[str, ASGIApp] = {}
    gateway = build(
        settings.model_copy(update={"logins_per_minute": 1000}),
        bus,
        clock,
        upstreams=apps,
    )
    async with mailbox() as box:
        own = TenancySettings(
            database_url=database_urls.rw("tenancy"),
            engine_database_url=database_urls.engine("tenancy"),
            PUBLIC_URL=CONSOLE,
            SMTP_HOST="127.0.0.1",
            SMTP_PORT=box.port,
            SMTP_SECURITY=Security.NONE,
            mail_tick=timedelta(milliseconds=100),
            sealing_key="only-for-tests-and-long-enough",
        )
        tenancy = build_tenancy(own, bus, clock, keys=gateway.state.keyring)
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
            platform = _platform_headers(gateway, clock)
            yield Site(http, box, clock, database_urls, platform, behind)
            await bus.stop()


def _platform_headers(gateway: Any, clock: SystemClock) -> dict[str, str]:
    from libs.common.auth.principal import HEADER, Principal

    admin = Principal(subject=uuid4(), tenant_id=uuid4(), platform_admin=True)
    return {HEADER: gateway.state.keyring.signer().sign(admin, clock.now())}


async def test_people_register_confirm_their_address_and_log_in(site: Site) -> None:
    tenant_id, slug, admin = await site.open_tenant()
    path = f"/api/v1/tenants/{tenant_id}/registration"
    assert (await site.http.get(path, headers=admin)).json()["admits"] == "nobody"
    stranger, ann = site.address(), site.address()
    asked = {"tenant": slug, "password": PASSWORD, "name": "Ann"}

    # Of a tenant that takes nobody, one that is not there, and one that takes others, alike.
    closed = await site.post("register", email=stranger, **asked)
    for policy, status in (
        ({"admits": "anyone", "role": "admin"}, 422),
        ({"admits": "anyone", "role": "nobody-knows"}, 422),
        ({"admits": "domains"}, 422),
        ({"admits": "domains", "domains": ["people.example"], "role": "operator"}, 200),
    ):
        answer = await site.http.put(path, json=policy, headers=admin)
        assert answer.status_code == status, answer.text
    nowhere = await site.post("register", email=stranger, **asked | {"tenant": "no-such-tenant"})
    elsewhere = await site.post("register", email="mallory@evil.example", **asked)
    taken = await site.post("register", email=ann, **asked)
    answers = [closed, nowhere, elsewhere, taken]
    assert {a.status_code for a in answers} == {202}
    assert len({a.text for a in answers}) == 1

    # Nobody enters before, and there is no user yet.
    token = await site.token(ann, "confirm")
    assert (await site.log_in(ann)).status_code == 401
    assert not await site.query("SELECT FROM tenancy.users WHERE email = $1", ann)
    assert (await site.post("verify-email", token=token, password=ANOTHER)).status_code == 401
    assert (
        await site.post("verify-email", token=token + "x", password=PASSWORD)
    ).status_code == 401
    me = await site.me(await site.post("verify-email", token=token, password=PASSWORD))
    assert (me["email"], me["name"]) == (ann, "Ann")
    assert [m["roles"] for m in me["memberships"]] == [["operator"]]
    assert (await site.post("verify-email", token=token, password=PASSWORD)).status_code == 401
    await site.me(await site.log_in(ann))

    # A second time: the same answer, and the owner is told.
    again = await site.post("register", email=ann.upper(), **asked | {"password": ANOTHER})
    assert again.text == taken.text
    await site.mail(ann, "registered")
    assert (await site.log_in(ann, ANOTHER)).status_code == 401
    assert not site.mailbox.to(stranger)
    assert not site.mailbox.to("mallory@evil.example")
    # Nothing waits, and no token was kept.
    assert not await site.query("SELECT FROM tenancy.account_requests WHERE email = $1", ann)
    assert not await site.query("SELECT FROM tenancy.mails WHERE email = $1", ann)


async def test_a_forgotten_password_is_replaced_by_mail_and_old_sessions_die(site: Site) -> None:
    _, _, admin = await site.open_tenant()
    _, other, elsewhere = await site.open_tenant()
    email = site.address()
    for headers, nth in ((admin, 1), (elsewhere, 2)):
        await site.invite(headers, email)
        accepted = await site.post(
            "invitations/accept",
            token=await site.token(email, "invited", nth=nth),
            password=PASSWORD,
        )
        assert accepted.status_code == 200, accepted.text
    here, there = await site.log_in(email), await site.log_in(email, tenant=other)
    assert {here.status_code, there.status_code} == {200}

    unknown = await site.post("password/forgot", email=site.address())
    forgot = await site.post("password/forgot", email=email.upper())
    assert (
        (forgot.status_code, forgot.text)
        == (unknown.status_code, unknown.text)
        == (202, forgot.text)
    )
    assert (await site.post("password/forgot", email=email)).status_code == 202
    older = await site.token(email, "new password")
    token = await site.token(email, "new password", nth=2)
    weak = await site.post("password/reset", token=token, password="passwordpassword")
    assert weak.status_code == 422
    assert "passwordpassword" not in weak.text
    named = await site.post("password/reset", token=token, password=f"it is {email} now")
    assert named.status_code == 422
    assert (await site.post("password/reset", token=token, password=ANOTHER)).status_code == 204
    for used in (token, older):
        assert (await site.post("password/reset", token=used, password=PASSWORD)).status_code == 401

    # In every tenant.
    await site.until_out(here)
    await site.until_out(there)
    assert (await site.log_in(email)).status_code == 401
    assert (await site.log_in(email, ANOTHER)).status_code == 200
    await site.mail(email, "was changed")

    # A link is good for an hour.
    await site.post("password/forgot", email=email)
    late = await site.token(email, "new password", nth=3)
    site.clock.offset += timedelta(hours=1, seconds=1)
    assert (await site.post("password/reset", token=late, password=PASSWORD)).status_code == 401


async def test_who_changes_the_password_stays_and_everybody_else_is_out(site: Site) -> None:
    _, _, admin = await site.open_tenant()
    email = (await site.http.get("/api/v1/auth/me", headers=admin)).json()["email"]
    here, there = await site.log_in(email), await site.log_in(email)
    mine = bearer(here.json()["access_token"])
    policy = (await site.http.get("/api/v1/auth/password/policy")).json()
    assert policy == {"min_length": 15, "max_length": 1024}

    for body, pointer in (
        ({"current": ANOTHER, "new": ANOTHER}, "#/current"),
        ({"current": PASSWORD, "new": "too short"}, "#/new"),
        ({"current": PASSWORD, "new": PASSWORD}, "#/new"),
    ):
        refused = await site.post("password", mine, **body)
        assert refused.status_code == 422, refused.text
        assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]
    changed = await site.post("password", mine, current=PASSWORD, new=ANOTHER)
    assert changed.status_code == 204, changed.text
    await site.until_out(there)
    assert (await site.http.get("/api/v1/auth/me", headers=mine)).status_code == 200
    refreshed = await site.post("refresh", refresh_token=here.json()["refresh_token"])
    assert refreshed.status_code == 200
    await site.mail(email, "was changed")

    renamed = await site.http.patch("/api/v1/auth/me", json={"name": "Zoë"}, headers=mine)
    assert renamed.status_code == 204, renamed.text
    assert (await site.http.get("/api/v1/auth/me", headers=mine)).json()["name"] == "Zoë"


async def test_who_reads_the_addresss_mail_gets_the_account_that_a_squatter_made(
    site: Site,
) -> None:
    _, _, mallory = await site.open_tenant()
    _, slug, bob = await site.open_tenant()
    victim = site.address()
    # She takes the address first, with the token that she was shown.
    hers = await site.post(
        "invitations/accept", token=await site.invite(mallory, victim), password=ANOTHER
    )
    assert hers.status_code == 200
    as_victim = bearer(hers.json()["access_token"])
    # And puts a lock of her own on it.
    await site.set_app_up(as_victim)
    await site.mail(victim, "what protects your account")
    assert (await site.log_in(victim, ANOTHER)).status_code == 202
    shown = await site.invite(bob, victim)
    # The account is in one tenant until somebody proves the address; she cannot.
    refused = await site.post("invitations/accept", token=shown, password=ANOTHER)
    assert refused.status_code == 403
    assert "confirm" in refused.json()["detail"]
    assert (
        await site.post("invitations/accept", token=shown, password=PASSWORD)
    ).status_code == 401
    assert (await site.post("email/confirmation", as_victim)).status_code == 202
    bait = await site.token(victim, "confirm your address")

    # The victim, who opens what she had sent while logged in as somebody else, confirms nothing.
    caught = await site.post("email/confirm", bob, token=bait)
    assert caught.status_code == 422

    mine = await site.post(
        "invitations/accept",
        token=await site.token(victim, f"invited to {slug}"),
        password=PASSWORD,
    )
    assert len((await site.me(mine))["memberships"]) == 2
    await site.until_out(hers)
    assert (await site.log_in(victim, ANOTHER)).status_code == 401
    assert (await site.log_in(victim)).status_code == 200, "and asks for no factor of hers"
    # So does a password that is forgotten show who reads there.
    another = site.address()
    again = await site.post(
        "invitations/accept", token=await site.invite(mallory, another), password=ANOTHER
    )
    await site.set_app_up(bearer(again.json()["access_token"]))
    assert (await site.post("password/forgot", email=another)).status_code == 202
    link = await site.token(another, "choose a new password")
    assert (await site.post("password/reset", token=link, password=PASSWORD)).status_code == 204
    assert (await site.log_in(another)).status_code == 200
    # From here on the password is asked for.
    _, third, carol = await site.open_tenant()
    await site.invite(carol, victim)
    mailed = await site.token(victim, f"invited to {third}")
    assert (
        await site.post("invitations/accept", token=mailed, password=ANOTHER)
    ).status_code == 401
    assert (
        await site.post("invitations/accept", token=mailed, password=PASSWORD)
    ).status_code == 200


async def test_a_user_confirms_the_address_and_may_then_join_others(site: Site) -> None:
    _, _, admin = await site.open_tenant()
    _, _, other = await site.open_tenant()
    email = site.address()
    joined = await site.post(
        "invitations/accept", token=await site.invite(admin, email), password=PASSWORD
    )
    mine = bearer(joined.json()["access_token"])
    assert (await site.post("email/confirmation", mine)).status_code == 202
    token = await site.token(email, "confirm your address")
    assert (await site.post("email/confirm", mine, token=token)).status_code == 204
    assert (await site.post("email/confirm", mine, token=token)).status_code == 422
    second = await site.post(
        "invitations/accept", token=await site.invite(other, email), password=PASSWORD
    )
    assert len((await site.me(second))["memberships"]) == 2


async def test_strangers_learn_nothing_by_how_much_work_an_answer_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id, slug, admin = await site.open_tenant()
    known = (await site.http.get("/api/v1/auth/me", headers=admin)).json()["email"]
    path = f"/api/v1/tenants/{tenant_id}/registration"
    policy = {"admits": "anyone", "role": "viewer"}
    assert (await site.http.put(path, json=policy, headers=admin)).status_code == 200
    done: Counter[str] = Counter()

    def count(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            done[name] += 1
            return method(*arguments, **more)

        return counted

    for name in ("hash", "verify"):
        monkeypatch.setattr(Passwords, name, count(name, getattr(Passwords, name)))
    for name in ("identity_of", "get", "is_familiar", "registration_of"):
        monkeypatch.setattr(Accounts, name, count(name, getattr(Accounts, name)))
    monkeypatch.setattr(AccountRequests, "add", count("add", AccountRequests.add))
    # What strangers asked for is looked at after the answer; here not at all.
    monkeypatch.setattr(AccountRequests, "claim", _nothing)

    async def work(path: str, **body: str) -> tuple[int, str, dict[str, int]]:
        done.clear()
        answer = await site.post(path, **body)
        return answer.status_code, answer.json()["detail"], dict(done)

    someone = {"tenant": slug, "email": known, "password": ANOTHER, "name": "Ann"}
    registered = [
        await work("register", **someone),
        await work("register", **someone | {"email": site.address()}),
        await work("register", **someone | {"tenant": "no-such-tenant"}),
    ]
    assert registered == [registered[0]] * 3
    assert registered[0][2] == {"hash": 1, "add": 1}
    forgot = [await work("password/forgot", email=email) for email in (known, site.address())]
    assert forgot == [forgot[0]] * 2
    assert forgot[0][2] == {"add": 1}
    logins = [
        await work("login", email=email, password=ANOTHER)
        for email in (known, site.address(), "no address")
    ]
    assert {login[:2] for login in logins} == {logins[0][:2]}
    assert {login[2]["verify"] for login in logins} == {1}
    assert logins[0] == logins[1]


async def _nothing(*_arguments: object) -> list[object]:
    return []


async def test_a_mail_that_is_not_taken_is_tried_again_and_one_that_never_is_is_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, admin = await site.open_tenant()
    email = site.address()
    answers = [Answer(Verdict.LATER, "the mail server answered 451")]

    async def balking(*arguments: Any) -> Answer:
        return answers.pop() if answers else await hand_in(*arguments)

    monkeypatch.setattr(postman, "hand_in", balking)
    await site.invite(admin, email)

    async def waiting() -> list[dict[str, Any]]:
        listed = await site.http.get("/api/v1/users/mails", headers=admin)
        return [mail for mail in listed.json()["items"] if mail["email"] == email]

    async def is_put_off() -> bool:
        return [mail["reason"] for mail in await waiting()] == ["the mail server answered 451"]

    await until(is_put_off, "the mail waits, with the reason")
    assert not site.mailbox.to(email)
    await site.query("UPDATE tenancy.mails SET due_at = now() WHERE email = $1", email)
    accepted = await site.post(
        "invitations/accept", token=await site.token(email), password=PASSWORD
    )
    assert accepted.status_code == 200, accepted.text

    nobody = site.address()
    answers.append(Answer(Verdict.REFUSED, "the mail server answered 550"))
    await site.invite(admin, nobody)

    async def is_given_up() -> bool:
        listed = (await site.http.get("/api/v1/users/mails", headers=admin)).json()["items"]
        return [(m["email"], m["status"]) for m in listed] == [(nobody, "given_up")]

    await until(is_given_up, "the mail is given up, and shown")
    assert not site.mailbox.to(nobody)
