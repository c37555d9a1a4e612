"""A browser goes to its tenant's identity provider and comes back with a session, good in that tenant alone."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

import httpx2
import pyotp
import pytest

from libs.common.clock import SystemClock
from tests.directory import BASE, SEARCHER, SEARCHER_PASSWORD, Directory
from tests.service.gateway.conftest import bearer
from tests.service.gateway.test_with_tenancy import (
    PASSWORD,
    Site,
    site,  # noqa: F401 - a fixture
)
from tests.service.tenancy.sign_on.conftest import directory, serving  # noqa: F401 - a fixture
from tests.service.tenancy.sign_on.oidc_provider import OidcProvider
from tests.service.tenancy.sign_on.saml_provider import (
    Said,
    SamlProvider,
    key_and_certificate,
    request_of,
)

OURS = "http://localhost"
"""Where browsers take Secure cookies without https."""


@dataclass(slots=True)
class Plant:
    """A tenant whose people come in by a provider."""

    site: Site
    admin: dict[str, str]
    slug: str
    domain: str

    async def add_provider(self, settings: dict[str, Any], **more: object) -> str:
        added = await self.site.http.post(
            "/api/v1/identity-providers",
            json={
                "name": f"Login {uuid4().hex[:6]}",
                "settings": settings,
                "domains": [self.domain],
                "roles_of_group": {"shift-leads": ["operator"]},
                **more,
            },
            headers=self.admin,
        )
        assert added.status_code == 201, added.text
        provider_id: str = added.json()["id"]
        return provider_id

    def way(self, provider_id: str, what: str) -> str:
        return f"{OURS}/api/v1/auth/sso/tenants/{self.slug}/{provider_id}/{what}"


@pytest.fixture
async def plant(site: Site) -> Plant:  # noqa: F811 - the fixture's value
    admin = await site.headers(site.admin)
    me = (await site.http.get("/api/v1/auth/me", headers=admin)).json()
    domain = site.admin.partition("@")[2]
    return Plant(site, admin, me["memberships"][0]["tenant_slug"], domain)


@pytest.fixture
async def provider(plant: Plant) -> AsyncIterator[OidcProvider]:
    async with serving(OidcProvider()) as provider:
        provider.person["email"] = f"ann@{plant.domain}"
        yield provider


def oidc(provider: OidcProvider) -> dict[str, Any]:
    return {"kind": "oidc", "issuer": provider.issuer, "client_id": provider.client_id}


def way_cookie(answer: httpx2.Response) -> dict[str, str]:
    """What the browser keeps on its way."""
    [cookie] = answer.headers.get_list("set-cookie")
    assert cookie.startswith("__Host-iiot_sso=")
    assert {"httponly", "secure", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    return {"__Host-iiot_sso": cookie.partition("=")[2].partition(";")[0]}


def refresh_cookie(answer: httpx2.Response) -> str:
    for cookie in answer.headers.get_list("set-cookie"):
        if cookie.startswith("__Host-iiot_refresh="):
            assert "samesite=strict" in cookie.lower()
            value: str = cookie.partition("=")[2].partition(";")[0]
            return value
    raise AssertionError(f"no refresh token: {answer.headers}")


async def go(plant: Plant, provider_id: str, return_to: str = "/alerts") -> httpx2.Response:
    return await plant.site.http.get(
        plant.way(provider_id, "start"), params={"return_to": return_to}
    )


async def browse(address: str) -> str:
    """Log in at the provider; return where it sends the browser."""
    async with httpx2.AsyncClient(trust_env=False) as browser:
        answer = await browser.get(address)
    back: str = answer.headers["location"]
    return back


async def come_back(plant: Plant, back: str, cookies: dict[str, str]) -> httpx2.Response:
    return await plant.site.http.get(
        back, headers={"cookie": "; ".join(f"{k}={v}" for k, v in cookies.items())}
    )


async def test_ann_comes_back_with_a_session_of_her_tenant_alone(
    plant: Plant, provider: OidcProvider
) -> None:
    site = plant.site  # noqa: F811
    provider_id = await plant.add_provider(oidc(provider), secret=provider.client_secret)
    listed = await site.http.get(f"/api/v1/auth/sso/tenants/{plant.slug}")
    assert [(each["id"], each["kind"]) for each in listed.json()] == [(provider_id, "oidc")]
    assert (await site.http.get("/api/v1/auth/sso/tenants/nobodys")).json() == []

    gone = await go(plant, provider_id)
    assert gone.status_code == 303, gone.text
    back = await browse(gone.headers["location"])
    assert back.startswith(f"{OURS}/api/v1/auth/sso/return?")
    returned = await come_back(plant, back, way_cookie(gone))
    assert (returned.status_code, returned.headers["location"]) == (303, "/alerts")

    tokens = await site.http.post(
        f"{OURS}/api/v1/auth/refresh",
        headers={"cookie": f"__Host-iiot_refresh={refresh_cookie(returned)}", "origin": OURS},
    )
    assert tokens.status_code == 200, tokens.text
    ann = bearer(tokens.json()["access_token"])
    me = (await site.http.get("/api/v1/auth/me", headers=ann)).json()
    assert (me["email"], me["platform_admin"]) == (f"ann@{plant.domain}", False)
    assert [m["roles"] for m in me["memberships"]] == [["operator"]]
    sessions = (await site.http.get("/api/v1/auth/sessions", headers=ann)).json()["items"]
    assert [each["methods"] for each in sessions] == [["sso"]]

    # A second time the way is closed, and so it is for another browser.
    again = await come_back(plant, back, way_cookie(gone))
    assert again.headers["location"].startswith("/login#sso_error=")
    other = await go(plant, provider_id)
    stolen = await come_back(
        plant, await browse(other.headers["location"]), {"__Host-iiot_sso": "another"}
    )
    assert "not begun in this browser" in unquote(stolen.headers["location"])


async def test_a_provider_opens_no_other_tenant_of_the_same_person(
    plant: Plant, provider: OidcProvider
) -> None:
    site = plant.site  # noqa: F811
    other_admin = await site.headers(await site.new_admin())
    ben = await site.add(other_admin, "admin")
    other_tenant = (await site.http.get("/api/v1/auth/me", headers=other_admin)).json()["tenant_id"]
    provider.person["email"] = ben["email"]
    provider_id = await plant.add_provider(
        oidc(provider), secret=provider.client_secret, domains=["plant.example"]
    )
    gone = await go(plant, provider_id)
    returned = await come_back(plant, await browse(gone.headers["location"]), way_cookie(gone))
    tokens = await site.http.post(
        f"{OURS}/api/v1/auth/refresh", json={"refresh_token": refresh_cookie(returned)}
    )
    by_provider = bearer(tokens.json()["access_token"])
    me = (await site.http.get("/api/v1/auth/me", headers=by_provider)).json()
    assert [m["tenant_slug"] for m in me["memberships"]] == [plant.slug]
    switched = await site.http.post(
        "/api/v1/auth/switch", json={"tenant_id": other_tenant}, headers=by_provider
    )
    assert switched.status_code == 403
    assert "that tenant alone" in switched.json()["detail"]
    # What protects the account takes the account's own password, whichever way is tried.
    here = me["tenant_id"]
    renewed = await site.http.post(
        "/api/v1/auth/switch", json={"tenant_id": here}, headers=by_provider
    )
    assert renewed.status_code == 403, "entering anew is no proof of anything"
    for method, path in (("POST", "/totp"), ("GET", ""), ("PATCH", f"/{uuid4()}")):
        refused = await site.http.request(
            method,
            f"/api/v1/auth/factors{path}",
            json={"name": "Mine"} if method == "PATCH" else None,
            headers=by_provider,
        )
        assert refused.status_code == 403, refused.text
        assert refused.json()["type"] == "urn:iiot:problem:proof-needed"
    # With a second factor the password alone is not enough either, but where that was shown.
    own_way = bearer((await site.log_in(ben["email"])).json()["access_token"])
    app = await site.http.post("/api/v1/auth/factors/totp", headers=own_way)
    code = pyotp.TOTP(app.json()["secret"]).now()
    confirmed = await site.http.post(
        "/api/v1/auth/factors/totp/confirm", json={"code": code}, headers=own_way
    )
    assert confirmed.status_code == 200, confirmed.text
    proof = {"password": PASSWORD}
    proved = await site.http.post("/api/v1/auth/proof", json=proof, headers=by_provider)
    assert proved.status_code == 403, proved.text
    assert "second factor" in proved.json()["detail"]
    [factor] = (await site.http.get("/api/v1/auth/factors", headers=own_way)).json()["items"]
    path = f"/api/v1/auth/factors/{factor['id']}"
    assert (await site.http.delete(path, headers=by_provider)).status_code == 403
    assert (await site.http.delete(path, headers=own_way)).status_code == 204
    # By the password both are open, as ever.
    own = await site.me(await site.log_in(ben["email"]))
    assert len(own["memberships"]) == 2


async def test_the_address_to_return_to_is_the_console_s(
    plant: Plant, provider: OidcProvider
) -> None:
    provider_id = await plant.add_provider(oidc(provider), secret=provider.client_secret)
    for elsewhere in ("https://evil.example", "//evil.example", "/\\evil.example", "alerts"):
        refused = await go(plant, provider_id, elsewhere)
        assert refused.status_code == 422, elsewhere
    # Nor does a Host header that anybody may write become the provider's way back.
    forged = await plant.site.http.get(
        plant.way(provider_id, "start").replace(OURS, "http://evil.example")
    )
    assert forged.status_code in {409, 421, 422}, forged.text
    gone = await plant.site.http.get(plant.way(str(uuid4()), "start"))
    assert gone.status_code == 404


async def test_a_saml_provider_has_the_browser_post_its_response(plant: Plant) -> None:
    site = plant.site  # noqa: F811
    idp = SamlProvider(*key_and_certificate())
    provider_id = await plant.add_provider(
        {
            "kind": "saml",
            "entity_id": "https://idp.plant.example",
            "sign_in_url": "https://idp.plant.example/sso",
            "certificates": [idp.certificate],
        },
        default_roles=["viewer"],
    )
    described = await site.http.get(f"{OURS}/api/v1/auth/sso/saml/metadata")
    assert f"{OURS}/api/v1/auth/sso/saml" in described.text
    gone = await go(plant, provider_id)
    address = gone.headers["location"]
    request = request_of(address)
    said = Said(
        request_id=request.get("ID") or "",
        now=SystemClock().now(),
        audience=f"{OURS}/api/v1/auth/sso/saml/metadata",
        recipient=request.get("AssertionConsumerServiceURL") or "",
    )
    said.attributes["email"] = [f"ann@{plant.domain}"]
    cookies = way_cookie(gone)
    returned = await site.http.post(
        f"{OURS}/api/v1/auth/sso/saml",
        data={
            "SAMLResponse": idp.response(said),
            "RelayState": dict(parse_qsl(urlsplit(address).query))["RelayState"],
        },
        headers={
            "cookie": f"__Host-iiot_sso={cookies['__Host-iiot_sso']}",
            "origin": "https://idp.plant.example",
        },
    )
    assert (returned.status_code, returned.headers["location"]) == (303, "/alerts")
    assert refresh_cookie(returned)


async def test_a_directory_takes_a_name_and_a_password_and_guesses_are_counted(
    plant: Plant,
    directory: Directory,  # noqa: F811 - the fixture's value
) -> None:
    site = plant.site  # noqa: F811
    provider_id = await plant.add_provider(
        {
            "kind": "ldap",
            "url": directory.tls_url,
            "base_dn": BASE,
            "bind_dn": SEARCHER,
            "user_filter": "(uid={login})",
            "ca": directory.ca,
        },
        secret=SEARCHER_PASSWORD,
        domains=["plant.example"],
        roles_of_group={"shift leads": ["operator"]},
    )

    async def log_in(password: str) -> httpx2.Response:
        return await site.http.post(
            plant.way(provider_id, "login"), json={"login": "ann", "password": password}
        )

    assert (await site.me(await log_in("ann turns the wheel")))["email"] == "ann@plant.example"
    answers = [(await log_in(f"{PASSWORD} {n}")).status_code for n in range(6)]
    assert answers[0] == 401
    assert answers[-1] == 429
