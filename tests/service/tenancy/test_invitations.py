"""Nobody joins a tenant without its invitation, and nobody's account is taken over by one."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from libs.common.clock import SystemClock
from services.tenancy.usecases import invitations
from tests.service.tenancy.conftest import PASSWORD, Plant, World

HERS = "a password of Mallory's own"
THEIRS = "one that nobody else has chosen"


@pytest.fixture
def clock(world: World) -> Iterator[SystemClock]:
    """Tenancy's clock."""
    clock: SystemClock = world.app.state.clock
    yield clock
    clock.offset = timedelta(0)


def told(answer: httpx2.Response) -> str:
    """A refusal without what differs between any two."""
    return str(answer.json() | {"request_id": None})


async def open_to(world: World, email: str, password: str) -> list[str]:
    """The tenants that the password opens; none if it opens nothing."""
    answer = await world.log_in(email, password)
    if answer.status_code == 401:
        return []
    return [membership["tenant_slug"] for membership in answer.json()["memberships"]]


async def invite_again(world: World, plant: Plant, user_id: str) -> httpx2.Response:
    return await world.http.post(f"/api/v1/users/{user_id}/invitation", headers=plant.headers)


async def test_whoever_registers_an_address_first_gains_nothing_in_another_tenant(
    world: World,
) -> None:
    a, b = await world.plant(), await world.plant()
    victim = f"victim@{b.slug}.example"
    # Mallory administers A, and holds the invitation that she made.
    await world.add_user(a, victim, HERS, roles=["admin"])
    invited = await world.invite(b, victim, roles=["admin"])
    assert await open_to(world, victim, HERS) == [a.slug]
    path = f"/internal/v1/users/{invited['id']}"
    account = (await world.http.get(path, headers=world.gateway)).json()
    assert [m["tenant_slug"] for m in account["memberships"]] == [a.slug]
    # The token alone takes no account over either: Bob, who made it, cannot enter A.
    token = invited["invitation"]["token"]
    assert (await world.try_to_accept(token, THEIRS)).status_code == 401
    assert await open_to(world, victim, THEIRS) == []
    assert await open_to(world, victim, HERS) == [a.slug]


async def test_who_is_invited_twice_and_accepts_one_is_proof_against_the_other(
    world: World,
) -> None:
    a, b = await world.plant(), await world.plant()
    victim = f"victim@{b.slug}.example"
    hers = (await world.invite(a, victim, roles=["admin"]))["invitation"]["token"]
    theirs = (await world.invite(b, victim, roles=["admin"]))["invitation"]["token"]
    await world.accept(theirs, THEIRS)
    assert await open_to(world, victim, THEIRS) == [b.slug]
    assert (await world.try_to_accept(hers, HERS)).status_code == 401
    assert await open_to(world, victim, HERS) == []
    assert await open_to(world, victim, THEIRS) == [b.slug]


async def test_who_has_an_account_joins_with_its_password(world: World) -> None:
    a, b = await world.plant(), await world.plant()
    email = f"ann@{a.slug}.example"
    await world.add_user(a, email, THEIRS)
    token = (await world.invite(b, email))["invitation"]["token"]
    assert (await world.try_to_accept(token)).status_code == 401
    assert (await world.try_to_accept(token, THEIRS)).status_code == 200
    assert await open_to(world, email, THEIRS) == [a.slug, b.slug]
    assert await open_to(world, email, PASSWORD) == []


async def test_an_invited_user_is_nobody_until_they_accept(world: World) -> None:
    plant = await world.plant()
    email = f"ann@{plant.slug}.example"
    ann = await world.invite(plant, email, roles=["viewer"])
    assert ann["status"] == "invited"
    assert (await world.log_in(email)).status_code == 401
    path = f"/internal/v1/users/{ann['id']}"
    assert (await world.http.get(path, headers=world.gateway)).status_code == 404
    assert ann["id"] not in str(await world.events(plant.id))

    answer = await world.try_to_accept(ann["invitation"]["token"])
    assert answer.json() == {"tenant_id": str(plant.id), "user_id": ann["id"], "email": email}
    assert (await world.users(plant))[email]["status"] == "active"
    assert await open_to(world, email, PASSWORD) == [plant.slug]
    said = [(t, b) for t, b in await world.events(plant.id) if b.get("user_id") == ann["id"]]
    assert [type_ for type_, _ in said] == ["user.created.v1", "membership.changed.v1"]
    assert (said[0][1]["name"], said[1][1]["roles"]) == ("Ann", ["viewer"])


