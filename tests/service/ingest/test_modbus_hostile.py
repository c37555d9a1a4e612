"""Modbus devices that answer with anything but what they were asked for."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from libs.common.historian.point import Quality
from tests.service.ingest.conftest import World
from tests.service.ingest.test_modbus import (  # noqa: F401 - the fixtures
    Meter,
    meter,
    rows,
    site,
    until_it_is,
    until_there_is,
)
from tests.waiting import until

Answer = Callable[[bytes], bytes]
"""Of a request's bytes what is sent back, as often as it is asked."""


def frame(request: bytes, pdu: bytes, *, unit: int = 1, ahead: int = 0) -> bytes:
    """Return an answer to a request, or to one so many `ahead` of it."""
    transaction = (int.from_bytes(request[:2], "big") + ahead) % 65_536
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


ONE_WORD = b"\x03\x02\x00\x07"
NO_ANSWER = "what it sends is no answer"
ANSWERS: dict[str, tuple[Answer, str]] = {
    "an exception": (lambda asked: frame(asked, b"\x83\x0b"), "exception 11, the unit behind"),
    "an exception nobody knows": (lambda asked: frame(asked, b"\x83\xff"), "exception 255"),
    "no words": (lambda asked: frame(asked, b"\x03\x00"), "0 values, where 1"),
    "an answer to a write": (
        lambda asked: frame(asked, b"\x06\x00\x00\x00\x07"),
        "an answer to function 6, not to 3",
    ),
    "an answer about coils": (lambda asked: frame(asked, b"\x01\x01\x07"), "function 1"),
    "another's unit": (lambda asked: frame(asked, ONE_WORD, unit=9), NO_ANSWER),
    "another's answer": (lambda asked: frame(asked, ONE_WORD, ahead=7), NO_ANSWER),
    "nothing": (lambda _: b"", "no answer within 100 ms"),
    "half a frame": (lambda asked: frame(asked, ONE_WORD)[:8], NO_ANSWER),
    "garbage": (lambda _: b"\xde\xad\xbe\xef" * 50, NO_ANSWER),
    "a function that is none": (lambda asked: frame(asked, b"\x63\x00"), NO_ANSWER),
    "less than it says": (lambda asked: frame(asked, b"\x03\x08\x00\x07"), NO_ANSWER),
    "no PDU": (lambda asked: frame(asked, b""), NO_ANSWER),
    "a frame of 64 KiB": (lambda asked: asked[:4] + b"\xff\xff\x01" + b"\0" * 65_534, "on and on"),
    "HTTP": (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_ANSWER),
}


