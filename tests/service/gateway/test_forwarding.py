"""What reaches the services through the gateway, and what does not."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from deploy.local.processes import free_port
from libs.common.bus.local import LocalBus
from services.gateway.domain.breaker import FAILURES
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import StubService, World, bearer, running, serving
from tests.waiting import until

DEVICE_TOKEN = "iiotd_" + "k" * 43


async def test_a_service_is_told_who_asks_and_never_sees_the_credential(world: World) -> None:
    ann = world.person("devices:read")
    answer = await world.http.get(
        "/api/v1/devices/7?limit=3&q=a%20b", headers=await world.headers(ann)
    )
    assert answer.status_code == 200
    assert answer.json() == {"ok": True}
    asked = world.service.asked[-1]
    assert (asked.method, asked.path, asked.query) == (
        "GET",
        "/api/v1/devices/7",
        "limit=3&q=a%20b",
    )
    assert asked.header("authorization") is None
    principal = await world.principal()
    assert principal.subject == ann.user_id
    assert principal.tenant_id == ann.tenant_id
    assert principal.permissions == {"devices:read"}


async def test_a_principal_that_a_client_sends_itself_is_thrown_away(world: World) -> None:
    ann = world.person("devices:read")
    headers = await world.headers(ann)
    await world.http.get("/api/v1/devices", headers=headers)
    stolen = world.service.asked[-1].header("x-iiot-principal")
    assert stolen is not None
    ben = world.person()
    await world.http.get(
        "/api/v1/devices",
        headers={**await world.headers(ben), "X-IIoT-Principal": stolen, "x-iiot-anything": "1"},
    )
    assert (await world.principal()).subject == ben.user_id
    asked = world.service.asked[-1]
    assert [n for n, _ in asked.headers].count("x-iiot-principal") == 1
    assert asked.header("x-iiot-anything") is None
    alone = await world.http.get("/api/v1/devices", headers={"x-iiot-principal": stolen})
    assert alone.status_code == 401


async def test_the_request_id_and_the_trace_go_along(world: World) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await world.http.get(
        "/api/v1/devices",
        headers={
            **await world.headers(world.person()),
            "x-request-id": "my-request",
            "traceparent": trace,
        },
    )
    assert answer.headers.get_list("x-request-id") == ["my-request"]
    assert world.service.asked[-1].header("x-request-id") == "my-request"
    assert world.service.asked[-1].header("traceparent") == trace


async def test_status_headers_and_body_come_back_as_the_service_said(world: World) -> None:
    world.service.status = 418
    world.service.headers.append((b"etag", b'"7"'))
    world.service.chunks = [b"a pot ", b"of tea"]
    answer = await world.http.get("/api/v1/devices", headers=await world.headers(world.person()))
    assert (answer.status_code, answer.text) == (418, "a pot of tea")
    assert answer.headers["etag"] == '"7"'
    assert "server" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/internal/v1/users/1", "/api/v1/nothing", "/api/v1/devices/../../../internal/v1"]
)
async def test_paths_of_no_service_are_not_found(world: World, path: str) -> None:
    headers = await world.headers(world.person())
    answer = await world.http.get(path, headers=headers)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert not world.service.asked


async def test_without_a_credential_there_is_nothing_to_see(world: World) -> None:
    answer = await world.http.get("/api/v1/devices")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:iiot:problem:unauthenticated"
    assert not world.service.asked


async def test_two_authorization_headers_are_malformed(world: World) -> None:
    token = (await world.log_in(world.person()))["access_token"]
    twice = [("authorization", f"Bearer {token}"), ("authorization", "Bearer x")]
    for path in ("/api/v1/devices", "/api/v1/auth/me"):
        assert (await world.http.get(path, headers=twice)).status_code == 400


async def test_a_device_sends_telemetry_with_its_own_token(world: World) -> None:
    answer = await world.http.post(
        "/api/v1/telemetry", json={"temp": 21.5}, headers=bearer(DEVICE_TOKEN)
    )
    assert answer.status_code == 200
    asked = world.service.asked[-1]
    assert asked.header("authorization") == f"Bearer {DEVICE_TOKEN}"
    assert asked.header("x-iiot-principal") is None
    assert asked.body == b'{"temp":21.5}'


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/v1/telemetry"), ("POST", "/api/v1/devices"), ("POST", "/api/v1/telemetry/x")],
)
async def test_a_devices_token_is_good_for_nothing_else(
    world: World, method: str, path: str
) -> None:
    answer = await world.http.request(method, path, headers=bearer(DEVICE_TOKEN))
    assert answer.status_code == 401
    assert not world.service.asked


async def test_a_service_that_this_installation_lacks_is_unavailable(world: World) -> None:
    answer = await world.http.get("/api/v1/ml/models", headers=await world.headers(world.person()))
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


async def test_a_body_beyond_the_limit_is_refused(world: World) -> None:
    answer = await world.http.post(
        "/api/v1/devices",
        content=b"x" * (16 * 1024 * 1024 + 1),
        headers=await world.headers(world.person()),
    )
    assert answer.status_code == 413


async def test_over_the_network_bodies_stream_both_ways(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    service = StubService(chunks=[b"first,", b"last"], gate=asyncio.Event())
    async with serving(service) as upstream_port:
        remote = settings.model_copy(
            update={"upstreams": {"ingest": f"http://127.0.0.1:{upstream_port}"}}
        )
        async with (
            running(remote, bus, database_urls, in_process=False) as world,
            serving(world.app) as port,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            headers = await world.headers(world.person())
            more = asyncio.Event()

            async def upload() -> AsyncIterator[bytes]:
                yield b"one,"
                await more.wait()
                yield b"two"

            async def send() -> None:
                async with http.stream(
                    "PUT", "/api/v1/devices/7?x=%2F", content=upload(), headers=headers
                ) as answer:
                    pieces = answer.aiter_raw()
                    assert await anext(pieces) == b"first,"
                    assert service.gate is not None
                    service.gate.set()
                    assert b"".join([piece async for piece in pieces]) == b"last"
                    assert answer.headers["content-type"] == "application/json"
                    assert len(answer.headers.get_list("date")) == 1
                    assert "server" not in answer.headers

            sending = asyncio.create_task(send())
            await until(lambda: b"one," in service.received, "the first half has arrived")
            more.set()
            await sending
            asked = service.asked[-1]
            assert asked.body == b"one,two"
            assert asked.query == "x=%2F"
            assert asked.header("host") == f"127.0.0.1:{upstream_port}"
            token = asked.header("x-iiot-principal")
            assert token is not None
            assert (await world.verifier.verify(token)).kind == "user"


async def test_a_service_that_is_down_is_unavailable_and_comes_back(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    port = free_port()
    remote = settings.model_copy(update={"upstreams": {"ingest": f"http://127.0.0.1:{port}"}})
    async with running(remote, bus, database_urls, in_process=False) as world:
        headers = await world.headers(world.person())
        for _ in range(5):
            answer = await world.http.get("/api/v1/devices", headers=headers)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["type"] == "urn:iiot:problem:unavailable"
        async with serving(StubService(), port=port):

            async def is_back() -> bool:
                return (await world.http.get("/api/v1/devices", headers=headers)).status_code == 200

            await until(is_back, "the service is back")


async def test_what_clients_break_off_does_not_count_against_the_service(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    service = StubService()
    async with serving(service) as upstream_port:
        remote = settings.model_copy(
            update={
                "upstreams": {"ingest": f"http://127.0.0.1:{upstream_port}"},
                "max_body_bytes": 100_000,
            }
        )
        async with (
            running(remote, bus, database_urls, in_process=False) as world,
            serving(world.app) as port,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            headers = await world.headers(world.person())

            async def too_much() -> AsyncIterator[bytes]:
                for _ in range(4):
                    yield b"x" * 50_000

            for _ in range(2 * FAILURES):
                refused = await http.post("/api/v1/devices", content=too_much(), headers=headers)
                assert refused.status_code == 413
            for _ in range(2 * FAILURES):
                service.received.clear()
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(
                    b"POST /api/v1/telemetry HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
                    b"authorization: Bearer " + DEVICE_TOKEN.encode() + b"\r\n\r\nhalf"
                )
                await until(lambda: b"half" in service.received, "the first half has arrived")
                writer.transport.abort()
                await until(lambda: service.received[-1] == b"", "the service is told")
            answer = await http.get("/api/v1/devices", headers=headers)
            assert answer.status_code == 200, answer.text


async def test_a_service_that_takes_too_long_is_not_asked_for_a_while(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async with serving(silent) as upstream_port:
        remote = settings.model_copy(
            update={
                "upstreams": {"ingest": f"http://127.0.0.1:{upstream_port}"},
                "upstream_timeout": timedelta(seconds=0.1),
            }
        )
        async with running(remote, bus, database_urls, in_process=False) as world:
            headers = await world.headers(world.person())
            details = []
            for _ in range(FAILURES + 1):
                answer = await world.http.get("/api/v1/devices", headers=headers)
                assert answer.status_code == 503
                details.append(answer.json()["detail"])
            assert ["takes too long" in detail for detail in details] == [True] * 3 + [False]


async def test_metrics_are_not_for_the_world(world: World) -> None:
    direct = await world.http.get("/metrics")
    assert direct.status_code == 200
    proxied = await world.http.get("/metrics", headers={"x-forwarded-for": "203.0.113.7"})
    assert proxied.status_code == 404
