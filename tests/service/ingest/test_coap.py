"""Devices speak CoAP to ingest itself, with stock clients over real sockets."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import aiocoap
import cbor2
import pytest
from aiocoap.numbers import Code

from libs.common.errors import Unavailable
from libs.common.events.base import Message
from services.ingest.settings import Settings
from tests.service.ingest.conftest import World
from tests.waiting import until

JSON, CBOR, SENML_JSON, SENML_CBOR = 50, 60, 110, 112


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"coap_host": "127.0.0.1", "coap_port": 0})


async def allow_plain(world: World, allowed: bool = True) -> None:
    answer = await world.http.put(
        "/api/v1/devices/policy", json={"plain_coap": allowed}, headers=world.headers
    )
    assert answer.status_code == 200, answer.text


@pytest.fixture
async def plain(world: World) -> World:
    """A tenant that lets its devices speak plain CoAP."""
    await allow_plain(world)
    return world


@pytest.fixture
async def client() -> AsyncIterator[aiocoap.Context]:
    context = await aiocoap.Context.create_client_context(transports=["simple6"])
    yield context
    await context.shutdown()


def url(world: World, path: str) -> str:
    return f"coap://127.0.0.1:{world.app.state.coap_port}/{path}"


def post(world: World, path: str, payload: bytes, form: int | None = JSON) -> aiocoap.Message:
    message = aiocoap.Message(code=Code.POST, uri=url(world, path), payload=payload)
    if form is not None:
        message.opt.content_format = form
    return message


async def ask(client: aiocoap.Context, message: aiocoap.Message) -> aiocoap.Message:
    return await asyncio.wait_for(client.request(message).response, 20)


@asynccontextmanager
async def observed(
    client: aiocoap.Context, message: aiocoap.Message
) -> AsyncIterator[list[aiocoap.Message]]:
    """What is notified, after the first answer."""
    message.opt.observe = 0
    request = client.request(message)
    seen = [await asyncio.wait_for(request.response, 20)]

    async def listen() -> None:
        async for notification in request.observation:
            seen.append(notification)  # noqa: PERF401 - each is looked at as it comes

    listening = asyncio.create_task(listen())
    try:
        yield seen
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_a_device_posts_and_is_answered_when_its_points_are_safe(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    ts = int(datetime.now(UTC).timestamp() * 1000)
    body = json.dumps({"ts": ts, "values": {"temp": 21.5, "running": True}}).encode()
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", body))
    assert (answer.code, answer.payload) == (Code.CHANGED, b"")
    points = await plain.until_stored(device_id, 2)
    assert sorted((metric, value) for metric, _, value in points) == [
        ("running", 1.0),
        ("temp", 21.5),
    ]
    assert {round(at * 1000) for _, at, _ in points} == {ts}


def senml(value: float) -> list[dict[str, object]]:
    return [{"n": "temp", "u": "Cel", "v": value}]


@pytest.mark.parametrize(
    ("form", "payload"),
    [
        (JSON, b'{"temp": 7}'),
        (None, b'{"temp": 7}'),
        (CBOR, cbor2.dumps({"temp": 7})),
        (None, cbor2.dumps({"temp": 7})),
        (SENML_JSON, json.dumps(senml(7)).encode()),
        (SENML_CBOR, cbor2.dumps([{0: "temp", 1: "Cel", 2: 7}])),
    ],
    ids=["json", "json, unnamed", "cbor", "cbor, unnamed", "senml+json", "senml+cbor"],
)
@pytest.mark.parametrize(
    "where", ["v1/{}/telemetry", "api/v1/{}/telemetry", "v1/telemetry?token={}"]
)
async def test_in_each_form_and_at_each_address(
    plain: World, client: aiocoap.Context, form: int | None, payload: bytes, where: str
) -> None:
    device_id, token = await plain.device()
    answer = await ask(client, post(plain, where.format(token), payload, form))
    assert answer.code is Code.CHANGED, answer.payload
    assert [(m, v) for m, _, v in await plain.until_stored(device_id, 1)] == [("temp", 7.0)]


async def test_a_nonconfirmable_message_is_answered_when_it_is_safe_too(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    for value in range(3):
        message = post(plain, f"v1/{token}/telemetry", b'{"temp": %d}' % value)
        message.transport_tuning = aiocoap.numbers.Unreliable()
        answer = await ask(client, message)
        assert answer.code is Code.CHANGED
    assert len(await plain.until_stored(device_id, 3)) == 3


async def test_no_answer_before_the_bus_has_it(
    plain: World, client: aiocoap.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await plain.device()
    is_up = asyncio.Event()
    publish = plain.app.state.intake._publish

    async def publish_when_up(messages: Sequence[Message]) -> None:
        if not is_up.is_set():
            raise Unavailable("the bus is away")
        await publish(messages)

    await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 0}'))
    monkeypatch.setattr(plain.app.state.intake, "_publish", publish_when_up)
    sent = asyncio.create_task(ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1}')))
    _, waiting = await asyncio.wait([sent], timeout=0.5)
    assert waiting, "answered although nothing was durable"
    is_up.set()
    assert (await sent).code is Code.CHANGED
    assert len(await plain.until_stored(device_id, 2)) == 2


async def test_what_is_not_safe_in_time_is_to_be_sent_again(
    plain: World, client: aiocoap.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await plain.device()
    await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 0}'))
    coap = plain.app.state.coap
    coap.limits = replace(coap.limits, answer_within_s=0.1)

    async def away(messages: Sequence[Message]) -> None:
        raise Unavailable("the bus is away")

    with monkeypatch.context() as patch:
        patch.setattr(plain.app.state.intake, "_publish", away)
        answer = await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1}'))
    assert (answer.code, answer.opt.max_age) == (Code.SERVICE_UNAVAILABLE, 2)


async def test_when_the_platform_is_full_a_device_is_told_to_come_again(
    plain: World, client: aiocoap.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await plain.device()
    await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 0}'))
    monkeypatch.setattr(plain.app.state.intake, "is_full", True)
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1}'))
    assert (answer.code, answer.opt.max_age) == (Code.SERVICE_UNAVAILABLE, 2)
    monkeypatch.undo()
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1}'))
    assert answer.code is Code.CHANGED


@pytest.mark.parametrize(
    ("path", "form", "payload", "code"),
    [
        ("v1/{}/telemetry", 41, b"<temp>1</temp>", Code.UNSUPPORTED_CONTENT_FORMAT),
        ("v1/{}/telemetry", CBOR, cbor2.dumps({"temp": 7})[:-1], Code.BAD_REQUEST),
        ("v1/{}/telemetry", JSON, b"\xff\xfe", Code.BAD_REQUEST),
        ("v1/{}/telemetry", JSON, b"3", Code.BAD_REQUEST),
        ("v1/{}/telemetry", JSON, b"", Code.BAD_REQUEST),
        ("v1/{}/nothing", JSON, b"{}", Code.NOT_FOUND),
        ("nothing", JSON, b"{}", Code.NOT_FOUND),
        ("v1/{}/latest", JSON, b"{}", Code.METHOD_NOT_ALLOWED),
        ("v1/telemetry", JSON, b"{}", Code.UNAUTHORIZED),
        ("v1/telemetry?token=nobody", JSON, b"{}", Code.UNAUTHORIZED),
        ("v1/iiotd_" + "x" * 43 + "/telemetry", JSON, b"{}", Code.UNAUTHORIZED),
        ("v1/{}/alerts", JSON, b'{"severity": "high"}', Code.BAD_REQUEST),
        ("v1/{}/alerts", CBOR, b"\xa0", Code.UNSUPPORTED_CONTENT_FORMAT),
    ],
    ids=[
        "xml",
        "half a cbor",
        "no json",
        "a bare number",
        "empty",
        "no such channel",
        "no such path",
        "a post where one gets",
        "no token",
        "no token's shape",
        "a wrong token",
        "an alarm without a message",
        "an alarm in cbor",
    ],
)
async def test_what_is_wrong_is_refused_with_a_reason(
    plain: World,
    client: aiocoap.Context,
    path: str,
    form: int,
    payload: bytes,
    code: Code,
) -> None:
    device_id, token = await plain.device()
    answer = await ask(client, post(plain, path.format(token), payload, form))
    assert answer.code is code, answer.payload
    # After what was wrong the device is as welcome as before.
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1}'))
    assert answer.code is Code.CHANGED
    assert len(await plain.until_stored(device_id, 1)) == 1


async def test_what_is_wrong_with_one_reading_is_named_and_its_neighbours_are_stored(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    body = b'[{"temp": 1}, {"ts": 1, "values": {"temp": 2}}, {"temp": 3}]'
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", body))
    assert answer.code is Code.CHANGED
    told = json.loads(answer.payload)
    assert (told["rejected"], told["first"][0]["reading"]) == (1, 1)
    assert told["first"][0]["reason"] == "too_old"
    assert [v for _, _, v in await plain.until_stored(device_id, 2)] == [1.0, 3.0]


async def give_profile(world: World, device_id: UUID, **declared: object) -> None:
    answer = await world.http.post(
        "/api/v1/device-profiles",
        json={"name": f"press {device_id}", **declared},
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    answer = await world.http.patch(
        f"/api/v1/devices/{device_id}",
        json={"profile_id": answer.json()["id"]},
        headers=world.headers,
    )
    assert answer.status_code == 200, answer.text


async def latest_of(world: World, client: aiocoap.Context, token: str) -> dict[str, object]:
    answer = await ask(client, aiocoap.Message(code=Code.GET, uri=url(world, f"v1/{token}/latest")))
    return {metric: value["value"] for metric, value in json.loads(answer.payload).items()}


async def test_what_a_profile_renames_is_renamed_once(
    plain: World, client: aiocoap.Context
) -> None:
    """Also with a new metric, for which the inlet reads the message more than once."""
    device_id, token = await plain.device()
    await give_profile(plain, device_id, fields={"t": "temp", "temp": "temp_raw"})
    for payload in (b'{"t": 1}', b'{"temp": 2}', b'{"t": 3, "temp": 4}'):
        answer = await ask(client, post(plain, f"v1/{token}/telemetry", payload))
        assert (answer.code, answer.payload) == (Code.CHANGED, b"")
    stored = [(metric, value) for metric, _, value in await plain.until_stored(device_id, 4)]
    assert sorted(stored) == [("temp", 1.0), ("temp", 3.0), ("temp_raw", 2.0), ("temp_raw", 4.0)]
    assert await latest_of(plain, client, token) == {"temp": 3.0, "temp_raw": 4.0}


@pytest.mark.parametrize("padding", [0, 2_000], ids=["in one datagram", "in blocks"])
async def test_a_value_of_another_kind_is_named_and_is_not_the_latest(
    plain: World, client: aiocoap.Context, padding: int
) -> None:
    device_id, token = await plain.device()
    await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1}'))
    body = b'{"temp": "hot", "speed": 3}' + b" " * padding
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", body))
    assert answer.code is Code.CHANGED
    told = json.loads(answer.payload)
    assert told["rejected"] == 1
    [first] = told["first"]
    assert (first["metric"], first["reason"]) == ("temp", "type_changed")
    assert await latest_of(plain, client, token) == {"temp": 1.0, "speed": 3.0}
    stored = await plain.until_stored(device_id, 2)
    assert [(metric, value) for metric, _, value in stored] == [("temp", 1.0), ("speed", 3.0)]


async def test_without_a_content_format_each_message_is_read_as_it_is_written(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    for payload in (b'{"temp": 1}', json.dumps(senml(2)).encode(), cbor2.dumps({"temp": 3})):
        answer = await ask(client, post(plain, f"v1/{token}/telemetry", payload, None))
        assert (answer.code, answer.payload) == (Code.CHANGED, b"")
    stored = [(metric, value) for metric, _, value in await plain.until_stored(device_id, 3)]
    assert stored == [("temp", 1.0), ("temp", 2.0), ("temp", 3.0)]
    await give_profile(plain, device_id, payload_format="cbor")

    async def is_read_as_cbor() -> bool:
        answer = await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 4}', None))
        return bool(answer.code is Code.BAD_REQUEST)

    await until(is_read_as_cbor, "the profile's form is heeded")


async def test_plain_coap_only_where_the_tenant_allows_it(
    world: World, client: aiocoap.Context
) -> None:
    device_id, token = await world.device()
    message = b'{"temp": 1}'
    answer = await ask(client, post(world, f"v1/{token}/telemetry", message))
    assert answer.code is Code.UNAUTHORIZED
    assert b"plain CoAP is not allowed" in answer.payload
    await allow_plain(world)

    async def is_answered(code: Code) -> bool:
        return (await ask(client, post(world, f"v1/{token}/telemetry", message))).code is code

    await until(lambda: is_answered(Code.CHANGED), "let in", within_s=5)
    await allow_plain(world, allowed=False)
    await until(lambda: is_answered(Code.UNAUTHORIZED), "shut out", within_s=5)
    assert await world.stored(device_id)


async def test_a_removed_device_is_shut_out_within_five_seconds(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    message = b'{"temp": 1}'
    assert (await ask(client, post(plain, f"v1/{token}/telemetry", message))).code is Code.CHANGED
    await plain.http.delete(f"/api/v1/devices/{device_id}", headers=plain.headers)

    async def is_out() -> bool:
        answer = await ask(client, post(plain, f"v1/{token}/telemetry", message))
        return bool(answer.code is Code.UNAUTHORIZED)

    await until(is_out, "shut out", within_s=5)


async def test_a_large_message_comes_in_blocks(plain: World, client: aiocoap.Context) -> None:
    device_id, token = await plain.device()
    first = int(datetime.now(UTC).timestamp() * 1000)
    readings = [{"ts": first + n, "values": {"temp": n}} for n in range(200)]
    body = json.dumps(readings).encode()
    assert len(body) > 5 * 1024
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", body))
    assert answer.code is Code.CHANGED, answer.payload
    assert len(await plain.until_stored(device_id, 200)) == 200


async def test_a_message_that_is_too_large_is_refused_with_the_limit(
    plain: World, client: aiocoap.Context
) -> None:
    _, token = await plain.device()
    answer = await ask(client, post(plain, f"v1/{token}/telemetry", b" " * 70_000))
    assert (answer.code, answer.opt.size1) == (Code.REQUEST_ENTITY_TOO_LARGE, 65_536)


async def test_a_block_out_of_order_is_refused(plain: World, client: aiocoap.Context) -> None:
    _, token = await plain.device()
    message = post(plain, f"v1/{token}/telemetry", b" " * 64)
    message.opt.block1 = (3, True, 2)
    answer = await asyncio.wait_for(client.request(message, handle_blockwise=False).response, 20)
    assert answer.code is Code.REQUEST_ENTITY_INCOMPLETE


async def test_what_there_is_can_be_discovered(plain: World, client: aiocoap.Context) -> None:
    def discover(query: str = "") -> aiocoap.Message:
        return aiocoap.Message(code=Code.GET, uri=url(plain, f".well-known/core{query}"))

    answer = await ask(client, discover())
    assert answer.opt.content_format == 40
    for path in ("telemetry", "attributes", "alerts", "status", "replies", "commands", "latest"):
        assert f"</v1/{path}>" in answer.payload.decode()
    answer = await ask(client, discover("?rt=iiot.commands"))
    assert answer.payload == b'</v1/commands>;rt="iiot.commands";ct="50";obs'


async def test_the_device_reports_an_alarm_and_a_status_of_its_own(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    alarm = b'{"severity": "high", "message": "oil low", "key": "oil"}'
    assert (await ask(client, post(plain, f"v1/{token}/alerts", alarm))).code is Code.CHANGED
    status = b'{"status": "online", "reason": "booted"}'
    assert (await ask(client, post(plain, f"v1/{token}/status", status))).code is Code.CHANGED
    found = await plain.http.get(f"/api/v1/devices/{device_id}", headers=plain.headers)
    assert (found.json()["status"], found.json()["status_reason"]) == ("online", "booted")
    rows = await plain.query(
        "SELECT convert_from(body, 'utf-8') AS body FROM bus.log"
        " WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
        plain.tenant_id,
    )
    assert [json.loads(row["body"])["message"] for row in rows] == ["oil low"]


async def test_the_latest_values_are_read_and_observed(
    plain: World, client: aiocoap.Context
) -> None:
    _, token = await plain.device()
    latest = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/latest"))
    assert json.loads((await ask(client, latest)).payload) == {}
    await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 1, "running": true}'))
    values = json.loads((await ask(client, latest.copy(token=b"", mid=None))).payload)
    assert {metric: value["value"] for metric, value in values.items()} == {
        "temp": 1.0,
        "running": True,
    }

    latest = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/latest"))
    async with observed(client, latest) as seen:
        await ask(client, post(plain, f"v1/{token}/telemetry", b'{"temp": 2}'))
        await until(lambda: len(seen) > 1, "a notification")
        assert json.loads(seen[-1].payload)["temp"]["value"] == 2.0


async def send_command(world: World, device_id: UUID, name: str) -> str:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": name, "params": {"speed": 3}},
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def status_of(world: World, device_id: UUID, command: str) -> str:
    answer = await world.http.get(
        f"/api/v1/devices/{device_id}/commands/{command}", headers=world.headers
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["status"])


async def test_a_device_observes_its_commands_and_replies(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    early = await send_command(plain, device_id, "start")
    observing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    async with observed(client, observing) as seen:
        assert seen[0].payload == b""
        await until(lambda: len(seen) == 2, "the command that waited")
        late = await send_command(plain, device_id, "stop")
        await until(lambda: len(seen) == 3, "the command that came")
        commands = [json.loads(message.payload) for message in seen[1:]]
        assert [(c["id"], c["name"], c["params"]) for c in commands] == [
            (early, "start", {"speed": 3}),
            (late, "stop", {"speed": 3}),
        ]

        async def is_acknowledged() -> bool:
            return await status_of(plain, device_id, late) == "acknowledged"

        await until(is_acknowledged, "acknowledged by the device's ACK")
        reply = b'{"status": "succeeded", "result": 3}'
        answer = await ask(client, post(plain, f"v1/{token}/commands/{early}/reply", reply))
        assert answer.code is Code.CHANGED, answer.payload
        reply = json.dumps({"id": late, "status": "failed", "error": "jammed"}).encode()
        answer = await ask(client, post(plain, f"v1/{token}/replies", reply))
        assert answer.code is Code.CHANGED, answer.payload
    assert await status_of(plain, device_id, early) == "succeeded"
    assert await status_of(plain, device_id, late) == "failed"


async def test_a_device_that_sleeps_asks_for_its_next_command(
    plain: World, client: aiocoap.Context
) -> None:
    device_id, token = await plain.device()
    nothing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    assert (await ask(client, nothing)).payload == b""
    command = await send_command(plain, device_id, "start")
    something = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    assert json.loads((await ask(client, something)).payload)["id"] == command


async def test_who_observes_and_is_removed_is_told(plain: World, client: aiocoap.Context) -> None:
    device_id, token = await plain.device()
    observing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    async with observed(client, observing) as seen:
        await plain.http.delete(f"/api/v1/devices/{device_id}", headers=plain.headers)
        await until(lambda: seen[-1].code is Code.UNAUTHORIZED, "told", within_s=5)


async def test_a_device_that_is_switched_off_and_on_again_gets_its_commands_however_often(
    plain: World,
) -> None:
    """It leaves observations behind that nobody ends; the newest counts."""
    device_id, token = await plain.device()
    async with AsyncExitStack() as stack:
        for _ in range(6):
            context = await aiocoap.Context.create_client_context(transports=["simple6"])
            stack.push_async_callback(context.shutdown)
            observing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
            seen = await stack.enter_async_context(observed(context, observing))
            assert seen[0].code is Code.CONTENT, seen[0].payload
        command = await send_command(plain, device_id, "start")
        await until(lambda: len(seen) > 1, "the command")
        assert json.loads(seen[1].payload)["id"] == command
    assert plain.app.state.coap.site._observers <= 4


async def test_a_large_command_comes_in_blocks(plain: World, client: aiocoap.Context) -> None:
    device_id, token = await plain.device()
    observing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    recipe = {"recipe": "x" * 5_000}
    async with observed(client, observing) as seen:
        await plain.http.post(
            f"/api/v1/devices/{device_id}/commands",
            json={"name": "load", "params": recipe},
            headers=plain.headers,
        )
        await until(lambda: len(seen) == 2, "the command")
        assert json.loads(seen[1].payload)["params"] == recipe


async def test_who_observes_in_silence_is_cut_when_plain_coap_is_no_longer_allowed(
    plain: World, client: aiocoap.Context
) -> None:
    _, token = await plain.device()
    observing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    async with observed(client, observing) as seen:
        plain.app.state.coap._forget_idle(asyncio.get_running_loop().time() + 3_600)
        await allow_plain(plain, allowed=False)
        await until(lambda: seen[-1].code is Code.UNAUTHORIZED, "told", within_s=5)


async def test_the_devices_of_a_suspended_tenant_are_shut_out_and_those_who_observe_are_told(
    plain: World, client: aiocoap.Context
) -> None:
    _, token = await plain.device()
    observing = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/commands"))
    async with observed(client, observing) as seen:
        plain.app.state.sources.revoke_tenant(plain.tenant_id, "the tenant is suspended")
        await until(lambda: seen[-1].code is Code.UNAUTHORIZED, "told", within_s=5)
        assert plain.app.state.coap.guests == {}


async def test_no_device_answers_for_another(plain: World, client: aiocoap.Context) -> None:
    device_id, _ = await plain.device()
    _, other_token = await plain.device()
    command = await send_command(plain, device_id, "start")
    reply = b'{"status": "succeeded"}'
    answer = await ask(client, post(plain, f"v1/{other_token}/commands/{command}/reply", reply))
    assert answer.code is Code.NOT_FOUND, answer.payload
    assert await status_of(plain, device_id, command) == "queued"


async def test_the_latest_values_come_in_blocks_not_much_larger_than_the_question(
    plain: World, client: aiocoap.Context
) -> None:
    """Its address may be forged: nobody is to be flooded by a device that is somebody's own."""
    _, token = await plain.device()
    values = {f"metric {n}": n for n in range(100)} | {"long": "x" * 4_000}
    await ask(client, post(plain, f"v1/{token}/telemetry", json.dumps(values).encode()))
    question = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/latest"))
    first = await asyncio.wait_for(client.request(question, handle_blockwise=False).response, 20)
    beside = 4 + len(first.token) + len(first.opt.encode()) + 1
    assert beside + len(first.payload) <= 3 * len(question.encode())
    question = aiocoap.Message(code=Code.GET, uri=url(plain, f"v1/{token}/latest"))
    latest = json.loads((await ask(client, question)).payload)
    assert latest.keys() == {f"metric {n}" for n in range(100)}


