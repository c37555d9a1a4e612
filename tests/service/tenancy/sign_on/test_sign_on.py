"""A tenant's people come in by its own provider: as members there, and as nobody anywhere else."""

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import httpx2
import pytest

from libs.common.clock import SystemClock
from services.tenancy.settings import Settings
from tests.database import DatabaseUrls
from tests.directory import BASE, SEARCHER, SEARCHER_PASSWORD, Directory
from tests.service.tenancy.conftest import Plant, World
from tests.service.tenancy.sign_on.oidc_provider import OidcProvider
from tests.service.tenancy.sign_on.saml_provider import (
    Said,
    SamlProvider,
    key_and_certificate,
    request_of,
)

DOOR = {
    "oidc_redirect_uri": "https://iiot.example/api/v1/auth/sso/return",
    "saml_consumer_url": "https://iiot.example/api/v1/auth/sso/saml",
    "saml_entity_id": "https://iiot.example/api/v1/auth/sso/saml/metadata",
}
BROWSER = "hash of what this browser keeps"


@pytest.fixture
def settings(database_urls: DatabaseUrls) -> Settings:
    """Tenancy's settings, with providers on loopback."""
    return Settings(
        database_url=database_urls.rw("tenancy"),
        engine_database_url=database_urls.engine("tenancy"),
        sealing_key="only for tests, and random",
        identity_networks=(IPv4Network("127.0.0.0/8"),),
    )


@dataclass(slots=True)
class Office:
    """A plant with an OpenID provider, and a browser."""

    world: World
    plant: Plant
    provider_id: str
    domain: str

    async def change(self, **fields: object) -> httpx2.Response:
        return await self.world.http.patch(
            f"/api/v1/identity-providers/{self.provider_id}",
            json=fields,
            headers=self.plant.headers,
        )

    async def begin(self, browser: str = BROWSER) -> str:
        answer = await self.world.http.post(
            "/internal/v1/sign-on/begin",
            json={
                "tenant_id": str(self.plant.id),
                "provider_id": self.provider_id,
                "door": DOOR,
                "browser": browser,
                "return_to": "/alerts",
            },
            headers=self.world.gateway,
        )
        assert answer.status_code == 200, answer.text
        address: str = answer.json()["address"]
        return address

    async def browse(self) -> dict[str, str]:
        """Begin, log in at the provider, and return what the browser brings back."""
        async with httpx2.AsyncClient(trust_env=False) as browser:
            answer = await browser.get(await self.begin())
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def bring(self, answer: dict[str, str], browser: str = BROWSER) -> httpx2.Response:
        return await self.world.http.post(
            "/internal/v1/sign-on/return/oidc",
            json={"answer": answer, "browser": browser},
            headers=self.world.gateway,
        )

    async def come_in(self) -> httpx2.Response:
        return await self.bring(await self.browse())


def oidc(provider: OidcProvider, domain: str, **more: object) -> dict[str, Any]:
    return {
        "name": "Plant login",
        "settings": {
            "kind": "oidc",
            "issuer": provider.issuer,
            "client_id": provider.client_id,
        },
        "secret": provider.client_secret,
        "domains": [domain],
        "roles_of_group": {"Shift-Leads": ["operator"]},
        "default_roles": ["viewer"],
        **more,
    }


@pytest.fixture
async def office(world: World, provider: OidcProvider) -> Office:
    plant = await world.plant()
    domain = f"{plant.slug}.example"
    provider.person["email"] = f"ann@{domain}"
    created = await world.http.post(
        "/api/v1/identity-providers", json=oidc(provider, domain), headers=plant.headers
    )
    assert created.status_code == 201, created.text
    assert "secret" not in created.json()
    return Office(world, plant, created.json()["id"], domain)


async def test_ann_becomes_a_member_with_the_roles_of_her_groups(
    office: Office, provider: OidcProvider
) -> None:
    world, plant = office.world, office.plant
    offered = await world.http.post(
        "/internal/v1/sign-on/offered", json={"tenant": plant.slug}, headers=world.gateway
    )
    assert [(each["name"], each["kind"]) for each in offered.json()] == [("Plant login", "oidc")]

    entered = await office.come_in()
    assert entered.status_code == 200, entered.text
    assert entered.json()["tenant_id"] == str(plant.id)
    assert entered.json()["return_to"] == "/alerts"
    ann = (await world.users(plant))[f"ann@{office.domain}"]
    assert (ann["name"], ann["roles"], ann["status"]) == (
        "Ann Weller",
        ["operator", "viewer"],
        "active",
    )
    said = [kind for kind, body in await world.events(plant.id) if body.get("user_id") == ann["id"]]
    assert said == ["user.created.v1", "membership.changed.v1"]

    # She changed her address and her groups there: she is the same, and may do less.
    provider.person |= {"email": f"ann.weller@{office.domain}", "groups": []}
    again = await office.come_in()
    assert again.json()["user_id"] == entered.json()["user_id"]
    assert (await world.users(plant))[f"ann@{office.domain}"]["roles"] == ["viewer"]
    # And whoever gets her old address is not her.
    provider.person |= {"sub": "another-ann", "email": f"new@{office.domain}"}
    assert (await office.come_in()).json()["user_id"] != entered.json()["user_id"]