async def test_every_refusal_reads_alike(world: World, clock: SystemClock) -> None:
    a, b = await world.plant(), await world.plant()
    known = f"ann@{a.slug}.example"
    await world.add_user(a, known, THEIRS)
    wrong_password = (await world.invite(b, known))["invitation"]["token"]
    used = (await world.invite(b, f"used@{b.slug}.example"))["invitation"]["token"]
    await world.accept(used)
    replaced = await world.invite(b, f"replaced@{b.slug}.example")
    await invite_again(world, b, replaced["id"])
    withdrawn = await world.invite(b, f"withdrawn@{b.slug}.example")
    await world.http.delete(f"/api/v1/users/{withdrawn['id']}", headers=b.headers)
    refusals = [
        await world.try_to_accept(token)
        for token in (
            wrong_password,
            used,
            replaced["invitation"]["token"],
            withdrawn["invitation"]["token"],
            "iioti_" + "x" * 43,
            "",
        )
    ]
    late = (await world.invite(b, f"late@{b.slug}.example"))["invitation"]["token"]
    clock.offset = timedelta(days=7)
    refusals.append(await world.try_to_accept(late))
    assert [answer.status_code for answer in refusals] == [401] * 7
    assert len({told(answer) for answer in refusals}) == 1
    assert len({frozenset(answer.headers) for answer in refusals}) == 1


async def test_an_invitation_is_good_for_a_week_and_a_new_one_for_another(
    world: World, clock: SystemClock
) -> None:
    plant = await world.plant()
    email = f"ann@{plant.slug}.example"
    ann = await world.invite(plant, email)
    clock.offset = timedelta(days=7)
    assert (await world.try_to_accept(ann["invitation"]["token"])).status_code == 401
    again = await invite_again(world, plant, ann["id"])
    assert again.status_code == 201
    clock.offset = timedelta(days=13, hours=23)
    await world.accept(again.json()["invitation"]["token"])
    assert (await invite_again(world, plant, ann["id"])).status_code == 409


async def test_only_the_newest_invitation_is_good(world: World) -> None:
    plant = await world.plant()
    ann = await world.invite(plant, f"ann@{plant.slug}.example")
    again = (await invite_again(world, plant, ann["id"])).json()
    assert again.keys() == ann.keys()
    assert (await world.try_to_accept(ann["invitation"]["token"])).status_code == 401
    await world.accept(again["invitation"]["token"])


async def test_of_two_who_accept_one_invitation_at_once_one_joins(world: World) -> None:
    plant = await world.plant()
    email = f"ann@{plant.slug}.example"
    for round_ in range(4):
        ann = await world.invite(plant, email)
        token, passwords = ann["invitation"]["token"], [HERS, THEIRS]
        answers = await asyncio.gather(*[world.try_to_accept(token, p) for p in passwords])
        codes = [answer.status_code for answer in answers]
        assert sorted(codes) == [200, 401], round_
        assert await open_to(world, email, passwords[codes.index(200)]) == [plant.slug]
        assert await open_to(world, email, passwords[codes.index(401)]) == []
        await world.http.delete(f"/api/v1/users/{ann['id']}", headers=plant.headers)


