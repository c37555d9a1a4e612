"""How much one may ask for."""

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from deploy.local.redis import Redis, find_redis
from libs.common.bus.local import LocalBus
from services.gateway.adapters import limits
from services.gateway.adapters.limits import Limiter
from services.gateway.domain.limit import Limit, Standing
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.servers import SharedServer
from tests.service.gateway.conftest import PASSWORD, World, bearer, running


@pytest.fixture
async def strict(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> AsyncIterator[World]:
    """A gateway that allows little."""
    few = settings.model_copy(
        update={
            "requests_per_minute": 3,
            "requests_per_minute_of": {"rules": 1},
            "device_requests_per_minute": 2,
            "anonymous_per_minute": 40,
            "wrong_tokens_per_minute": 5,
            "trusted_proxies": (ip_network("127.0.0.1/32"),),
        }
    )
    async with running(few, bus, database_urls) as world:
        yield world


async def test_the_headers_count_down_and_the_next_request_is_refused(strict: World) -> None:
    headers = await strict.headers(strict.person())
    told = []
    for _ in range(3):
        answer = await strict.http.get("/api/v1/devices", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"user";q=3;w=60'
        told.append(answer.headers["ratelimit"].split(";")[:2])
    assert told == [['"user"', "r=2"], ['"user"', "r=1"], ['"user"', "r=0"]]
    refused = await strict.http.get("/api/v1/devices", headers=headers)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"user";r=0;t=')
    assert len(strict.service.asked) == 3


async def test_a_part_of_the_api_may_have_a_limit_of_its_own(strict: World) -> None:
    headers = await strict.headers(strict.person())
    assert (await strict.http.get("/api/v1/rules", headers=headers)).status_code == 200
    assert (await strict.http.get("/api/v1/rules", headers=headers)).status_code == 429
    assert (await strict.http.get("/api/v1/devices", headers=headers)).status_code == 200


async def test_what_one_user_asks_for_costs_another_nothing(strict: World) -> None:
    ann, ben = await strict.headers(strict.person()), await strict.headers(strict.person())
    for _ in range(4):
        await strict.http.get("/api/v1/devices", headers=ann)
    assert (await strict.http.get("/api/v1/devices", headers=ben)).status_code == 200


async def test_each_device_has_a_limit_of_its_own(strict: World) -> None:
    tokens = ["iiotd_" + letter * 43 for letter in "ab"]
    for _ in range(2):
        for token in tokens:
            sent = await strict.http.post("/api/v1/telemetry", json={}, headers=bearer(token))
            assert sent.status_code == 200
    refused = await strict.http.post("/api/v1/telemetry", json={}, headers=bearer(tokens[0]))
    assert refused.status_code == 429


async def test_a_guesser_is_stopped_and_the_true_owner_elsewhere_is_not(strict: World) -> None:
    ann = strict.person()
    guess = {"email": ann.email.upper(), "password": "guess"}
    guessed = [
        (await strict.http.post("/api/v1/auth/login", json=guess)).status_code for _ in range(7)
    ]
    assert guessed == [401] * 5 + [429] * 2
    elsewhere = await strict.http.post(
        "/api/v1/auth/login",
        json={"email": ann.email, "password": PASSWORD},
        headers={"x-forwarded-for": "203.0.113.9"},
    )
    assert elsewhere.status_code == 200


async def test_another_spelling_of_the_same_account_gives_no_more_attempts(
    strict: World,
) -> None:
    host = f"{uuid4().hex[:8]}.example"
    spelled = [
        f"ann@{host}",
        f"ANN@{host}",
        f" ann@{host} ",
        f"ann@{host.upper()}",
        f"ann@{host.replace('l', chr(0x217C))}",
        f"ann@{host.replace('.', chr(0x3002))}",
    ]
    statuses = [
        (
            await strict.http.post("/api/v1/auth/login", json={"email": email, "password": "guess"})
        ).status_code
        for email in spelled
    ]
    assert statuses == [401] * 5 + [429]


async def test_a_forged_hop_does_not_make_a_new_address(strict: World) -> None:
    ann = strict.person()
    statuses = [
        (
            await strict.http.post(
                "/api/v1/auth/login",
                json={"email": ann.email, "password": "guess"},
                # The proxy before us adds the address it saw on the right.
                headers={"x-forwarded-for": f"198.51.100.{n}, 203.0.113.9"},
            )
        ).status_code
        for n in range(6)
    ]
    assert statuses == [401] * 5 + [429]


async def test_trying_tokens_is_limited_by_address(strict: World) -> None:
    statuses = [
        (await strict.http.get("/api/v1/devices", headers=bearer("x.y.z"))).status_code
        for _ in range(42)
    ]
    assert statuses[0] == 401
    assert statuses[-1] == 429


async def send(world: World, token: str, origin: str = "198.51.100.7") -> httpx2.Response:
    """Send telemetry with a device's token, from behind an address."""
    return await world.http.post(
        "/api/v1/telemetry",
        json={},
        headers={**bearer(token), "x-forwarded-for": origin},
    )


def token(number: int) -> str:
    return f"iiotd_{number:043}"


async def test_trying_tokens_of_devices_is_limited_by_address_and_the_good_ones_pass(
    strict: World,
) -> None:
    assert (await send(strict, token(0))).status_code == 200
    strict.service.status = 401
    tried = [(await send(strict, token(n))).status_code for n in range(1, 8)]
    assert tried == [401] * 5 + [429] * 2
    assert len(strict.service.asked) == 1 + 5
    strict.service.status = 200
    # Its neighbour on the same line is known, and need not wait.
    assert (await send(strict, token(0))).status_code == 200
    # One that nobody knows yet must: for as long as it is told, not for ever.
    stranger = await send(strict, token(99))
    assert stranger.status_code == 429
    assert 1 <= int(stranger.headers["retry-after"]) <= 60 / 5
    assert stranger.json()["type"] == "urn:iiot:problem:too-many-requests"
    assert (await send(strict, token(99), "203.0.113.9")).status_code == 200
    # People there log in as ever.
    ann = strict.person()
    assert (await strict.log_in(ann))["access_token"]


async def test_a_device_that_insists_on_a_wrong_token_costs_one_question_and_nobody_else(
    strict: World,
) -> None:
    strict.service.status = 401
    statuses = {(await send(strict, token(1))).status_code for _ in range(30)}
    assert statuses == {401}
    assert len(strict.service.asked) == 1
    strict.service.status = 200
    assert (await send(strict, token(2))).status_code == 200


async def test_a_service_in_trouble_says_nothing_about_a_token(strict: World) -> None:
    strict.service.status = 503
    for number in range(7):
        assert (await send(strict, token(number))).status_code == 503
    strict.service.status = 200
    assert (await send(strict, token(8))).status_code == 200


async def test_replicas_count_together_in_redis(
    redis_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine is no dead Redis.
    monkeypatch.setattr(limits, "REDIS_WITHIN_S", 10.0)
    replicas = [Limiter(redis_server.url), Limiter(redis_server.url)]
    limit = Limit("together", 3)
    for replica in replicas:
        await replica.open()
    try:
        key = f"test-{id(replicas)}"
        standings = [await replicas[n % 2].hit(limit, key) for n in range(4)]
        assert [s.is_allowed for s in standings] == [True, True, True, False]
        assert [s.remaining for s in standings] == [2, 1, 0, 0]
    finally:
        for replica in replicas:
            await replica.close()


async def test_two_replicas_at_the_edge_allow_a_percent_too_much_at_most(
    redis_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDIS_WITHIN_S", 10.0)
    limit = Limit(f"edge-{uuid4()}", 400, window_s=2)
    replicas = [Limiter(redis_server.url), Limiter(redis_server.url)]
    allowed: list[float] = []
    asked_redis = 0

    async def ask(replica: Limiter, until: float) -> None:
        while time.monotonic() < until:
            if (await replica.hit(limit, "ann")).is_allowed:
                allowed.append(time.monotonic())
            await asyncio.sleep(0.003)

    for replica in replicas:
        await replica.open()
    count = Limiter._count

    async def counted(self: Limiter, *given: Any) -> Standing:
        nonlocal asked_redis
        asked_redis += 1
        return await count(self, *given)

    monkeypatch.setattr(Limiter, "_count", counted)
    try:
        end = time.monotonic() + 5
        await asyncio.gather(*[ask(replica, end) for replica in replicas])
    finally:
        for replica in replicas:
            await replica.close()
    in_window = [sum(1 for t in allowed if start <= t < start + 2) for start in allowed]
    # Two replicas, each half a percent ahead: four of four hundred.
    assert max(in_window) <= 404
    assert len(allowed) > 0.95 * 400 * 2
    assert asked_redis < len(allowed)


async def test_a_small_limit_is_counted_exactly_whoever_asks_at_once(
    redis_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDIS_WITHIN_S", 10.0)
    replicas = [Limiter(redis_server.url), Limiter(redis_server.url)]
    for replica in replicas:
        await replica.open()
    try:
        for most in (5, 399, 1000):
            limit = Limit(f"at-once-{uuid4()}", most)
            hits = [replicas[n % 2].hit(limit, "ann") for n in range(most + 60)]
            standings = await asyncio.gather(*hits)
            # All within one window: not one more, however they are counted.
            assert sum(standing.is_allowed for standing in standings) == most
    finally:
        for replica in replicas:
            await replica.close()


async def test_when_redis_dies_the_limit_is_stricter_and_nothing_fails(tmp_path: Path) -> None:
    redis = Redis(tmp_path, find_redis())
    redis.start()
    limiter = Limiter(redis.url)
    await limiter.open()
    try:
        limit = Limit("user", 8)
        assert (await limiter.hit(limit, "ann")).remaining == 7
        redis.stop()
        standings = [await limiter.hit(limit, "ann") for _ in range(3)]
        assert [s.is_allowed for s in standings] == [True, True, False]
        assert standings[0].limit.requests == 2
    finally:
        await limiter.close()
        redis.stop()
