"""Limits that are set at run time: by the platform for everyone, by a tenant for itself."""

import asyncio
import re

import httpx2
import pytest

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.gateway.app import build
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import World, bearer
from tests.service.gateway.test_replicas import Deaf
from tests.waiting import until

LIMITS = "/api/v1/rate-limits"


async def admin(world: World) -> dict[str, str]:
    """Return the headers of one of the platform's administrators."""
    root = world.person("*")
    root.is_platform_admin = True
    return await world.headers(root)


def policies(answer: httpx2.Response) -> list[str]:
    """Return the names in the header RateLimit-Policy."""
    return re.findall(r'"([^"]*)"', answer.headers.get("ratelimit-policy", ""))


async def until_told(world: World, path: str, headers: dict[str, str], *names: str) -> None:
    """Wait until requests are counted against these limits."""

    async def is_told() -> bool:
        answer = await world.http.get(path, headers=headers)
        return policies(answer) == list(names)

    await until(is_told, f"{path} is limited by {names}", within_s=5)


async def test_a_limit_set_at_run_time_holds_within_seconds_and_goes_again(world: World) -> None:
    root, ann = await admin(world), world.person("*")
    headers = await world.headers(ann)
    body = {
        "name": "heavy-analyses",
        "match": {"path": "/api/v1/rules", "methods": ["GET"], "role": "operator"},
        "requests": 4,
        "per": "hour",
        "cost": 2,
    }
    made = await world.http.post(LIMITS, json=body, headers=root)
    assert made.status_code == 201, made.text
    assert (await world.http.post(LIMITS, json=body, headers=root)).status_code == 409
    await until_told(world, "/api/v1/rules", headers, "heavy-analyses")
    # The way to find out cost two; there are two more of the four.
    last = await world.http.get("/api/v1/rules", headers=headers)
    assert last.headers["ratelimit"].startswith('"heavy-analyses";r=0;')
    refused = await world.http.get("/api/v1/rules", headers=headers)
    assert refused.status_code == 429
    assert "4 requests an hour" in refused.json()["detail"]
    assert 3000 < int(refused.headers["retry-after"]) <= 3600
    # Other paths, methods and roles are not meant.
    assert (await world.http.get("/api/v1/alerts", headers=headers)).status_code == 200
    assert (await world.http.post("/api/v1/rules", headers=headers)).status_code == 200
    ben = world.person("*")
    ben.roles = ("viewer",)
    assert (await world.http.get("/api/v1/rules", headers=await world.headers(ben))).is_success

    where = f"{LIMITS}/{made.json()['id']}"
    body |= {"requests": None, "cost": 1, "match": {"principal_id": str(ann.user_id)}}
    exempt = await world.http.put(where, json=body, headers=root)
    assert exempt.status_code == 200, exempt.text

    async def is_free() -> bool:
        answer = await world.http.get("/api/v1/rules", headers=headers)
        return answer.status_code == 200 and "ratelimit" not in answer.headers

    await until(is_free, "who is exempt is not counted", within_s=5)
    assert (await world.http.delete(where, headers=root)).status_code == 204
    await until_told(world, "/api/v1/rules", headers, "user")


