"""Sessions that their users see and end, and the cookie by which browsers continue theirs."""

import asyncio

import httpx2
from websockets.asyncio.client import connect

from tests.service.gateway.conftest import PASSWORD, Person, World, bearer, serving
from tests.service.gateway.test_replicas import other  # noqa: F401 - a second replica
from tests.waiting import until

COOKIE = "__Host-iiot_refresh"
OWN = "https://gateway"


async def sessions_of(world: World, headers: dict[str, str]) -> list[dict[str, object]]:
    """Return the caller's open sessions."""
    answer = await world.http.get("/api/v1/auth/sessions", headers=headers)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, object]] = answer.json()["items"]
    return items


async def test_one_sees_ones_sessions_and_ends_them_and_nobody_elses(world: World) -> None:
    ann, ben = world.person(), world.person()
    ben.memberships = {ann.tenant_id: ["*"]}
    laptop, phone, bens = [await world.headers(person) for person in (ann, ann, ben)]
    login = {"email": ann.email, "password": PASSWORD}
    await world.http.post(
        "/api/v1/auth/login", json=login, headers={"user-agent": "Browser/1 " + "x" * 300}
    )
    listed = await sessions_of(world, laptop)
    assert [session["current"] for session in listed] == [False, False, True]
    assert str(listed[0]["user_agent"]) == ("Browser/1 " + "x" * 300)[:256]
    assert listed[0]["address"] == "127.0.0.1"
    assert listed[0]["methods"] == ["pwd"]
    page = await world.http.get("/api/v1/auth/sessions?limit=2", headers=laptop)
    rest = await world.http.get(
        f"/api/v1/auth/sessions?limit=2&cursor={page.json()['next_cursor']}", headers=laptop
    )
    assert [*page.json()["items"], *rest.json()["items"]] == listed

    path = f"/api/v1/auth/sessions/{listed[1]['id']}"
    assert (await world.http.delete(path, headers=bens)).status_code == 404
    assert (await world.http.delete(path, headers=laptop)).status_code == 204
    assert (await world.http.delete(path, headers=laptop)).status_code == 404
    assert (await world.http.get("/api/v1/auth/me", headers=phone)).status_code == 401
    assert (await world.http.delete("/api/v1/auth/sessions", headers=laptop)).status_code == 204
    assert [session["current"] for session in await sessions_of(world, laptop)] == [True]
    assert len(await sessions_of(world, bens)) == 1


async def test_a_session_that_is_ended_elsewhere_is_dead_in_every_replica_and_its_socket_closed(
    world: World,
    other: httpx2.AsyncClient,  # noqa: F811 - the fixture
) -> None:
    ann = world.person()
    laptop, phone = await world.headers(ann), await world.headers(ann)
    assert (await other.get("/api/v1/auth/me", headers=phone)).status_code == 200
    async with (
        serving(world.app) as port,
        connect(f"ws://127.0.0.1:{port}/api/v1/ws", additional_headers=phone) as socket,
    ):
        await socket.send('{"subscribe": {}}')
        await socket.recv()
        await world.http.delete("/api/v1/auth/sessions", headers=laptop)
        await asyncio.wait_for(socket.wait_closed(), 5)
        assert socket.close_code == 4401

    async def is_out() -> bool:
        return (await other.get("/api/v1/auth/me", headers=phone)).status_code == 401

    await until(is_out, "the other replica knows that the session is ended", within_s=5)
    assert (await other.get("/api/v1/auth/me", headers=laptop)).status_code == 200


async def test_an_admin_sees_and_ends_the_sessions_of_the_tenants_users(world: World) -> None:
    boss, ann, stranger = world.person(), world.person("users:read"), world.person()
    ann.memberships = {boss.tenant_id: ["users:read"]}
    admin, theirs = await world.headers(boss), await world.headers(ann)
    path = f"/api/v1/users/{ann.user_id}/sessions"
    listed = await world.http.get(path, headers=admin)
    assert [session["current"] for session in listed.json()["items"]] == [False]
    assert (await world.http.delete(path, headers=theirs)).status_code == 403
    for who, status in ((await world.headers(stranger), 404), (admin, 204)):
        assert (await world.http.delete(path, headers=who)).status_code == status
    assert (await world.http.get("/api/v1/auth/me", headers=theirs)).status_code == 401
    ann.memberships = {boss.tenant_id: ["users:*"]}
    world.app.state.callers.change(boss.tenant_id)
    deputy = await world.headers(ann)
    higher = f"/api/v1/users/{boss.user_id}/sessions"
    assert (await world.http.delete(higher, headers=deputy)).status_code == 403