async def test_two_invitations_accepted_at_once_never_give_one_account_two_passwords(
    world: World,
) -> None:
    a, b = await world.plant(), await world.plant()
    for round_ in range(4):
        email = f"ann{round_}@{a.slug}.example"
        tokens = [(await world.invite(plant, email))["invitation"]["token"] for plant in (a, b)]
        passwords = [HERS, THEIRS]
        answers = await asyncio.gather(*map(world.try_to_accept, tokens, passwords))
        codes = [answer.status_code for answer in answers]
        assert sorted(codes) == [200, 401], round_
        first = codes.index(200)
        assert await open_to(world, email, passwords[first]) == [(a, b)[first].slug]
        assert await open_to(world, email, passwords[1 - first]) == []
        # The other one is not used up: with the right password it is good.
        await world.accept(tokens[1 - first], passwords[first])
        assert await open_to(world, email, passwords[first]) == [a.slug, b.slug]


async def test_who_is_suspended_or_invited_to_a_suspended_tenant_does_not_join(
    world: World,
) -> None:
    a, b = await world.plant(), await world.plant()
    email = f"ann@{a.slug}.example"
    ann = await world.add_user(a, email)
    token = (await world.invite(b, email))["invitation"]["token"]
    path = f"/api/v1/users/{ann['id']}"
    assert (await world.http.post(f"{path}/suspend", headers=world.platform)).status_code == 204
    assert ann["id"] not in str(await world.events(b.id)), "B has not heard of them"
    assert (await world.try_to_accept(token)).status_code == 401
    await world.http.post(f"{path}/reinstate", headers=world.platform)

    async def b_is(status: str) -> None:
        path, body = f"/api/v1/tenants/{b.id}", {"status": status}
        changed = await world.http.patch(path, json=body, headers=world.platform)
        assert changed.status_code == 200

    await b_is("suspended")
    assert (await world.try_to_accept(token)).status_code == 401
    await b_is("active")
    await world.accept(token)


@pytest.mark.parametrize("change", [{"roles": ["admin"]}, {"status": "active"}])
async def test_who_has_not_accepted_is_given_nothing_more(
    world: World, change: dict[str, Any]
) -> None:
    plant = await world.plant()
    ann = await world.invite(plant, f"ann@{plant.slug}.example")
    path = f"/api/v1/users/{ann['id']}"
    refused = await world.http.patch(path, json=change, headers=plant.headers)
    assert refused.status_code == 409
    renamed = await world.http.patch(path, json={"name": "Annie"}, headers=plant.headers)
    assert (renamed.status_code, renamed.json()["status"]) == (200, "invited")
    assert ann["id"] not in str(await world.events(plant.id))


async def test_nobody_is_made_an_invited_user_again(world: World) -> None:
    plant = await world.plant()
    ann = await world.add_user(plant, f"ann@{plant.slug}.example")
    path = f"/api/v1/users/{ann['id']}"
    answer = await world.http.patch(path, json={"status": "invited"}, headers=plant.headers)
    assert answer.status_code == 422
    assert (await invite_again(world, plant, ann["id"])).status_code == 409