async def test_one_device_that_begins_many_messages_keeps_no_other_from_sending_its_own(
    plain: World, client: aiocoap.Context
) -> None:
    _, token = await plain.device()
    device_id, other_token = await plain.device()
    for number in range(20):
        message = post(plain, f"v1/{token}/telemetry?n={number}", b" " * 64)
        message.opt.block1 = (0, True, 2)
        begun = await asyncio.wait_for(client.request(message, handle_blockwise=False).response, 20)
        assert begun.code is Code.CONTINUE
    assert len(plain.app.state.coap.site._assemblies) == 4
    body = json.dumps([{"temp": n} for n in range(200)]).encode()
    assert (
        await ask(client, post(plain, f"v1/{other_token}/telemetry", body))
    ).code is Code.CHANGED
    assert len(await plain.until_stored(device_id, 200)) == 200


async def test_coap_client_of_libcoap_is_content(plain: World) -> None:
    program = shutil.which("coap-client-notls")
    if program is None:
        pytest.fail("coap-client-notls is missing: install libcoap3-bin")
    device_id, token = await plain.device()

    async def run(*words: str) -> str:
        command = [program, "-B", "10", *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return (done.stdout + done.stderr).decode()

    await run("-m", "post", "-t", "50", "-e", '{"temp": 7}', url(plain, f"v1/{token}/telemetry"))
    assert [value for _, _, value in await plain.until_stored(device_id, 1)] == [7.0]
    assert "</v1/telemetry>" in await run("-m", "get", url(plain, ".well-known/core"))
    assert "4.04" in await run("-m", "get", url(plain, "nothing"))