@asynccontextmanager
async def listening(answer: Answer, *, is_endless: bool = False) -> AsyncIterator[int]:
    """Open a port that answers so; return it."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]  # there is one
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                while asked := await reader.read(512):
                    writer.write(answer(asked))
                    await writer.drain()
                    while is_endless:
                        writer.write(answer(asked))
                        await writer.drain()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def connect(world: World, port: int, device: UUID) -> UUID:
    answer = await world.http.post(
        "/api/v1/connectors",
        json={
            "name": f"meter {uuid4()}",
            "kind": "modbus",
            "settings": {
                "host": "127.0.0.1",
                "port": port,
                "poll_ms": 100,
                "timeout_ms": 100,
                "registers": [{"device": str(device), "metric": "power", "address": 0}],
            },
        },
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


async def test_what_is_no_answer_is_named_and_stored_as_bad_and_the_neighbour_goes_on(
    site: World,  # noqa: F811
    meter: Meter,  # noqa: F811
) -> None:
    good, _ = await site.device()
    await meter.set(0, 7)
    await connect(site, meter.port, good)
    async with contextlib.AsyncExitStack() as stack:
        unnamed: dict[str, tuple[str, str]] = {}
        wrong: dict[str, UUID] = {}
        for what, (answer, reason) in ANSWERS.items():
            wrong[what], _ = await site.device()
            port = await stack.enter_async_context(listening(answer))
            unnamed[str(await connect(site, port, wrong[what]))] = what, reason

        async def all_are_named() -> bool:
            listed = await site.http.get("/api/v1/connectors", headers=site.headers)
            for shown in listed.json()["items"]:
                if shown["id"] in unnamed and unnamed[shown["id"]][1] in shown["reason"]:
                    del unnamed[shown["id"]]
            return not unnamed

        try:
            await until(all_are_named, "each reason is named")
        except AssertionError:
            raise AssertionError(f"not named: {list(unnamed.values())}") from None
        before = len(await rows(site, good, "power"))

        async def goes_on() -> bool:
            return len(await rows(site, good, "power")) > before

        await until(goes_on, "the neighbour's values are stored")
        for what, device_id in wrong.items():
            stored = await rows(site, device_id, "power")
            assert {quality for _, quality in stored} == {Quality.BAD}, what
    assert set(await rows(site, good, "power")) == {(7.0, Quality.GOOD)}


async def test_a_device_that_refuses_is_there_and_one_that_is_silent_is_not(
    site: World,  # noqa: F811
) -> None:
    refusing, _ = await site.device()
    silent, _ = await site.device()
    asked: list[bytes] = []

    def refuse(request: bytes) -> bytes:
        asked.append(request)
        return frame(request, b"\x83\x06")

    async with listening(refuse) as port, listening(lambda _: b"") as mute:
        refused = await connect(site, port, refusing)
        await until_it_is(site, refused, "degraded", "exception 6, it is busy")
        nothing = await connect(site, mute, silent)
        await until_it_is(site, nothing, "failed", "no answer within 100 ms")
        await until(lambda: len(asked) > 8, "it is asked for many rounds")
    # By the library's count they are those of one connection.
    numbers = [int.from_bytes(request[:2], "big") for request in asked]
    assert numbers == list(range(1, len(asked) + 1))
    shown = await site.http.get(f"/api/v1/devices/{silent}", headers=site.headers)
    assert shown.json()["status"] == "unknown", "it was never there"


async def test_who_sends_without_end_is_cut_off(site: World) -> None:  # noqa: F811
    device_id, _ = await site.device()
    sent = 0

    def flood(_: bytes) -> bytes:
        nonlocal sent
        sent += 65_536
        return b"\xde\xad\xbe\xef" * 16_384

    async with listening(flood, is_endless=True) as port:
        connector = await connect(site, port, device_id)
        await until_it_is(site, connector, "failed", "it sends on and on what nobody asked for")
        # No more than what lay in the sockets: it was not read until the time for an answer was up.
        assert sent < 16 * 1024 * 1024


async def test_a_mute_device_that_is_online_otherwise_stays_so(site: World) -> None:  # noqa: F811
    device_id, token = await site.device()
    source = await site.app.state.sources.login(token)
    site.app.state.reception.presence.came(source, site, "connected by MQTT")
    async with listening(lambda _: b"") as mute:
        connector = await connect(site, mute, device_id)
        await until_it_is(site, connector, "failed", "no answer within 100 ms")
    marker, other = await site.device()
    source = await site.app.state.sources.login(other)
    site.app.state.reception.presence.came(source, site, "connected by MQTT")

    async def is_online(device: UUID = marker) -> bool:
        shown = await site.http.get(f"/api/v1/devices/{device}", headers=site.headers)
        return bool(shown.json()["status"] == "online")

    await until(is_online, "what was said before it is noted too")
    assert await is_online(device_id)


async def test_a_device_that_is_cut_off_in_mid_round_holds_nothing_up(
    site: World,  # noqa: F811
) -> None:
    """Its metric is new: it is not registered for who may not go on, and would wait for ever."""
    device_id, _ = await site.device()
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        if len(asked) == 1:
            site.app.state.sources.revoke(device_id, "the device's credential was replaced")
        return frame(request, ONE_WORD)

    async with listening(answer) as port:
        connector = await connect(site, port, device_id)
        await until_there_is(site, device_id, "power", 7.0)
        await until_it_is(site, connector, "connected")
