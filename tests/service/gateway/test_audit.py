"""Who comes in, who goes, and who tried: through the gateway and into the trail."""

from typing import Any
from uuid import uuid4

import pytest

from tests.service.gateway.conftest import bearer
from tests.service.gateway.test_with_tenancy import (
    PASSWORD,
    Site,
    site,  # noqa: F401 - a fixture
)
from tests.waiting import until


async def entries(site: Site, headers: dict[str, str], **filters: Any) -> list[dict[str, Any]]:  # noqa: F811 - the fixture's value
    answer = await site.http.get("/api/v1/audit/logs", params=filters, headers=headers)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items[::-1]


async def test_what_a_session_goes_through_stands_in_the_trail(site: Site) -> None:  # noqa: F811 - the fixture's value
    site.http.headers["user-agent"] = "a browser"
    admin = await site.headers(site.admin)
    user = await site.add(admin, "operator")

    # A wrong password, a right one, a logout.
    assert (await site.log_in(user["email"], "wrong")).status_code == 401
    tokens = (await site.log_in(user["email"])).json()
    await site.http.post("/api/v1/auth/logout", headers=bearer(tokens["access_token"]))
    # A refresh token that comes again when its successor was used.
    first = (await site.log_in(user["email"])).json()["refresh_token"]
    token = first
    for _ in range(2):
        answer = await site.http.post("/api/v1/auth/refresh", json={"refresh_token": token})
        token = answer.json()["refresh_token"]
    thief = await site.http.post("/api/v1/auth/refresh", json={"refresh_token": first})
    assert thief.status_code == 401

    # Whose login it was that failed is looked up a moment later, while there is such a user.
    async def failure_is_recorded() -> bool:
        return bool(await entries(site, admin, action="login.failed"))

    await until(failure_is_recorded, "the failed login is recorded")
    # A session that ends because its user is removed.
    await site.log_in(user["email"])
    await site.http.delete(f"/api/v1/users/{user['id']}", headers=admin)

    expected = {
        "invitation.accepted": "ok",
        "login.failed": "failed",
        "login.succeeded": "ok",
        "logout": "ok",
        "refresh_token.reused": "denied",
        "session.revoked": "ok",
        "user.deleted": "ok",
    }
    found: dict[str, dict[str, Any]] = {}

    async def all_there() -> bool:
        for entry in await entries(site, admin):
            if user["id"] in (entry["resource_id"], (entry["detail"] or {}).get("user_id")):
                found[entry["action"]] = entry
        return found.keys() >= expected.keys()

    await until(all_there, "all that happened to the user is recorded")
    assert {action: found[action]["outcome"] for action in expected} == expected
    for action in ("login.succeeded", "logout", "login.failed", "refresh_token.reused"):
        actor = found[action]["actor"]
        assert actor["address"], action
        assert actor["user_agent"] == "a browser", action
        known = action in {"login.succeeded", "logout"}
        assert (actor["kind"], actor["id"]) == (("user", user["id"]) if known else ("nobody", None))
        assert found[action]["request_id"], action
    assert found["session.revoked"]["detail"]["reason"] == "left"
    who = found["user.deleted"]["actor"]
    assert (who["kind"], who["user_agent"]) == ("user", "a browser")
    assert who["address"]
    text = str(await entries(site, admin))
    for secret in (PASSWORD, first, token, tokens["access_token"]):
        assert secret not in text


async def test_who_goes_into_another_tenant_is_recorded_there(site: Site) -> None:  # noqa: F811 - the fixture's value
    here, there = await site.headers(site.admin), await site.headers(await site.new_admin())
    both = await site.add(here, "viewer")
    again = await site.invite(there, "viewer", both["email"])
    assert (await site.accept(again["invitation"]["token"])).status_code == 200
    tenant = (await site.http.get("/api/v1/auth/me", headers=there)).json()["tenant_id"]
    headers = await site.headers(both["email"])
    answer = await site.http.post(
        "/api/v1/auth/switch", json={"tenant_id": tenant}, headers=headers
    )
    assert answer.status_code == 200, answer.text

    async def recorded() -> bool:
        return bool(await entries(site, there, action="tenant.entered", actor_id=both["id"]))

    await until(recorded, "the switch is recorded in the tenant that was entered")
    assert not await entries(site, here, action="tenant.entered")


@pytest.mark.parametrize("header", ["x-iiot-client-address", "x-iiot-principal"])
async def test_a_client_does_not_say_itself_where_it_calls_from(site: Site, header: str) -> None:  # noqa: F811 - the fixture's value
    admin = await site.headers(site.admin)
    name = uuid4().hex
    role = {"name": name, "description": "d", "permissions": ["devices:read"]}
    answer = await site.http.post(
        "/api/v1/roles", json=role, headers={**admin, header: "203.0.113.1"}
    )
    assert answer.status_code == 201, answer.text

    async def recorded() -> bool:
        return bool(await entries(site, admin, action="role.created", resource_id=name))

    await until(recorded, "the role is recorded")
    [entry] = await entries(site, admin, action="role.created", resource_id=name)
    assert entry["actor"]["address"] != "203.0.113.1"
    assert entry["after"]["permissions"] == ["devices:read"]