async def test_a_tenant_tightens_for_itself_and_never_loosens(world: World) -> None:
    ann, ben = world.person("*"), world.person("*")
    headers, others = await world.headers(ann), await world.headers(ben)
    root = await admin(world)
    tight = {"name": "ours", "match": {"plan": "free"}, "requests": 100, "burst": 2}
    assert (await world.http.post(LIMITS, json=tight, headers=headers)).status_code == 201
    ann.plan = "free"
    again = await world.headers(ann)
    # The plan is known with the next principal.
    world.app.state.callers.forget_all()
    await until_told(world, "/api/v1/devices", again, "user", "ours-burst", "ours")
    assert policies(await world.http.get("/api/v1/devices", headers=others)) == ["user"]
    # More at once than two a second, however long a busy machine takes for them.
    answers = await asyncio.gather(
        *[world.http.get("/api/v1/devices", headers=again) for _ in range(40)]
    )
    assert {answer.status_code for answer in answers} >= {429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "2 requests a second" in refused.json()["detail"]

    # What the platform set for the tenant, the tenant sees and cannot touch.
    set_by_root = await world.http.post(
        LIMITS,
        json={"name": "from-above", "requests": 50},
        params={"tenant_id": str(ann.tenant_id)},
        headers=root,
    )
    assert set_by_root.status_code == 201, set_by_root.text
    where = f"{LIMITS}/{set_by_root.json()['id']}"
    seen = (await world.http.get(LIMITS, headers=headers)).json()["items"]
    assert [(item["name"], item["by_platform"]) for item in seen] == [
        ("from-above", True),
        ("ours", False),
    ]
    assert (await world.http.delete(where, headers=headers)).status_code == 403
    assert (await world.http.put(where, json=tight, headers=headers)).status_code == 403
    # And nothing of another's.
    assert (await world.http.delete(where, headers=others)).status_code == 404
    theirs = {"tenant_id": str(ann.tenant_id)}
    assert (await world.http.get(LIMITS, params=theirs, headers=others)).status_code == 403
    assert (await world.http.get(LIMITS, headers=others)).json()["items"] == []
    limited = await world.http.get(
        f"{LIMITS}/effective",
        params={"path": "/api/v1/devices", "plan": "free"},
        headers=headers,
    )
    assert [limit["name"] for limit in limited.json()["limits"]] == ["from-above", "ours"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "free-for-all", "match": {"networks": ["0.0.0.0/0"]}, "requests": None}, 403),
        ({"name": "devices", "match": {"kind": "device"}, "requests": 1}, 422),
        ({"name": "burst", "requests": 5, "burst": 6}, 422),
        ({"name": "cost", "requests": 5, "cost": 6}, 422),
        ({"name": "Name", "requests": 5}, 422),
        ({"name": "path", "match": {"path": "/metrics"}, "requests": 5}, 422),
        ({"name": "nothing"}, 422),
        ({"name": "more", "requests": 5, "by_platform": True}, 422),
    ],
)
async def test_what_a_tenant_cannot_set(world: World, body: dict[str, object], status: int) -> None:
    headers = await world.headers(world.person("*"))
    answer = await world.http.post(LIMITS, json=body, headers=headers)
    assert answer.status_code == status, answer.text


async def test_it_takes_the_permission(world: World) -> None:
    reader = await world.headers(world.person("rate_limits:read"))
    assert (await world.http.get(LIMITS, headers=reader)).status_code == 200
    body = {"name": "mine", "requests": 1}
    assert (await world.http.post(LIMITS, json=body, headers=reader)).status_code == 403
    stranger = await world.headers(world.person("devices:read"))
    assert (await world.http.get(LIMITS, headers=stranger)).status_code == 403
    assert (await world.http.get(LIMITS)).status_code == 401
    forged = {"x-iiot-principal": "e30.e30.e30"}
    assert (await world.http.get(LIMITS, headers=forged)).status_code == 401


async def test_a_replica_that_hears_nothing_looks(
    world: World, settings: Settings, database_urls: DatabaseUrls
) -> None:
    ann = world.person("*")
    headers = bearer((await world.log_in(ann))["access_token"])
    bus: LocalBus = Deaf(database_urls.bus, SystemClock())
    app = build(
        settings,
        bus,
        world.clock,
        upstreams={"tenancy": world.tenancy, "ingest": world.service},
    )
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://other") as http:
            await world.http.post(
                LIMITS, json={"name": "everywhere", "requests": 9}, headers=headers
            )
            await world.http.put(
                "/api/v1/cors-origins",
                json={"origins": ["https://everywhere.example"]},
                headers=headers,
            )

            async def knows() -> bool:
                answer = await http.get(
                    "/api/v1/devices", headers={**headers, "origin": "https://everywhere.example"}
                )
                return (
                    "everywhere" in answer.headers["ratelimit-policy"]
                    and "access-control-allow-origin" in answer.headers
                )

            await until(knows, "the other replica knows both", within_s=5)
        await bus.stop()