async def log_in_as_browser(
    world: World, person: Person, base: str = OWN, **headers: str
) -> httpx2.Response:
    """Log in as the console's page does."""
    return await world.http.post(
        f"{base}/api/v1/auth/login",
        json={"email": person.email, "password": PASSWORD, "cookie": True},
        headers={"origin": base, **headers},
    )


async def test_a_browser_keeps_the_refresh_token_where_no_script_reads_it(world: World) -> None:
    ann = world.person()
    answer = await log_in_as_browser(world, ann)
    assert answer.status_code == 200, answer.text
    assert "refresh_token" not in answer.json()
    assert answer.headers["cache-control"] == "no-store"
    said = answer.headers["set-cookie"].lower()
    assert said.startswith(f"{COOKIE.lower()}=iiotr_")
    assert {part.strip() for part in said.split(";")[1:]} == {
        "max-age=1209600", "path=/", "secure", "httponly", "samesite=strict",
    }  # fmt: skip
    first = answer.cookies[COOKIE]

    async def refresh(cookie: str, **headers: str) -> httpx2.Response:
        world.http.cookies.clear()
        return await world.http.post(
            f"{OWN}/api/v1/auth/refresh", headers={"cookie": f"{COOKIE}={cookie}", **headers}
        )

    tabs = await asyncio.gather(*[refresh(first, origin=OWN) for _ in range(2)])
    assert [tab.status_code for tab in tabs] == [200, 200], "two tabs at once both go on"
    last = tabs[1].cookies[COOKIE]
    assert last != first
    assert "refresh_token" not in tabs[1].json()
    for headers in ({}, {"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}):
        refused = await refresh(last, **headers)
        assert refused.status_code == 403, headers
    assert (await refresh(last, **{"sec-fetch-site": "same-origin"})).status_code == 200


async def test_no_other_site_logs_anybody_in_or_out_by_the_cookie(world: World) -> None:
    ann = world.person()
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}):
        assert (await log_in_as_browser(world, ann, **headers)).status_code == 403
    plain = await log_in_as_browser(world, ann, base="http://gateway")
    assert plain.status_code == 422
    assert "https" in plain.json()["detail"]
    loopback = await log_in_as_browser(world, ann, base="http://localhost:8000")
    assert loopback.status_code == 200, "browsers take it from this very machine"

    world.http.cookies.clear()
    answer = await log_in_as_browser(world, ann)
    cookie = {"cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}
    world.http.cookies.clear()
    path = f"{OWN}/api/v1/auth/logout"
    refused = await world.http.post(path, headers=cookie | {"origin": "https://evil.example"})
    assert refused.status_code == 403
    out = await world.http.post(path, headers=cookie | {"origin": OWN})
    assert out.status_code == 204
    assert out.headers["clear-site-data"] == '"cache", "storage"'
    assert "max-age=0" in out.headers["set-cookie"].lower()
    assert await world.me(answer.json()["access_token"]) == 401
    again = await world.http.post(f"{OWN}/api/v1/auth/refresh", headers=cookie | {"origin": OWN})
    assert again.status_code == 401
    assert (await world.http.post("/api/v1/auth/logout")).status_code == 401


async def test_a_session_says_when_and_from_where_it_was_seen_last(world: World) -> None:
    ann = world.person()
    tokens = await world.log_in(ann)
    world.forward(minutes=5)
    refreshed = await world.http.post(
        "/api/v1/auth/refresh",
        json={"refresh_token": tokens["refresh_token"]},
        headers={"user-agent": "Console/2"},
    )
    [session] = await sessions_of(world, bearer(refreshed.json()["access_token"]))
    assert session["user_agent"] == "Console/2"
    assert str(session["last_seen_at"]) > str(session["created_at"])
