"""Logging in and out, and what becomes of sessions."""

import asyncio
import time
from uuid import uuid4

import pytest

from libs.common.events.base import Event, to_message
from libs.common.events.tenancy import MembershipChanged, TenantUpdated, UserDisabled
from tests.service.gateway.conftest import PASSWORD, World, bearer
from tests.waiting import until


async def test_whoever_logs_in_gets_both_tokens(world: World) -> None:
    ann = world.person("alerts:read")
    tokens = await world.log_in(ann)
    assert tokens["token_type"] == "bearer"
    assert tokens["expires_in"] == 900
    me = await world.http.get("/api/v1/auth/me", headers=bearer(tokens["access_token"]))
    assert me.status_code == 200
    assert me.json()["email"] == ann.email
    assert me.json()["tenant_id"] == str(ann.tenant_id)
    assert me.json()["permissions"] == ["alerts:read"]


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(world: World) -> None:
    ann = world.person()
    answers = [
        await world.http.post("/api/v1/auth/login", json={"email": email, "password": "wrong"})
        for email in (ann.email, "nobody@plant.example")
    ]
    bodies = [{**answer.json(), "request_id": None} for answer in answers]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert bodies[0] == bodies[1]
    assert answers[0].headers["content-type"] == "application/problem+json"
    assert answers[0].headers.keys() == answers[1].headers.keys()


async def test_one_may_log_in_to_a_tenant_by_name_if_one_is_a_member(world: World) -> None:
    ann = world.person()
    second = uuid4()
    ann.memberships[second] = ["devices:read"]
    tokens = await world.log_in(ann, tenant=f"plant-{second.hex}")
    me = await world.http.get("/api/v1/auth/me", headers=bearer(tokens["access_token"]))
    assert me.json()["tenant_id"] == str(second)
    refused = await world.http.post(
        "/api/v1/auth/login",
        json={"email": ann.email, "password": PASSWORD, "tenant": "someone-elses"},
    )
    assert refused.status_code == 401


async def test_a_member_of_two_tenants_can_switch_and_a_stranger_cannot(world: World) -> None:
    ann = world.person()
    second = uuid4()
    ann.memberships[second] = ["devices:read"]
    headers = await world.headers(ann)
    switched = await world.http.post(
        "/api/v1/auth/switch", json={"tenant_id": str(second)}, headers=headers
    )
    assert switched.status_code == 200
    me = await world.http.get("/api/v1/auth/me", headers=bearer(switched.json()["access_token"]))
    assert me.json()["tenant_id"] == str(second)
    refused = await world.http.post(
        "/api/v1/auth/switch", json={"tenant_id": str(uuid4())}, headers=headers
    )
    assert refused.status_code == 403


async def test_who_accepts_an_invitation_enters_at_once_whatever_is_remembered_of_them(
    world: World,
) -> None:
    ann, second = world.person(), uuid4()
    assert await world.me((await world.log_in(ann))["access_token"]) == 200
    world.tenancy.invitations["iioti_good"] = (ann, second)
    body = {"token": "iioti_good", "password": PASSWORD}
    # No event tells the gateway here: tenancy is stood in for.
    joined = await world.http.post("/api/v1/auth/invitations/accept", json=body)
    assert joined.status_code == 200, joined.text
    me = await world.http.get("/api/v1/auth/me", headers=bearer(joined.json()["access_token"]))
    assert (me.status_code, me.json()["tenant_id"]) == (200, str(second))
    assert (await world.refresh(joined.json()["refresh_token"])).status_code == 200
    again = await world.http.post("/api/v1/auth/invitations/accept", json=body)
    assert again.status_code == 401


async def test_unknown_fields_are_refused(world: World) -> None:
    answer = await world.http.post(
        "/api/v1/auth/login", json={"email": "a@b.c", "password": "x", "role": "admin"}
    )
    assert answer.status_code == 422


