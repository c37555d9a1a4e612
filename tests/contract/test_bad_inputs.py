"""Bad inputs by HTTP, each through the gateway to the service it is for: docs/bad-inputs.md."""

import asyncio
import gzip
import json
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from typing import TypeAlias
from uuid import uuid4

import httpx2
import pytest

from deploy.edge.server import EmbeddedServer
from tests.contract.isolation.test_walk import ADMIN, METRIC, Platform, Tenant, running
from tests.database import DatabaseUrls, fresh_database
from tests.servers import SharedServer

DEVICES = "/api/v1/devices"
CHANNELS = "/api/v1/notification-channels"
SOME_ID = "5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10"
SERIES = f"/api/v1/analytics/timeseries/{SOME_ID}/{METRIC}"
PRESS = {"name": "press-7", "type": "press"}


def sent(body: str | bytes) -> dict[str, object]:
    content = body.encode() if isinstance(body, str) else body
    return {"content": content, "headers": {"content-type": "application/json"}}


def a_rule(**condition: object) -> dict[str, object]:
    return {
        "json": {
            "name": "too hot",
            "type": "threshold",
            "device_id": SOME_ID,
            "metric": METRIC,
            "severity": "high",
            "condition": {"operator": ">", "value": 90, **condition},
        }
    }


def a_webhook(url: str) -> dict[str, object]:
    return {"json": {"name": "hook", "kind": "webhook", "config": {"url": url}}}


INWARD = (
    "http://0x7f.1/", "http://2130706433/", "http://127。0。0。1/", "http://[64:ff9b::7f00:1]/",
    "http://[::127.0.0.1]/", "http://localhost:5432/", "http://169.254.169.254/latest/meta-data/",
    "https://user:secret@hooks.plant.example/", "file:///etc/passwd",
)  # fmt: skip

# number, what, method, path, what is sent, status, where the fault is said to be
Case: TypeAlias = "tuple[int, str, str, str, Mapping[str, object], int, str | None]"