async def test_a_provider_s_word_is_good_in_its_own_tenant_alone(
    office: Office, provider: OidcProvider
) -> None:
    world = office.world
    other = await world.plant()
    victim = f"victim@{office.domain}"
    await world.add_user(other, victim, roles=["admin"])
    provider.person["email"] = victim
    entered = (await office.come_in()).json()
    assert entered["tenant_id"] == str(office.plant.id)
    # The same person, who still enters the other tenant by their own password alone.
    assert (await world.users(other))[victim]["roles"] == ["admin"]
    assert (await world.users(office.plant))[victim]["roles"] == ["operator", "viewer"]
    login = await world.log_in(victim)
    assert {m["tenant_slug"] for m in login.json()["memberships"]} == {
        other.slug,
        office.plant.slug,
    }


async def test_it_vouches_for_its_own_domains_and_known_groups_alone(
    office: Office, provider: OidcProvider
) -> None:
    provider.person["email"] = "ceo@elsewhere.example"
    refused = await office.come_in()
    assert refused.status_code == 401
    assert office.domain in refused.json()["detail"]
    provider.person |= {"email": f"ann@{office.domain}", "groups": ["strangers"]}
    assert (await office.change(default_roles=[])).status_code == 200
    refused = await office.come_in()
    assert refused.status_code == 401
    assert "none of your groups" in refused.json()["detail"]


async def test_nobody_climbs_by_a_provider(office: Office, provider: OidcProvider) -> None:
    world, plant = office.world, office.plant
    # The tenant's only admin comes in by it: nobody would be left to administer the tenant.
    provider.person |= {"sub": "boss", "email": plant.admin_email}
    await office.change(domains=[office.domain, plant.admin_email.partition("@")[2]])
    refused = await office.come_in()
    assert refused.status_code == 401
    assert "last administrator" in refused.json()["detail"]
    # With another admin there, the boss comes in with the roles of the groups and no more.
    await world.add_user(plant, f"second@{office.domain}", roles=["admin"])
    assert (await office.come_in()).status_code == 200
    assert (await world.users(plant))[plant.admin_email]["roles"] == ["operator", "viewer"]
    # Whoever may set providers up gives no more by them than they have.
    little = world.principal_headers(
        plant.id, "identity_providers:write", "identity_providers:read"
    )
    refused = await world.http.post(
        "/api/v1/identity-providers",
        json=oidc(provider, office.domain, name="Back door", default_roles=["admin"]),
        headers=little,
    )
    assert refused.status_code == 403
    refused = await world.http.patch(
        f"/api/v1/identity-providers/{office.provider_id}",
        json={"default_roles": []},
        headers=little,
    )
    assert refused.status_code == 403


async def test_who_is_shut_out_stays_out(office: Office, provider: OidcProvider) -> None:
    world, plant = office.world, office.plant
    user_id = (await office.come_in()).json()["user_id"]
    disabled = await world.http.patch(
        f"/api/v1/users/{user_id}", json={"status": "disabled"}, headers=plant.headers
    )
    assert disabled.status_code == 200, disabled.text
    assert (await office.come_in()).status_code == 401
    assert (await office.change(is_enabled=False)).status_code == 200
    offered = await world.http.post(
        "/internal/v1/sign-on/offered", json={"tenant": plant.slug}, headers=world.gateway
    )
    assert offered.json() == []


async def test_an_invitation_is_accepted_by_coming_in(
    office: Office, provider: OidcProvider
) -> None:
    world, plant = office.world, office.plant
    invited = await world.invite(plant, f"ann@{office.domain}", roles=["developer"])
    entered = await office.come_in()
    assert entered.json()["user_id"] == invited["id"]
    ann = (await world.users(plant))[f"ann@{office.domain}"]
    assert (ann["roles"], ann["status"]) == (["operator", "viewer"], "active")
    assert (await world.try_to_accept(invited["invitation"]["token"])).status_code == 401


async def test_a_way_is_gone_once_by_one_browser_and_in_time(
    office: Office, provider: OidcProvider
) -> None:
    world = office.world
    stolen = await office.browse()
    # Somebody else's browser would be logged in as whoever sent the link.
    assert (await office.bring(stolen, browser="another browser's")).status_code == 401
    assert (await office.bring(stolen)).status_code == 401, "it is used up"
    once = await office.browse()
    assert (await office.bring(once)).status_code == 200
    assert (await office.bring(once)).status_code == 401
    tenant, _, token = once["state"].partition(".")
    other = await world.plant()
    for state in ("", "x", f"{other.id.hex}.{token}", f"{tenant}.", f"{uuid4().hex}.{token}"):
        assert (await office.bring(once | {"state": state})).status_code == 401
    late = await office.browse()
    clock: SystemClock = world.app.state.clock
    clock.offset = timedelta(minutes=11)
    assert (await office.bring(late)).status_code == 401
    clock.offset = timedelta(0)