async def test_a_refresh_token_gives_the_next_pair(world: World) -> None:
    first = await world.log_in(world.person())
    second = await world.refresh(first["refresh_token"])
    assert second.status_code == 200
    assert second.json()["refresh_token"] != first["refresh_token"]
    assert await world.me(second.json()["access_token"]) == 200
    third = await world.refresh(second.json()["refresh_token"])
    assert third.status_code == 200


async def test_a_refresh_token_that_comes_back_later_ends_the_whole_family(world: World) -> None:
    first = await world.log_in(world.person())
    second = (await world.refresh(first["refresh_token"])).json()
    world.forward(seconds=11)
    assert (await world.refresh(first["refresh_token"])).status_code == 401
    assert (await world.refresh(second["refresh_token"])).status_code == 401
    assert await world.me(second["access_token"]) == 401


async def test_a_refresh_token_is_not_forgiven_once_its_successor_was_used(world: World) -> None:
    first = await world.log_in(world.person())
    second = (await world.refresh(first["refresh_token"])).json()
    third = (await world.refresh(second["refresh_token"])).json()
    assert (await world.refresh(first["refresh_token"])).status_code == 401
    assert (await world.refresh(third["refresh_token"])).status_code == 401


async def test_two_tabs_that_refresh_at_once_go_on_with_what_the_later_one_got(
    world: World,
) -> None:
    first = await world.log_in(world.person())
    both = await asyncio.gather(*[world.refresh(first["refresh_token"]) for _ in range(2)])
    assert [answer.status_code for answer in both] == [200, 200]
    for answer in both:
        assert await world.me(answer.json()["access_token"]) == 200
    # They share what is stored, and the later answer lies there.
    kept = both[1].json()["refresh_token"]
    for _ in range(3):
        world.forward(minutes=14)
        both = await asyncio.gather(*[world.refresh(kept) for _ in range(2)])
        assert [answer.status_code for answer in both] == [200, 200]
        kept = both[0].json()["refresh_token"]
    assert (await world.refresh(kept)).status_code == 200


async def test_a_token_that_was_stolen_and_used_within_the_grace_is_found_out(
    world: World,
) -> None:
    first = await world.log_in(world.person())
    thief = (await world.refresh(first["refresh_token"])).json()
    owner = await world.refresh(first["refresh_token"])
    assert owner.status_code == 200
    # One of the two is the first to go on. Whoever comes second ends it for both, in the grace or not.
    thief = (await world.refresh(thief["refresh_token"])).json()
    assert (await world.refresh(owner.json()["refresh_token"])).status_code == 401
    assert (await world.refresh(thief["refresh_token"])).status_code == 401
    assert await world.me(thief["access_token"]) == 401
    assert await world.me(owner.json()["access_token"]) == 401


async def test_both_branches_that_go_on_at_once_end_together(world: World) -> None:
    first = await world.log_in(world.person())
    branches = await asyncio.gather(*[world.refresh(first["refresh_token"]) for _ in range(2)])
    answers = await asyncio.gather(*[world.refresh(b.json()["refresh_token"]) for b in branches])
    assert sorted(answer.status_code for answer in answers) == [200, 401]
    for answer in (*branches, *answers):
        if answer.status_code == 200:
            assert await world.me(answer.json()["access_token"]) == 401
            assert (await world.refresh(answer.json()["refresh_token"])).status_code == 401


async def test_a_session_that_nobody_continued_expires(world: World) -> None:
    first = await world.log_in(world.person())
    world.forward(days=15)
    assert (await world.refresh(first["refresh_token"])).status_code == 401


async def test_an_access_token_expires_after_a_quarter_of_an_hour(world: World) -> None:
    tokens = await world.log_in(world.person())
    assert await world.me(tokens["access_token"]) == 200
    world.forward(minutes=15)
    assert await world.me(tokens["access_token"]) == 401


async def test_an_invented_refresh_token_is_refused(world: World) -> None:
    assert (await world.refresh("iiotr_" + "x" * 43)).status_code == 401