HTTP: list[Case] = [
    (1, "malformed JSON", "POST", DEVICES, sent('{"name": '), 400, None),
    (2, "wrong content type", "POST", DEVICES,
     {"content": b"name=press-7", "headers": {"content-type": "text/plain"}}, 415, None),
    (3, "more than a MiB", "POST", DEVICES, sent(b'"' + b"x" * 1_100_000 + b'"'), 413, None),
    (4, "forty levels deep", "POST", DEVICES, sent("[" * 40 + "]" * 40), 400, None),
    (5, "a key twice", "POST", DEVICES, sent('{"name": "a", "name": "b"}'), 400, None),
    (6, "NaN", "POST", "/api/v1/rules", sent(json.dumps(a_rule(value=float("nan"))["json"])),
     422, "#/condition/value"),
    (7, "an integer beyond 2^53", "POST", "/api/v1/rules", a_rule(value=2**53 + 1),
     422, "#/condition/value"),
    (8, "U+0000", "POST", DEVICES, {"json": {**PRESS, "name": "press\0"}}, 422, "#/name"),
    (9, "half a surrogate pair", "POST", DEVICES, sent(r'{"name": "\ud800", "type": "press"}'),
     422, "#/name"),
    (10, "a byte order mark", "POST", DEVICES, sent(b"\xef\xbb\xbf{}"), 400, None),
    (12, "an unknown field", "POST", DEVICES, {"json": {**PRESS, "tenant_id": SOME_ID}},
     422, "#/tenant_id"),
    (13, "a bad UUID", "GET", f"{DEVICES}/press-7", {}, 422, "{device_id}"),
    (14, "a time without a zone", "GET", SERIES, {"params": {"from": "2026-01-01T00:00:00"}},
     422, "?from"),
    (15, "from after to", "GET", SERIES,
     {"params": {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}}, 422, "?from"),
    (16, "a range beyond the quota", "GET", "/api/v1/telemetry/ledger",
     {"params": {"from": "2020-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}}, 422, None),
    *((17, f"limit {n}", "GET", DEVICES, {"params": {"limit": n}}, 422, "?limit")
      for n in (0, -1, 10**9)),
    (18, "a tampered cursor", "GET", DEVICES, {"params": {"cursor": "AQID"}}, 400, "?cursor"),
    (20, "an expression that imports", "POST", "/api/v1/rules",
     a_rule(operator="__import__('os').system('id')"), 422, "#/condition/operator"),
    (22, "CRLF in a webhook", "POST", CHANNELS,
     a_webhook("https://hooks.plant.example/\r\nX-Evil: 1"), 422, "#/config/url"),
    *((23, f"a webhook to {url}", "POST", CHANNELS, a_webhook(url), 422, "#/config/url")
      for url in INWARD),
]  # fmt: skip


@pytest.fixture(scope="module")
def urls(postgres_server: SharedServer) -> DatabaseUrls:
    return fresh_database(postgres_server)


@pytest.fixture
async def platform(urls: DatabaseUrls) -> AsyncIterator[Platform]:
    async with running(urls) as platform:
        yield platform


def fault(answer: httpx2.Response, status: int, pointer: str | None) -> str | None:
    """Return what is wrong with a refusal, or None."""
    if answer.status_code != status:
        return f"{answer.status_code}, not {status}: {answer.text[:200]}"
    if answer.headers["content-type"] != "application/problem+json":
        return answer.headers["content-type"]
    problem = answer.json()
    if problem["request_id"] != answer.headers["x-request-id"] or not problem["detail"]:
        return f"{problem}"
    pointers = [error["pointer"] for error in problem["errors"]]
    return None if pointer is None or pointer in pointers else f"{pointers}, not {pointer}"


async def test_what_is_wrong_is_refused_with_the_place_of_the_fault(platform: Platform) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    plant = await platform.open_tenant(root, f"bad-{secrets.token_hex(4)}")
    me, http = await plant.credential(), platform.http
    wrong = []
    for number, what, method, path, body, status, pointer in HTTP:
        given = {**me, **body.get("headers", {})}  # type: ignore[dict-item]  # as loosely typed as what is sent
        asked = {**body, "headers": given}
        found = fault(await http.request(method, path, **asked), status, pointer)  # type: ignore[arg-type]  # as above
        if found is not None:
            wrong.append(f"{number} {what}: {found}")
    assert not wrong, "\n".join(wrong)

    # 11: a megabyte of zeros in a kilobyte, where compressed bodies are taken; and where they are not.
    device = await plant.device()
    bomb = gzip.compress(b"press temp=1 1\n" * 4_000_000)
    lines = {**me, "content-type": "text/plain", "content-encoding": "gzip"}
    where = "/api/v1/telemetry/influx"
    answer = await http.post(where, params={"device_id": device}, content=bomb, headers=lines)
    assert fault(answer, 413, None) is None, answer.text
    unread = {**me, "content-type": "application/json", "content-encoding": "gzip"}
    answer = await http.post(DEVICES, content=gzip.compress(b"{}"), headers=unread)
    assert answer.status_code in (400, 415), answer.text

    # 25: what a spreadsheet would run.
    await plant.call("POST", DEVICES, name="=cmd|' /C calc'!A1", type="press")
    sheet = (await http.get(f"{DEVICES}/export", headers=me)).text
    assert "\n'=cmd|" in sheet or "\n\"'=cmd|" in sheet, sheet

    # 26, 27: two credentials, and one that nobody signed.
    twice = [("authorization", me["authorization"])] * 2
    assert fault(await http.get(DEVICES, headers=twice), 400, None) is None
    unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0."
    answer = await http.get(DEVICES, headers={"authorization": f"Bearer {unsigned}"})
    assert fault(answer, 401, None) is None

    # 28: the same key for something else.
    key = {**me, "idempotency-key": str(uuid4())}
    assert (await http.post(DEVICES, json=PRESS, headers=key)).status_code == 201
    other = await http.post(DEVICES, json={**PRESS, "name": "press-8"}, headers=key)
    assert fault(other, 422, "Idempotency-Key:") is None

    # 29: what changed since it was seen.
    stale = {**me, "if-match": '"999"'}
    answer = await http.patch(f"{DEVICES}/{device}", json={"name": "mine"}, headers=stale)
    assert fault(answer, 412, None) is None

    # 30: a method that is none of this path's.
    answer = await http.delete(DEVICES, headers=me)
    assert fault(answer, 405, None) is None
    assert {"GET", "POST"} <= set(answer.headers["allow"].split(", "))


SMUGGLED = b"GET /api/v1/users HTTP/1.1\r\nHost: platform\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +5\r\n",
    ],
)
async def test_a_second_request_hidden_in_the_first_is_none(
    platform: Platform, head: bytes
) -> None:
    """33: two lengths, of which two readers might each believe another."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = EmbeddedServer(platform.gateway, listening, drain_s=1)
    server.start()
    try:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"POST /api/v1/auth/login HTTP/1.1\r\nHost: platform\r\n" + head)
        writer.write(b"Content-Type: application/json\r\n\r\n0\r\n\r\n" + SMUGGLED)
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    finally:
        await server.stop()
    assert said.startswith(b"HTTP/1.1 400"), said[:200]
    assert said.count(b"HTTP/1.1 ") == 1, said
