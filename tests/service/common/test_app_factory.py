import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

import httpx2
import pytest
import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import Field, JsonValue
from structlog.contextvars import bind_contextvars, get_contextvars

from libs.common import log
from libs.common.errors import NotFound, Unavailable
from libs.common.http.access import UndeclaredAccess, public
from libs.common.http.app import DuplicateOperation, ServiceApp, create_app
from libs.common.http.idempotency import repeatable
from libs.common.http.metrics import Metrics
from libs.common.http.pages import Limit, Page
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Moment
from libs.common.trace import current_traceparent
from tests.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
CANARY = "canary-8d1f0c"


class Needs:
    """Stands for the real permission dependency."""

    def __init__(self, permission: str) -> None:
        self.permission = permission

    async def __call__(self) -> str:
        return "ada"


CanRead = Annotated[str, Depends(Needs("devices:read"))]
CanWrite = Annotated[str, Depends(Needs("devices:write"))]


class Device(Body):
    name: str
    limits: dict[str, float] = Field(default_factory=dict)
    notes: JsonValue = None
    since: Moment | None = None


router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.get("", responses=problems(NotFound))
async def list_devices(who: CanRead, limit: Limit) -> Page[str]:
    return Page(items=["pump-1"] * min(limit, 3), next_cursor=None)


@router.get("/{device_id}")
async def read_device(device_id: int, who: CanRead) -> dict[str, JsonValue]:
    bind_contextvars(tenant="acme")
    return {"context": dict(get_contextvars()), "traceparent": current_traceparent()}


@router.post("", status_code=201)
@repeatable("nothing is kept")
async def add_device(device: Device, who: CanWrite) -> dict[str, str | None]:
    return {"name": device.name, "since": device.since.isoformat() if device.since else None}


@router.post("/import", max_body_size=2_000_000)
async def import_devices(names: list[str], who: CanWrite) -> int:
    return len(names)


@router.post("/firmware")
async def upload_firmware(request: Request, who: CanWrite) -> int:
    return sum([len(chunk) async for chunk in request.stream()])


@router.get("/{device_id}/trouble")
async def make_trouble(device_id: int, who: CanRead) -> None:
    structlog.get_logger().info("connecting", url=f"amqp://u:{CANARY}@rabbit", password=CANARY)
    raise RuntimeError(f"postgresql://u:{CANARY}@db refused at line 42 of secret_module")


@router.get("/{device_id}/halfway")
async def break_halfway(device_id: int, who: CanRead) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("the disk is gone")

    return StreamingResponse(parts())


@router.websocket("/live")
async def follow_devices(socket: WebSocket, who: CanRead) -> None:
    await socket.accept()
    raise NotFound("no such device")


@pytest.fixture
def app() -> ServiceApp:
    return create_app("devices", version="1.2.3", routers=[router])


@pytest.fixture
async def client(app: ServiceApp) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app) as client:
        yield client