async def test_its_secret_is_kept_sealed_and_shown_to_nobody(
    office: Office, provider: OidcProvider
) -> None:
    world, plant = office.world, office.plant
    [row] = await world.query(
        "SELECT secret, p::text AS row FROM tenancy.identity_providers AS p WHERE tenant_id = $1",
        plant.id,
    )
    assert provider.client_secret.encode() not in row["secret"]
    shown = await world.http.get("/api/v1/identity-providers", headers=plant.headers)
    assert provider.client_secret not in shown.text
    assert shown.json()[0]["settings"]["issuer"] == provider.issuer
    changed = await office.change(secret="another")
    assert changed.json()["version"] == 2
    assert (await office.come_in()).status_code == 401
    assert (await office.change(secret=provider.client_secret)).status_code == 200
    assert (await office.come_in()).status_code == 200
    removed = await world.http.delete(
        f"/api/v1/identity-providers/{office.provider_id}", headers=plant.headers
    )
    assert removed.status_code == 204
    assert f"ann@{office.domain}" in await world.users(plant), "who came in stays a member"


async def test_people_prove_their_password_to_the_directory(
    world: World, directory: Directory
) -> None:
    plant = await world.plant()
    created = await world.http.post(
        "/api/v1/identity-providers",
        json={
            "name": "Directory",
            "settings": {
                "kind": "ldap",
                "url": directory.tls_url,
                "base_dn": BASE,
                "bind_dn": SEARCHER,
                "user_filter": "(|(uid={login})(mail={login}))",
                "ca": directory.ca,
            },
            "secret": SEARCHER_PASSWORD,
            "domains": ["plant.example"],
            "roles_of_group": {"shift leads": ["operator"]},
        },
        headers=plant.headers,
    )
    assert created.status_code == 201, created.text

    async def log_in(login: str, password: str, tenant_id: UUID = plant.id) -> httpx2.Response:
        return await world.http.post(
            "/internal/v1/sign-on/directory",
            json={
                "tenant_id": str(tenant_id),
                "provider_id": created.json()["id"],
                "login": login,
                "password": password,
            },
            headers=world.gateway,
        )

    entered = await log_in("ann", "ann turns the wheel")
    assert entered.status_code == 200, entered.text
    assert (await world.users(plant))["ann@plant.example"]["roles"] == ["operator"]
    assert (await log_in("ann", "not hers")).status_code == 401
    assert (await log_in("bob", "bob turns the wheel")).status_code == 401, "of another domain"
    other = await world.plant()
    assert (await log_in("ann", "ann turns the wheel", other.id)).status_code == 404


async def test_a_response_that_a_saml_provider_signed_lets_ann_in(world: World) -> None:
    plant = await world.plant()
    idp = SamlProvider(*key_and_certificate())
    created = await world.http.post(
        "/api/v1/identity-providers",
        json={
            "name": "Federation",
            "settings": {
                "kind": "saml",
                "entity_id": "https://idp.plant.example",
                "sign_in_url": "https://idp.plant.example/sso",
                "certificates": [idp.certificate],
            },
            "domains": ["plant.example"],
            "default_roles": ["viewer"],
        },
        headers=plant.headers,
    )
    assert created.status_code == 201, created.text
    office = Office(world, plant, created.json()["id"], "plant.example")
    address = await office.begin()
    query = dict(parse_qsl(urlsplit(address).query))
    said = Said(
        request_id=request_of(address).get("ID") or "",
        now=world.app.state.clock.now(),
        audience=DOOR["saml_entity_id"],
        recipient=DOOR["saml_consumer_url"],
    )

    async def bring(response: str) -> httpx2.Response:
        return await world.http.post(
            "/internal/v1/sign-on/return/saml",
            json={"response": response, "state": query["RelayState"], "browser": BROWSER},
            headers=world.gateway,
        )

    response = idp.response(said)
    entered = await bring(response)
    assert entered.status_code == 200, entered.text
    assert (await world.users(plant))["ann@plant.example"]["roles"] == ["viewer"]
    assert (await bring(response)).status_code == 401, "an assertion is good for one use"


@pytest.mark.parametrize(
    ("settings_in", "pointer"),
    [
        ({"kind": "oidc", "issuer": "https://a.example", "client_id": "x", "scopes": ["email"]}, "#/settings/scopes"),
        ({"kind": "saml", "entity_id": "x", "sign_in_url": "https://a.example", "certificates": ["x"]}, "#/settings/certificates/0"),
        ({"kind": "ldap", "url": "http://directory", "base_dn": "dc=a"}, "#/settings/url"),
        ({"kind": "ldap", "url": "ldaps://directory", "base_dn": "dc=a", "user_filter": "(uid=ann)"}, "#/settings/user_filter"),
    ],
)  # fmt: skip
async def test_settings_by_which_nobody_or_anybody_would_come_in_are_refused(
    world: World, settings_in: dict[str, object], pointer: str
) -> None:
    plant = await world.plant()
    refused = await world.http.post(
        "/api/v1/identity-providers",
        json={"name": "Wrong", "settings": settings_in, "domains": ["plant.example"]},
        headers=plant.headers,
    )
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["pointer"] == pointer