async def test_logging_out_kills_both_tokens_at_once(world: World) -> None:
    tokens = await world.log_in(world.person())
    headers = bearer(tokens["access_token"])
    assert (await world.http.get("/api/v1/devices", headers=headers)).status_code == 200
    assert (await world.http.post("/api/v1/auth/logout", headers=headers)).status_code == 204
    assert await world.me(tokens["access_token"]) == 401
    assert (await world.http.get("/api/v1/devices", headers=headers)).status_code == 401
    assert (await world.refresh(tokens["refresh_token"])).status_code == 401


async def test_another_session_of_the_same_user_survives_the_logout(world: World) -> None:
    ann = world.person()
    here, there = await world.log_in(ann), await world.log_in(ann)
    await world.http.post("/api/v1/auth/logout", headers=bearer(here["access_token"]))
    assert await world.me(there["access_token"]) == 200


async def _say(world: World, *events: Event) -> None:
    await world.bus.publish([to_message(event) for event in events])


async def test_a_user_who_is_disabled_is_out_within_seconds(world: World) -> None:
    ann = world.person()
    tokens = await world.log_in(ann)
    assert await world.me(tokens["access_token"]) == 200
    tenant_id = ann.tenant_id
    ann.memberships.clear()
    started = time.monotonic()
    await _say(world, UserDisabled(tenant_id=tenant_id, at=world.clock.now(), user_id=ann.user_id))

    async def is_out() -> bool:
        return await world.me(tokens["access_token"]) == 401

    await until(is_out, "the access token is void", within_s=5)
    assert time.monotonic() - started < 5

    async def session_is_over() -> bool:
        rows = await world.query(
            "SELECT revoked_because FROM gateway.sessions WHERE tenant_id = $1", tenant_id
        )
        return [row["revoked_because"] for row in rows] == ["left"]

    await until(session_is_over, "the session is ended for good")
    assert (await world.refresh(tokens["refresh_token"])).status_code == 401


async def test_a_change_of_roles_takes_effect_without_logging_in_again(world: World) -> None:
    ann = world.person("devices:read")
    headers = await world.headers(ann)
    await world.http.get("/api/v1/devices", headers=headers)
    assert (await world.principal()).permissions == {"devices:read"}
    ann.memberships[ann.tenant_id] = ["devices:read", "devices:write"]
    await _say(
        world,
        MembershipChanged(
            tenant_id=ann.tenant_id, at=world.clock.now(), user_id=ann.user_id, roles=["developer"]
        ),
    )

    async def has_new_permissions() -> bool:
        await world.http.get("/api/v1/devices", headers=headers)
        return (await world.principal()).permissions == {"devices:read", "devices:write"}

    await until(has_new_permissions, "the new role counts", within_s=5)


async def test_a_suspended_tenant_lets_nobody_in_and_its_neighbour_does(world: World) -> None:
    ann, ben = world.person(), world.person()
    hers, his = await world.log_in(ann), await world.log_in(ben)
    await _say(
        world,
        TenantUpdated(
            tenant_id=ann.tenant_id,
            at=world.clock.now(),
            slug="plant",
            name="Plant",
            status="suspended",
        ),
    )

    async def is_out() -> bool:
        return await world.me(hers["access_token"]) == 401

    await until(is_out, "the tenant's tokens are void", within_s=5)
    assert await world.me(his["access_token"]) == 200


async def test_while_tenancy_is_away_those_at_work_go_on_and_nobody_new_comes(
    world: World,
) -> None:
    ann, ben = world.person(), world.person()
    headers = await world.headers(ann)
    assert (await world.http.get("/api/v1/devices", headers=headers)).status_code == 200
    world.tenancy.is_away = True
    assert (await world.http.get("/api/v1/devices", headers=headers)).status_code == 200
    refused = await world.http.post(
        "/api/v1/auth/login", json={"email": ben.email, "password": PASSWORD}
    )
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("secret", ["access_token", "refresh_token"])
async def test_no_token_is_kept_in_the_database(world: World, secret: str) -> None:
    tokens = await world.log_in(world.person())
    rows = await world.query("SELECT encode(token_hash, 'escape') AS h FROM gateway.refresh_tokens")
    assert all(tokens[secret] not in row["h"] for row in rows)