def client_of(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://devices")


Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    log.configure("edge", pretty=False)
    yield lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    log.configure("test", level="info", pretty=False)


def pointers(response: httpx2.Response) -> list[str]:
    return [error["pointer"] for error in response.json()["errors"]]


# Bodies


async def test_a_good_request_passes(client: httpx2.AsyncClient) -> None:
    body = {"name": "press-7", "limits": {"temp": 95.5}, "since": "2026-03-01T12:00:00+02:00"}
    response = await client.post("/v1/devices", json=body)
    assert response.status_code == 201
    assert response.json() == {"name": "press-7", "since": "2026-03-01T10:00:00+00:00"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"name": "a", "colour": "red"}', "#/colour"),
        (b'{"limits": {}}', "#/name"),
        (b'{"name": "a", "limits": {"temp": "hot"}}', "#/limits/temp"),
        (b'{"name": "a", "limits": {"temp": NaN}}', "#/limits/temp"),
        (b'{"name": "a", "notes": {"deep": [1, Infinity]}}', "#/notes/deep/1"),
        (b'{"name": "a\\u0000b"}', "#/name"),
        (b'{"name": "a", "since": "2026-03-01T12:00:00"}', "#/since"),
        (b"[]", "#"),
        (b"", "#"),
    ],
)
async def test_a_fault_in_the_body_is_named(
    client: httpx2.AsyncClient, body: bytes, pointer: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/devices", content=body, headers=headers)
    assert response.status_code == 422
    assert pointers(response) == [pointer]


async def test_malformed_json_says_where(client: httpx2.AsyncClient) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    response = await client.post("/v1/devices", content=b'{"name": "a",}', headers=headers)
    assert response.status_code == 400
    assert "at character 1" in response.json()["detail"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", ""])
async def test_a_body_that_is_not_called_json_is_not_read(
    client: httpx2.AsyncClient, content_type: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post("/v1/devices", content=b'{"name": "a"}', headers=headers)
    assert response.status_code == 415


async def test_a_body_that_announces_too_much_is_refused_before_it_is_read(
    app: ServiceApp,
) -> None:
    async def never() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    headers = {"content-type": "application/json", "content-length": "1048577"}
    async with client_of(app) as client:
        response = await client.post("/v1/devices", content=never(), headers=headers)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/v1/devices", "/v1/devices/firmware"])
async def test_a_body_without_a_length_is_cut_off_at_the_limit(
    client: httpx2.AsyncClient, path: str
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    response = await client.post(path, content=endless(), headers=headers)
    assert response.status_code == 413
    assert sent <= 1_048_576 + 65536


async def test_a_route_may_allow_more(client: httpx2.AsyncClient) -> None:
    names = ["x" * 100] * 15_000
    assert (await client.post("/v1/devices/import", json=names)).json() == 15_000
    assert (await client.post("/v1/devices/import", json=names * 2)).status_code == 413


async def test_a_route_that_reads_bytes_gets_them_as_they_are(client: httpx2.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/devices/firmware", content=b"NaN {", headers=headers)
    assert response.json() == 5


# Addresses


@pytest.mark.parametrize("limit", ["0", "-1", "201", "1000000000", "ten", "1.5"])
async def test_a_limit_out_of_range_is_named(client: httpx2.AsyncClient, limit: str) -> None:
    response = await client.get("/v1/devices", params={"limit": limit})
    assert response.status_code == 422
    assert pointers(response) == ["?limit"]


async def test_a_list_without_a_limit_has_one(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/devices")
    assert response.json() == {"items": ["pump-1"] * 3, "next_cursor": None}


async def test_a_bad_path_parameter_is_named(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/devices/seven")
    assert response.status_code == 422
    assert pointers(response) == ["{device_id}"]


async def test_a_wrong_method_is_told_the_right_ones(client: httpx2.AsyncClient) -> None:
    response = await client.patch("/v1/devices")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"


async def test_a_trailing_slash_is_another_path(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v1/devices/7/")).status_code == 404


# Failures


async def test_a_failure_tells_the_client_nothing_and_the_log_everything_but_secrets(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    response = await client.get("/v1/devices/7/trouble")
    assert response.status_code == 500
    for inner in (CANARY, "secret_module", "RuntimeError", "postgres"):
        assert inner not in response.text
    written = lines()
    assert CANARY not in json.dumps(written)
    broke = next(line for line in written if line["event"] == "request broke")
    assert "line 42 of secret_module" in str(broke["exception"])
    assert broke["request_id"] == response.json()["request_id"]


async def test_a_failure_after_the_head_breaks_the_connection(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    with pytest.raises(RuntimeError, match="the disk is gone"):
        await client.get("/v1/devices/7/halfway")
    assert [line["event"] for line in lines()] == ["request broke", "request"]


async def test_a_websocket_is_closed_with_the_kind_of_error(app: ServiceApp) -> None:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/devices/live", "headers": [], "query_string": b""}
    await app(scope, receive, send)  # type: ignore[arg-type]  # ASGI's own loose types
    assert sent[-1] == {"type": "websocket.close", "code": 4404, "reason": "Not found"}


# Request id, trace, log


async def test_a_request_keeps_the_id_it_came_with(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/devices", headers={"x-request-id": "req-42"})
    assert response.headers.get_list("x-request-id") == ["req-42"]


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, "new\tline", "<script>"])
async def test_an_id_that_is_not_sane_is_replaced(client: httpx2.AsyncClient, sent: str) -> None:
    response = await client.get("/v1/devices", headers={"x-request-id": sent})
    assert len(response.headers["x-request-id"]) == 32


async def test_the_trace_goes_through(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/devices/7", headers={"traceparent": TRACEPARENT})
    assert response.json()["traceparent"] == TRACEPARENT
    assert response.json()["context"]["trace_id"] == TRACE


async def test_a_request_without_a_trace_begins_one(client: httpx2.AsyncClient) -> None:
    told = (await client.get("/v1/devices/7", headers={"traceparent": "00-zz"})).json()
    assert told["traceparent"].split("-")[1] == told["context"]["trace_id"]


async def test_a_request_leaves_one_line(client: httpx2.AsyncClient, lines: Lines) -> None:
    await client.get("/v1/devices/7?token=x", headers={"traceparent": TRACEPARENT})
    (line,) = lines()
    assert float(str(line.pop("duration_ms"))) >= 0
    assert line.pop("time")
    assert line.pop("request_id")
    assert line == {
        "level": "info",
        "event": "request",
        "service": "devices",
        "module": "libs.common.http.doorway",
        "method": "GET",
        "path": "/v1/devices/7",
        "route": "/v1/devices/{device_id}",
        "status": 200,
        "trace_id": TRACE,
        "tenant": "acme",
    }


async def test_health_and_metrics_leave_no_line(client: httpx2.AsyncClient, lines: Lines) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert (await client.get(path)).status_code == 200
    assert lines() == []


async def test_a_request_inside_another_inherits_no_tenant(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    tokens = bind_contextvars(tenant="outer")
    try:
        await client.get("/v1/devices")
    finally:
        structlog.contextvars.reset_contextvars(**tokens)
    (line,) = lines()
    assert "tenant" not in line


async def test_a_request_inside_another_hides_nothing_and_leaves_nothing(
    client: httpx2.AsyncClient,
) -> None:
    tokens = bind_contextvars(tenant="outer", request_id="outer-1")
    try:
        inner = (await client.get("/v1/devices/7")).headers["x-request-id"]
        assert inner != "outer-1"
        context = get_contextvars()
        assert (context["tenant"], context["request_id"]) == ("outer", "outer-1")
        assert "service" not in context
        assert current_traceparent() is None
    finally:
        structlog.contextvars.reset_contextvars(**tokens)


async def test_no_request_asks_for_somebody_elses_tracer(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI would, at each, and read the environment for it."""
    asked: list[str] = []
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: asked.append("trace"))
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: asked.append("metrics"))
    assert (await client.get("/v1/devices/7")).status_code == 200
    assert asked == []


# Access


async def test_an_operation_without_a_permission_does_not_start() -> None:
    careless = APIRouter()

    @careless.get("/open")
    async def forgotten() -> None: ...

    with pytest.raises(UndeclaredAccess, match=r"GET /open \(forgotten\)"):
        create_app("careless", version="1", routers=[careless])


async def test_an_operation_added_late_is_found_before_the_first_request(app: ServiceApp) -> None:
    @app.get("/late")
    async def late() -> None: ...

    async with client_of(app) as client:
        with pytest.raises(UndeclaredAccess, match="/late"):
            await client.get("/health/live")


async def test_two_operations_of_one_name_do_not_start() -> None:
    first, second = APIRouter(prefix="/a"), APIRouter(prefix="/b")
    for each in (first, second):

        @each.get("/x")
        @public("a test")
        async def same() -> None: ...

    with pytest.raises(DuplicateOperation, match="same"):
        create_app("twins", version="1", routers=[first, second])


async def test_openapi_names_operations_by_function_and_says_their_permission(
    client: httpx2.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "1.2.3"
    listed = document["paths"]["/v1/devices"]["get"]
    assert listed["operationId"] == "list_devices"
    assert listed["x-permission"] == "devices:read"
    assert listed["security"] == [{"bearer": []}, {"api_key": []}]
    assert set(listed["responses"]) == {"200", "400", "401", "403", "404", "422"}
    assert listed["description"].endswith("Needs the permission `devices:read`.")
    limit = listed["parameters"][0]
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 200)
    assert document["paths"]["/v1/devices"]["post"]["x-permission"] == "devices:write"
    assert "/metrics" not in document["paths"]


# Health and metrics


async def test_readiness_follows_what_the_service_stands_on(app: ServiceApp) -> None:
    is_up = False

    async def database() -> None:
        if not is_up:
            raise Unavailable("the database does not answer")

    async def bus() -> None:
        if not is_up:
            raise ConnectionError(f"amqp://u:{CANARY}@rabbit:5672 refused")

    app.health.add("database", database)
    app.health.add("bus", bus)
    async with client_of(app) as client:
        down = await client.get("/health/ready")
        assert down.status_code == 503
        checks = down.json()["checks"]
        assert down.json()["status"] == "failing"
        assert checks["database"]["status"] == "failing"
        assert checks["database"]["detail"] == "the database does not answer"
        assert checks["bus"]["detail"] == "ConnectionError"
        assert CANARY not in down.text
        assert (await client.get("/health/live")).status_code == 200

        is_up = True
        up = await client.get("/health/ready")
        assert up.status_code == 200
        assert up.json()["status"] == "ok"
        assert up.json()["checks"]["bus"]["status"] == "ok"
        assert up.json()["checks"]["bus"]["duration_ms"] < 2000


async def test_a_check_that_hangs_fails_in_time_though_it_will_not_be_cancelled() -> None:
    app = create_app("slow", version="1")
    app.health._timeout_s = 0.05
    may_end = asyncio.Event()

    async def stubborn() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async def fine() -> None: ...

    app.health.add("stubborn", stubborn)
    app.health.add("fine", fine)
    try:
        async with asyncio.timeout(30), client_of(app) as client:
            response = await client.get("/health/ready")
    finally:
        may_end.set()
    assert response.status_code == 503
    checks = response.json()["checks"]
    assert checks["stubborn"]["detail"] == "no answer within 0.05 s"
    assert checks["fine"]["status"] == "ok"


async def test_requests_are_counted_by_route_and_not_by_address() -> None:
    metrics = Metrics()
    app = create_app("devices", version="1", routers=[router], metrics=metrics)
    async with client_of(app) as client:
        for number in range(3):
            await client.get(f"/v1/devices/{number}")
        await client.get("/nowhere/at/all")
        await client.request("BREW", "/v1/devices")
        text = (await client.get("/metrics")).text
    one = 'route="/v1/devices/{device_id}",service="devices"'
    assert f'http_requests_total{{method="GET",{one},status="200"}} 3.0' in text
    assert f'http_request_duration_seconds_count{{method="GET",{one}}} 3.0' in text
    assert 'method="GET",route="unmatched",service="devices",status="404"} 1.0' in text
    assert 'method="OTHER",route="/v1/devices",service="devices",status="405"} 1.0' in text
    assert "/nowhere" not in text


async def test_services_in_one_process_share_a_registry_and_stay_apart() -> None:
    metrics = Metrics()
    apps = [create_app(name, version="1", metrics=metrics) for name in ("rules", "alerting")]
    for app in apps:
        async with client_of(app) as client:
            await client.get("/health/live")
    text = metrics.text().decode()
    for name in ("rules", "alerting"):
        assert f'route="/health/live",service="{name}",status="200"}} 1.0' in text


async def test_a_router_is_made_ready_once_and_serves_every_app_as_its_own() -> None:
    shared = APIRouter()

    @shared.get("/name")
    @public("a name is no secret")
    async def read_name(request: Request) -> str:
        name: str = request.app.title
        return name

    apps = [create_app(name, version="1", routers=[shared]) for name in ("rules", "alerting")]
    first, second = ({id(route) for route in app.routes} for app in apps)
    assert len(first & second) == 1
    for app in apps:
        async with client_of(app) as client:
            assert (await client.get("/name")).json() == app.service


async def test_however_many_ask_whether_it_is_ready_it_is_looked_once_at_a_time() -> None:
    app = create_app("asked", version="1")
    may_end, looked = asyncio.Event(), 0

    async def database() -> None:
        nonlocal looked
        looked += 1
        await may_end.wait()

    app.health.add("database", database)
    async with client_of(app) as client:
        asking = [asyncio.create_task(client.get("/health/ready")) for _ in range(20)]
        await until(lambda: looked > 0, "it is looked")
        asking[0].cancel()
        may_end.set()
        answers = await asyncio.gather(*asking[1:])
        assert {answer.status_code for answer in answers} == {200}
        assert looked == 1
        assert (await client.get("/health/ready")).status_code == 200
        assert looked == 2
