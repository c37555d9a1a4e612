"""What scripts of other sites may see."""

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from tests.service.gateway.conftest import Person, World, serving
from tests.waiting import until

SHOWN_TO = "access-control-allow-origin"
PREFLIGHT = {"access-control-request-method": "GET", "access-control-request-headers": "x"}


async def with_site(world: World, person: Person, *sites: str) -> dict[str, str]:
    """Let a person's tenant have sites; return the person's headers."""
    headers = await world.headers(person)
    kept = await world.http.put("/api/v1/cors-origins", json={"origins": sites}, headers=headers)
    assert kept.status_code == 200, kept.text
    return headers


async def ask(
    world: World, site: str, headers: dict[str, str], path: str = "/api/v1/devices"
) -> httpx2.Response:
    """Ask as a script of a site does."""
    return await world.http.get(path, headers={**headers, "origin": site})


async def test_a_site_sees_what_its_own_tenants_users_get_and_nothing_of_others(
    world: World,
) -> None:
    ours, theirs = "https://ours.example", "https://theirs.example:8443"
    ann = await with_site(world, world.person(), "https://OURS.example:443/", ours)
    ben = await with_site(world, world.person(), theirs)
    assert (await world.http.get("/api/v1/cors-origins", headers=ann)).json() == {"origins": [ours]}

    async def is_known() -> bool:
        mine = await ask(world, ours, ann)
        other = await ask(world, theirs, ben)
        return SHOWN_TO in mine.headers and SHOWN_TO in other.headers

    await until(is_known, "both sites are known", within_s=5)
    shown = await ask(world, ours, ann)
    assert shown.headers[SHOWN_TO] == ours
    assert "ratelimit" in shown.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in shown.headers
    for path in ("/api/v1/devices", "/api/v1/auth/me"):
        assert "origin" in (await ask(world, ours, ann, path)).headers["vary"].lower()
        assert SHOWN_TO in (await ask(world, ours, ann, path)).headers
        assert SHOWN_TO not in (await ask(world, theirs, ann, path)).headers
        assert SHOWN_TO not in (await ask(world, "https://evil.example", ann, path)).headers
        assert SHOWN_TO not in (await ask(world, "null", ann, path)).headers
    # That a token is wrong, any tenant's site may say to its user.
    wrong = await ask(world, ours, {"authorization": "Bearer x.y.z"})
    assert wrong.status_code == 401
    assert SHOWN_TO in wrong.headers

    # A preflight does not say whose it is: any tenant's site passes, and nobody else.
    for site in (ours, theirs):
        passed = await world.http.options("/api/v1/devices", headers={"origin": site, **PREFLIGHT})
        assert passed.status_code == 204
        assert passed.headers[SHOWN_TO] == site
        assert "DELETE" in passed.headers["access-control-allow-methods"]
        assert "authorization" in passed.headers["access-control-allow-headers"]
    evil = {"origin": "https://evil.example", **PREFLIGHT}
    refused = await world.http.options("/api/v1/devices", headers=evil)
    assert refused.status_code == 403
    assert SHOWN_TO not in refused.headers

    # Live connections go by the same list.
    async with serving(world.app) as port:
        live = f"ws://127.0.0.1:{port}/api/v1/ws"
        async with connect(
            live,
            proxy=None,
            origin=Origin(ours),
            additional_headers=ann,
        ) as socket:
            await socket.send('{"subscribe": {}}')
            assert "subscribed" in str(await socket.recv())
        async with connect(
            live,
            proxy=None,
            origin=Origin(theirs),
            additional_headers=ann,
        ) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4403
        with pytest.raises(InvalidStatus):
            await connect(
                live,
                proxy=None,
                origin=Origin("https://evil.example"),
                additional_headers=ann,
            )

    # A site that is struck off sees nothing any more.
    await with_site_removed(world, ann)

    async def is_forgotten() -> bool:
        return SHOWN_TO not in (await ask(world, ours, ann)).headers

    await until(is_forgotten, "the site is struck off", within_s=5)


async def with_site_removed(world: World, headers: dict[str, str]) -> None:
    """Strike all sites of a tenant off."""
    kept = await world.http.put("/api/v1/cors-origins", json={"origins": []}, headers=headers)
    assert kept.json() == {"origins": []}
