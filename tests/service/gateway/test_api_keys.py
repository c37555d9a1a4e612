"""Programs call with API keys."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import httpx2
import pytest
from websockets.asyncio.client import connect

from libs.common.auth.api_key import hash_key, new_handle, new_secret
from libs.common.auth.principal import Kind
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.base import Event, to_message
from libs.common.events.tenancy import ApiKeyChanged, ApiKeyRevoked, TenantUpdated
from services.gateway.app import build
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import World, bearer, running, serving
from tests.service.gateway.test_live import close_code, subscribe
from tests.waiting import until

DEVICES = "/api/v1/devices"


def nobodys() -> str:
    """Return a key that has the right shape and is nobody's."""
    return new_secret(new_handle()).key


async def ask(world: World, key: str) -> httpx2.Response:
    return await world.http.get(DEVICES, headers={"x-api-key": key})


@asynccontextmanager
async def replica(
    world: World, settings: Settings, urls: DatabaseUrls
) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a second gateway before the same tenancy and services."""
    bus = LocalBus(urls.bus, SystemClock())
    app = build(settings, bus, world.clock, upstreams={"tenancy": world.tenancy, **world.upstreams})
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://other") as http:
            yield http
        await bus.stop()


async def test_a_key_becomes_a_principal_of_its_own(world: World) -> None:
    group = uuid4()
    key, said = world.api_key("devices:read", device_groups=[str(group)])
    password = base64.b64encode(f"anything:{key}".encode()).decode()
    assert (await ask(world, key)).status_code == 200
    asked = world.tenancy.asked
    for headers in (
        {"x-api-key": key},
        {"authorization": f"Bearer {key}"},
        {"authorization": f"Basic {password}"},
    ):
        answer = await world.http.get(DEVICES, headers=headers)
        assert answer.status_code == 200, answer.text
        assert "ratelimit" in answer.headers
        who = await world.principal()
        assert (str(who.subject), str(who.tenant_id)) == (said["key_id"], said["tenant_id"])
        assert (who.kind, who.permissions, who.groups) == (
            Kind.API_KEY,
            frozenset({"devices:read"}),
            frozenset({group}),
        )
        assert not who.platform_admin
        seen = world.service.asked[-1]
        assert key not in str(seen)
        assert (seen.header("x-api-key"), seen.header("authorization")) == (None, None)
    # Tenancy was asked at the first request alone.
    assert world.tenancy.asked == asked


async def test_a_request_shows_one_credential(world: World) -> None:
    key, _ = world.api_key()
    user = await world.headers(world.person())
    for path in (DEVICES, "/api/v1/auth/me"):
        both = await world.http.get(path, headers={**user, "x-api-key": key})
        assert both.status_code == 400, both.text
        twice = await world.http.get(path, headers=[("x-api-key", key), ("x-api-key", key)])
        assert twice.status_code == 400
        # An access token is no API key because it stands where one belongs.
        token = user["authorization"].removeprefix("Bearer ")
        misplaced = await world.http.get(path, headers={"x-api-key": token})
        assert misplaced.status_code == 401


async def test_what_is_for_people_who_are_logged_in_refuses_a_key_clearly(world: World) -> None:
    key, _ = world.api_key()
    for method, path in (
        ("GET", "/api/v1/auth/me"),
        ("POST", "/api/v1/auth/ws-ticket"),
        ("POST", "/api/v1/auth/logout"),
    ):
        answer = await world.http.request(method, path, headers=bearer(key))
        assert answer.status_code == 403
        assert "API key" in answer.json()["detail"]


async def test_a_key_is_good_from_its_networks_alone(world: World) -> None:
    elsewhere, said = world.api_key(allowed_networks=["192.0.2.0/24", "2001:db8::/32"])
    here, _ = world.api_key(allowed_networks=["192.0.2.0/24", "127.0.0.1/32"])
    assert (await ask(world, elsewhere)).status_code == 403
    assert (await ask(world, here)).status_code == 200
    assert len(world.service.asked) == 1

    # It may have been stolen: the tenant finds it in its trail.
    async def is_recorded() -> bool:
        rows = await world.query(
            "SELECT convert_from(body, 'UTF8') AS body FROM bus.log"
            " WHERE type = 'audit.recorded.v1' AND tenant_id = $1",
            UUID(said["tenant_id"]),
        )
        return any(said["key_id"] in r["body"] and "127.0.0.1" in r["body"] for r in rows)

    await until(is_recorded, "the refusal is in the trail")


async def test_a_key_that_is_known_ends_in_time(world: World) -> None:
    end = world.clock.now() + timedelta(minutes=1)
    key, _ = world.api_key(good_until=end.isoformat())
    assert (await ask(world, key)).status_code == 200
    world.forward(seconds=50)
    assert (await ask(world, key)).status_code == 200
    world.forward(seconds=11)
    assert (await ask(world, key)).status_code == 401


@pytest.mark.parametrize("how", ["revoked", "rotated", "suspended"])
async def test_a_key_that_is_void_is_out_everywhere_within_seconds(
    world: World, settings: Settings, database_urls: DatabaseUrls, how: str
) -> None:
    key, said = world.api_key()
    tenant_id, key_id = UUID(said["tenant_id"]), UUID(said["key_id"])
    now = world.clock.now()
    event: Event = {
        "revoked": ApiKeyRevoked(tenant_id=tenant_id, at=now, key_id=key_id),
        "rotated": ApiKeyChanged(tenant_id=tenant_id, at=now, key_id=key_id),
        "suspended": TenantUpdated(
            tenant_id=tenant_id, at=now, slug="s", name="n", status="suspended"
        ),
    }[how]
    async with (
        replica(world, settings, database_urls) as other,
        serving(world.app) as port,
        connect(
            f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None, additional_headers={"x-api-key": key}
        ) as socket,
    ):
        assert (await subscribe(socket))["type"] == "subscribed"

        async def statuses() -> set[int]:
            return {
                (await http.get(DEVICES, headers=bearer(key))).status_code
                for http in (world.http, other)
            }

        assert await statuses() == {200}
        world.tenancy.keys.clear()
        await world.bus.publish([to_message(event)])

        async def is_out() -> bool:
            return await statuses() == {401}

        await until(is_out, "the key is void in both", within_s=5)
        async with asyncio.timeout(5):
            assert await close_code(socket) == 4401


async def test_a_live_connection_ends_with_its_key_and_hears_what_that_may(world: World) -> None:
    end = world.clock.now() + timedelta(minutes=1)
    key, _ = world.api_key("alerts:read", good_until=end.isoformat())
    async with (
        serving(world.app) as port,
        connect(
            f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None, additional_headers=bearer(key)
        ) as socket,
    ):
        assert (await subscribe(socket))["types"] == ["alert"]
        world.forward(minutes=2)
        assert await close_code(socket) == 4401


async def test_guesses_are_bounded_and_good_keys_go_on(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    few = settings.model_copy(update={"wrong_tokens_per_minute": 3})
    async with running(few, bus, database_urls) as world:
        key, _ = world.api_key()
        assert (await ask(world, key)).status_code == 200
        asked = world.tenancy.asked
        # What has no key's shape is not even looked up.
        for wrong in (
            "iiotk_",
            "iiotk_abcdefgh_short",
            key[:-1] + ("0" if key[-1] != "0" else "1"),
        ):
            assert (await ask(world, wrong)).status_code == 401
        assert world.tenancy.asked == asked
        answers = [(await ask(world, nobodys())).status_code for _ in range(6)]
        assert answers == [401] * 3 + [429] * 3
        assert world.tenancy.asked == asked + 3
        assert (await ask(world, key)).status_code == 200


async def test_what_is_known_of_a_key_goes_on_while_tenancy_is_away(world: World) -> None:
    key, _ = world.api_key()
    assert (await ask(world, key)).status_code == 200
    world.tenancy.is_away = True
    for known in world.app.state.api_keys._known.values():
        known.asked_at -= 120
    assert (await ask(world, key)).status_code == 200
    assert (await ask(world, nobodys())).status_code == 503
    world.tenancy.is_away = False
    world.tenancy.keys.clear()
    assert (await ask(world, key)).status_code == 401


async def test_each_key_has_a_limit_of_its_own(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    few = settings.model_copy(
        update={"api_key_requests_per_minute": 2, "api_key_requests_per_minute_of": {}}
    )
    async with running(few, bus, database_urls) as world:
        (busy, _), (quiet, _) = world.api_key(), world.api_key()
        assert [(await ask(world, busy)).status_code for _ in range(3)] == [200, 200, 429]
        assert (await ask(world, quiet)).status_code == 200


async def test_when_keys_were_used_is_told_once_and_not_lost_while_tenancy_is_away(
    world: World,
) -> None:
    key, said = world.api_key()
    for _ in range(3):
        await ask(world, key)
    world.tenancy.is_away = True
    keys = world.app.state.api_keys
    with pytest.raises(Exception, match="verified"):
        await keys.tell_uses()
    world.tenancy.is_away = False
    await keys.tell_uses()
    await keys.tell_uses()
    (use,) = world.tenancy.uses
    assert (use["key_id"], use["tenant_id"]) == (said["key_id"], said["tenant_id"])
    assert use["address"] == "127.0.0.1"
    assert hash_key(key).hex() not in str(use)