async def test_an_invitation_is_made_again_by_those_alone_who_could_make_it(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    boss = await world.invite(plant, f"second@{plant.slug}.example", roles=["admin"])
    path = f"/api/v1/users/{boss['id']}/invitation"
    clerk = world.principal_headers(plant.id, "users:read", "users:write", "*:read")
    assert (await world.http.post(path, headers=clerk)).status_code == 403
    viewer = world.principal_headers(plant.id, "users:read")
    assert (await world.http.post(path, headers=viewer)).status_code == 403
    foreign = await world.http.post(path, headers=other.headers)
    unknown = await invite_again(world, other, str(uuid4()))
    assert foreign.status_code == unknown.status_code == 404
    await world.accept(boss["invitation"]["token"])


async def test_who_is_only_invited_does_not_count_as_an_administrator(world: World) -> None:
    plant = await world.plant()
    boss = (await world.users(plant))[plant.admin_email]
    await world.invite(plant, f"second@{plant.slug}.example", roles=["admin"])
    path = f"/api/v1/users/{boss['id']}"
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 409


async def test_a_withdrawn_invitation_leaves_nothing_of_a_new_user(world: World) -> None:
    plant = await world.plant()
    email = f"ann@{plant.slug}.example"
    ann = await world.invite(plant, email, roles=["admin"])
    path = f"/api/v1/users/{ann['id']}"
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 204
    assert not await world.query("SELECT FROM tenancy.users WHERE email = $1", email)
    assert not await world.query(
        "SELECT FROM tenancy.invitations WHERE user_id = $1", UUID(ann["id"])
    )
    assert ann["id"] not in str(await world.events(plant.id))


async def test_a_password_that_cannot_be_is_refused_and_the_invitation_stays_good(
    world: World,
) -> None:
    plant = await world.plant()
    token = (await world.invite(plant, f"ann@{plant.slug}.example"))["invitation"]["token"]
    for password in ("short-canar", "canary" * 200):
        answer = await world.try_to_accept(token, password)
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["#/password"]
        assert "canar" not in answer.text
    await world.accept(token)


async def test_no_token_is_kept(world: World) -> None:
    plant = await world.plant()
    ann = await world.invite(plant, f"ann@{plant.slug}.example")
    token = ann["invitation"]["token"]
    rows = await world.query("SELECT * FROM tenancy.invitations WHERE tenant_id = $1", plant.id)
    [row] = rows
    assert len(row["token_hash"]) == 32
    assert token not in str(row)
    assert token not in str(await world.users(plant))


async def test_only_the_gateway_asks_for_invitations(world: World) -> None:
    plant = await world.plant()
    token = (await world.invite(plant, f"ann@{plant.slug}.example"))["invitation"]["token"]
    body = {"token": token}
    for headers in (plant.headers, world.platform, {}):
        for path, more in (("find", {}), ("accept", {"password": PASSWORD})):
            url = f"/internal/v1/invitations/{path}"
            answer = await world.http.post(url, json=body | more, headers=headers)
            assert answer.status_code == (403 if headers else 401)


async def test_a_tenant_without_an_administrator_gets_one_and_from_then_on_decides_itself(
    world: World,
) -> None:
    slug = f"plant-{uuid4().hex[:12]}"
    lost = f"lost@{slug}.example"
    tenant = await world.open_tenant(slug, lost)
    assert tenant["admin"]["status"] == "invited"
    assert (await world.log_in(lost)).status_code == 401
    path = f"/api/v1/tenants/{tenant['id']}/admins"
    body = {"email": lost, "name": "Boss"}

    async def invite(email: str, headers: dict[str, str] = world.platform) -> httpx2.Response:
        return await world.http.post(path, json=body | {"email": email}, headers=headers)

    own = world.principal_headers(UUID(tenant["id"]), "*")
    assert (await invite(lost, own)).status_code == 403
    again = await invite(lost.upper())
    assert (again.status_code, again.json()["id"]) == (201, tenant["admin"]["id"])
    assert (await world.try_to_accept(tenant["admin"]["invitation"]["token"])).status_code == 401
    other = await invite(f"other@{slug}.example")
    assert (other.status_code, other.json()["roles"]) == (201, ["admin"])
    await world.accept(other.json()["invitation"]["token"])
    assert await open_to(world, f"other@{slug}.example", PASSWORD) == [slug]
    assert (await invite(f"third@{slug}.example")).status_code == 409
    assert (await invite(lost)).status_code == 409
    gone = await world.http.post(
        f"/api/v1/tenants/{uuid4()}/admins", json=body, headers=world.platform
    )
    assert gone.status_code == 404


async def test_a_password_set_while_another_is_hashed_is_not_overwritten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await world.plant(), await world.plant()
    email = f"ann@{a.slug}.example"
    tokens = [(await world.invite(plant, email))["invitation"]["token"] for plant in (a, b)]
    find = invitations.find

    async def find_and_be_overtaken(*arguments: Any, **more: Any) -> Any:
        invited = await find(*arguments, **more)
        monkeypatch.setattr(invitations, "find", find)
        await world.accept(tokens[1], THEIRS)
        return invited

    monkeypatch.setattr(invitations, "find", find_and_be_overtaken)
    assert (await world.try_to_accept(tokens[0], HERS)).status_code == 401
    assert await open_to(world, email, THEIRS) == [b.slug]
    assert await open_to(world, email, HERS) == []
