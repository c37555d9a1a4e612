"""What a client of a library would never send, and what the network does to what it sends."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiocoap import Message as Coap
from aiocoap.numbers import Code

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from services.ingest.app import build
from services.ingest.domain.quota import Rate
from services.ingest.settings import Settings
from tests.database import DatabaseUrls
from tests.service.ingest.conftest import World, running
from tests.waiting import until

CON, NON = 0, 1


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(
        update={
            "coap_host": "127.0.0.1",
            "coap_port": 0,
            "coap_strangers_per_minute": 20,
            "wrong_tokens_per_minute": 5,
            "state_dir": tmp_path,
        }
    )


@pytest.fixture
async def plain(world: World) -> World:
    answer = await world.http.put(
        "/api/v1/devices/policy", json={"plain_coap": True}, headers=world.headers
    )
    assert answer.status_code == 200, answer.text
    return world


class Wire(asyncio.DatagramProtocol):
    """A UDP socket of a device's."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.append(data)

    def send(self, data: bytes) -> None:
        self.transport.sendto(data)  # type: ignore[attr-defined]  # uvloop's own class

    async def until_got(self, count: int) -> list[bytes]:
        await until(lambda: len(self.got) >= count, f"{count} answers")
        return self.got


@asynccontextmanager
async def wire(world: World, port: int = 0) -> AsyncIterator[Wire]:
    own = Wire()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: own,
        local_addr=("127.0.0.1", port),
        remote_addr=("127.0.0.1", world.app.state.coap_port),
    )
    try:
        yield own
    finally:
        transport.close()


def telemetry(token: str, payload: bytes, mid: int, kind: int = CON, **options: object) -> bytes:
    message = Coap(
        code=Code.POST,
        payload=payload,
        uri_path=("v1", token, "telemetry"),
        content_format=50,
        _mid=mid,
        _mtype=kind,
        _token=b"\x07",
        **options,
    )
    encoded: bytes = message.encode()
    return encoded


@pytest.mark.parametrize("kind", [CON, NON], ids=["confirmable", "nonconfirmable"])
async def test_a_datagram_that_comes_three_times_is_one_point(plain: World, kind: int) -> None:
    device_id, token = await plain.device()
    async with wire(plain) as device:
        first = telemetry(token, b'{"temp": 1}', 7, kind)
        device.send(first)
        device.send(first)  # on its way twice
        [answer] = await device.until_got(1)
        device.send(first)  # the answer was lost
        device.send(telemetry(token, b'{"temp": 2}', 8, kind))
        got = await device.until_got(3 if kind == CON else 2)
    assert answer[1] == Code.CHANGED
    if kind == CON:
        assert got[:2] == [answer, answer]
    points = await plain.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]


async def test_a_datagram_that_comes_again_before_it_is_safe_is_answered_once(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await plain.device()
    async with wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 0}', 1))
        await device.until_got(1)
        is_up = asyncio.Event()
        publish = plain.app.state.intake._publish

        async def publish_when_up(messages: Sequence[Message]) -> None:
            await is_up.wait()
            await publish(messages)

        monkeypatch.setattr(plain.app.state.intake, "_publish", publish_when_up)
        for _ in range(3):
            device.send(telemetry(token, b'{"temp": 1}', 2))
        await until(lambda: len(plain.app.state.coap._waiting) == 1, "taken")
        is_up.set()
        await device.until_got(2)
        device.send(telemetry(token, b'{"temp": 2}', 3))
        assert [answer[3] for answer in await device.until_got(3)] == [1, 2, 3]
    assert len(await plain.until_stored(device_id, 3)) == 3


async def test_a_poll_whose_answer_was_lost_gets_the_same_command_again(plain: World) -> None:
    device_id, token = await plain.device()
    for name in ("start", "stop"):
        answer = await plain.http.post(
            f"/api/v1/devices/{device_id}/commands",
            json={"name": name, "params": {}},
            headers=plain.headers,
        )
        assert answer.status_code == 201, answer.text

    def poll(mid: int) -> bytes:
        asked = Coap(
            code=Code.GET,
            uri_path=("v1", token, "commands"),
            _mid=mid,
            _mtype=CON,
            _token=b"\x07",
        )
        encoded: bytes = asked.encode()
        return encoded

    async with wire(plain) as device:
        device.send(poll(7))
        await device.until_got(1)
        device.send(poll(7))  # its ACK, with the command, was lost
        await device.until_got(2)
        device.send(poll(8))
        lost, again, following = await device.until_got(3)
    assert again == lost
    names = [json.loads(Coap.decode(answer).payload)["name"] for answer in (lost, following)]
    assert names == ["start", "stop"]


async def test_no_response_is_honoured(plain: World) -> None:
    device_id, token = await plain.device()
    async with wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 1}', 7, NON, no_response=2))
        device.send(telemetry(token, b'{"temp": 2}', 8, CON, no_response=2))
        device.send(telemetry(token, b"no json", 9, NON, no_response=2))
        got = await device.until_got(2)
        assert sorted(answer[1] for answer in got) == [0, Code.BAD_REQUEST]
        assert b"\x60\x00\x00\x08" in got
    assert len(await plain.until_stored(device_id, 2)) == 2


async def test_a_datagram_sent_again_after_a_restart_is_the_same_point(
    settings: Settings, keys: KeySource, database_urls: DatabaseUrls, plain: World
) -> None:
    device_id, token = await plain.device()
    async with wire(plain) as device:
        port = device.transport.get_extra_info("sockname")[1]
        device.send(telemetry(token, b'{"temp": 1}', 7))
        await device.until_got(1)
    await plain.until_stored(device_id, 1)
    await plain.app.state.coap.stop()
    bus = LocalBus(database_urls.bus, SystemClock())
    later = build(settings, bus, SystemClock(), keys=keys)
    async with running(later, bus, database_urls, plain.tenant_id, plain.headers) as restarted:
        async with wire(restarted, port) as device:
            device.send(telemetry(token, b'{"temp": 1}', 7))
            device.send(telemetry(token, b'{"temp": 2}', 8))
            assert {answer[1] for answer in await device.until_got(2)} == {Code.CHANGED}
        points = await restarted.until_stored(device_id, 2)
        assert [value for _, _, value in points] == [1.0, 2.0]


async def test_noise_does_no_harm_and_gets_no_more_than_it_sent(plain: World) -> None:
    device_id, token = await plain.device()
    noise = random.Random(7)
    good = telemetry(token, b'{"temp": 1}', 7)
    datagrams = [
        b"",
        b"\x40",
        b"\x40\x02\x00",
        b"\x4f\x02\x00\x01" + bytes(20),  # a token of fifteen bytes
        b"\xc0\x02\x00\x01",  # version 3
        b"\x40\x02\x00\x02\xff",  # a marker, and no payload
        b"\x40\x02\x00\x03\xf0",  # a reserved delta
        b"\x40\x02\x00\x04\xbd\xff",  # an option that is longer than the datagram
        b"\x40\x00\x00\x05\x01",  # an empty message that is not
        b"\x60\x45\x00\x06",  # an answer to nothing
        b"\x40\x02\x00\x07\x9f",  # OSCORE with half an option
        b"\x40\x02\x00\x08\x91\x09",  # OSCORE that announces what is not there
        *(noise.randbytes(noise.randrange(1, 60)) for _ in range(200)),
        *(
            good[: (at := noise.randrange(4, len(good)))] + noise.randbytes(1) + good[at + 1 :]
            for _ in range(200)
        ),
    ]
    async with wire(plain) as stranger, wire(plain) as device:
        # Known already: what it shares its address with has wrong tokens among them.
        device.send(telemetry(token, b'{"temp": 41}', 1))
        await device.until_got(1)
        for datagram in datagrams:
            stranger.send(datagram)
        device.send(telemetry(token, b'{"temp": 42}', 2))
        assert [answer[1] for answer in await device.until_got(2)] == [Code.CHANGED] * 2
        assert sum(map(len, stranger.got)) <= 3 * sum(map(len, datagrams))

    async def is_stored() -> bool:
        return 42.0 in [value for _, _, value in await plain.stored(device_id)]

    await until(is_stored, "the good one stored")
    assert plain.app.state.coap.failed == 0


def option(number: int, value: bytes, after: int) -> bytes:
    """An option as it lies on the wire, whatever that number may hold."""

    def written(count: int) -> tuple[int, bytes]:
        if count < 13:
            return count, b""
        if count < 269:
            return 13, bytes([count - 13])
        return 14, (count - 269).to_bytes(2, "big")

    (delta, more_delta), (length, more_length) = written(number - after), written(len(value))
    return bytes([delta << 4 | length]) + more_delta + more_length + value


@pytest.mark.parametrize("code", [Code.GET, Code.POST, Code.FETCH], ids=["get", "post", "fetch"])
async def test_options_of_any_kind_and_length_are_no_fault_of_ours(
    plain: World, code: Code
) -> None:
    _, token = await plain.device()
    numbers = [
        1,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        12,
        14,
        15,
        16,
        17,
        20,
        23,
        27,
        28,
        35,
        39,
        60,
        252,
        258,
        292,
    ]
    async with wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 1}', 65_000))
        await device.until_got(1)
        count = 0
        for path in ("telemetry", "commands", "latest", "replies", "attributes"):
            for number in [*numbers, 2_053, 65_001]:
                for value in (b"", b"\xff", b"\x07\xff", b"\xc3\x28\x00", bytes(9), b"\xff" * 300):
                    segments = [(11, part) for part in (b"v1", token.encode(), path.encode())]
                    datagram, after = bytes([0x41, code, count >> 8, count & 0xFF, 7]), 0
                    for at, part in sorted([*segments, (number, value)], key=lambda o: o[0]):
                        datagram += option(at, part, after)
                        after = at
                    device.send(datagram + b'\xff{"a": 1}')
                    count += 1
                    if count % 40 == 0:
                        await until(lambda: not plain.app.state.coap._under_way, "looked at")
        device.send(telemetry(token, b'{"temp": 2}', 65_001))
        await until(lambda: any(answer[2:4] == b"\xfd\xe9" for answer in device.got), "answered")
    assert plain.app.state.coap.failed == 0
    assert Code.INTERNAL_SERVER_ERROR not in {answer[1] for answer in device.got}


async def test_a_ping_is_answered(plain: World) -> None:
    async with wire(plain) as device:
        device.send(b"\x40\x00\x12\x34")
        assert await device.until_got(1) == [b"\x70\x00\x12\x34"]


async def test_an_unknown_critical_option_is_refused(plain: World) -> None:
    _, token = await plain.device()
    async with wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 1}', 7, if_none_match=True))
        assert (await device.until_got(1))[0][1] == Code.BAD_OPTION


async def test_strangers_are_answered_so_often_and_no_device_suffers(plain: World) -> None:
    _, token = await plain.device()
    ask = Coap(code=Code.GET, uri_path=(".well-known", "core"), _mtype=CON, _mid=0, _token=b"")
    async with wire(plain) as stranger, wire(plain) as device:
        for mid in range(100):
            ask.mid, ask.token = mid, bytes([mid])
            stranger.send(ask.encode())
        device.send(telemetry(token, b'{"temp": 1}', 7))
        await device.until_got(1)
        await stranger.until_got(20)
        assert len(stranger.got) == 20
        assert max(map(len, stranger.got)) <= 5 * len(ask.encode())


async def test_who_guesses_tokens_must_wait_and_no_device_suffers(plain: World) -> None:
    _, token = await plain.device()
    async with wire(plain) as stranger, wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 1}', 1))
        await device.until_got(1)
        for mid in range(8):
            guess = "iiotd_" + os.urandom(20).hex() + "abc"
            stranger.send(telemetry(guess, b'{"temp": 1}', mid))
            await stranger.until_got(mid + 1)
        codes = [answer[1] for answer in stranger.got]
        assert codes == [Code.UNAUTHORIZED] * 5 + [Code.TOO_MANY_REQUESTS] * 3
        device.send(telemetry(token, b'{"temp": 2}', 2))
        assert (await device.until_got(2))[1][1] == Code.CHANGED


async def test_who_forges_a_plants_address_keeps_none_of_its_devices_out(plain: World) -> None:
    """Neither here, nor by another protocol."""
    _, token = await plain.device()
    async with wire(plain) as forger, wire(plain) as device:
        for mid in range(8):
            guess = "iiotd_" + os.urandom(20).hex() + "abc"
            forger.send(telemetry(guess, b'{"temp": 1}', mid))
            await forger.until_got(mid + 1)
        assert forger.got[-1][1] == Code.TOO_MANY_REQUESTS
        device.send(telemetry(token, b'{"temp": 2}', 2))
        assert (await device.until_got(1))[0][1] == Code.CHANGED
    _, other_token = await plain.device()
    assert await plain.app.state.reception.login(other_token, "127.0.0.1")


async def test_the_same_address_and_id_of_another_message_is_another_message(plain: World) -> None:
    """An address is another device's later, and message ids come round: neither may cost a point."""
    first_id, first_token = await plain.device()
    second_id, second_token = await plain.device()
    async with wire(plain) as nat:
        nat.send(telemetry(first_token, b'{"temp": 1}', 7))
        await nat.until_got(1)
        nat.send(telemetry(second_token, b'{"temp": 2}', 7))
        await nat.until_got(2)
        nat.send(telemetry(first_token, b'{"temp": 3}', 7))
        assert {answer[1] for answer in await nat.until_got(3)} == {Code.CHANGED}
    assert [v for _, _, v in await plain.until_stored(first_id, 2)] == [1.0, 3.0]
    assert [v for _, _, v in await plain.until_stored(second_id, 1)] == [2.0]


async def test_what_strangers_are_told_is_little_and_seldom(plain: World) -> None:
    """Whoever forges an address must not flood it through us, whatever he pretends to be."""
    coap = plain.app.state.coap
    questions = {
        "a token of no shape": Coap(code=Code.GET, uri_path=("v1", "x"), uri_query=("token=",)),
        "a wrong token": Coap(code=Code.GET, uri_path=("v1", "iiotd_" + "x" * 43, "latest")),
        "an identity of nobody": Coap(code=Code.POST, oscore=b"\x09\x01\x02"),
        "no such path": Coap(code=Code.GET, uri_path=("a",)),
        "nothing": Coap(code=Code.GET),
        "what there is": Coap(code=Code.GET, uri_path=(".well-known", "core")),
    }
    for what, question in questions.items():
        coap._strangers.clear()
        async with wire(plain) as stranger:
            asked = 0
            for mid in range(60):
                question.mid, question.mtype, question.token = mid, CON, b"\x01"
                datagram = question.encode()
                asked = len(datagram)
                stranger.send(datagram)
            await until(lambda: coap.ignored == 40, f"{what}: ignored")
            coap.ignored = 0
            assert len(stranger.got) == 20, what
            assert max(map(len, stranger.got)) <= 3 * asked, what


async def test_who_is_nobody_leaves_nothing_behind(plain: World) -> None:
    coap = plain.app.state.coap
    async with wire(plain) as stranger:
        for mid in range(50):
            token = "iiotd_" + os.urandom(20).hex() + "abc"
            begin = Coap(
                code=Code.POST,
                uri_path=("v1", token, "telemetry"),
                payload=b"x" * 64,
                block1=(0, True, 2),
            )
            watch = Coap(code=Code.GET, uri_path=("v1", token, "commands"), observe=0)
            hidden = Coap(code=Code.POST, oscore=b"\x09\x01" + os.urandom(7), payload=b"y" * 20)
            for place, message in enumerate((begin, watch, hidden)):
                message.mid, message.mtype, message.token = 3 * mid + place, CON, b"\x01"
                stranger.send(message.encode())
        await until(lambda: not coap._under_way and coap.ignored >= 100, "all looked at")
    assert coap.guests == coap._routes == coap._waiting == {}
    assert len(coap.site._assemblies) == coap.site._observers == 0
    assert not coap._engine._context.request_interfaces[0].incoming_requests


async def test_one_devices_many_ways_to_say_it_take_no_room_from_others(plain: World) -> None:
    """The options that telemetry is known by are a device's own choice, and cost memory."""
    _, token = await plain.device()
    _, other_token = await plain.device()
    coap = plain.app.state.coap
    async with wire(plain) as odd, wire(plain) as device:
        device.send(telemetry(other_token, b'{"temp": 1}', 1))
        await device.until_got(1)
        for mid in range(40):
            odd.send(telemetry(token, b'{"temp": 1}', mid, uri_query=(f"n={mid}",)))
            await odd.until_got(mid + 1)
        odd.send(telemetry(token, b'{"temp": 1}', 99, uri_query=("x" * 30_000,)))
        assert (await odd.until_got(41))[40][1] == Code.CHANGED
    assert len(coap._routes) == 1 + 16
    assert max(map(len, coap._routes)) < 512


async def test_a_device_over_its_quota_is_told_when_to_come_again_and_nobody_else_is(
    plain: World,
) -> None:
    device_id, token = await plain.device()
    _, other_token = await plain.device()
    plain.app.state.reception.quotas._rate = Rate(per_second=0.1, burst=3)
    async with wire(plain) as quick, wire(plain) as other:
        for mid in range(6):
            quick.send(telemetry(token, b'{"temp": %d}' % mid, mid))
            await quick.until_got(mid + 1)
        other.send(telemetry(other_token, b'{"temp": 1}', 1))
        assert (await other.until_got(1))[0][1] == Code.CHANGED
        answers = [Coap.decode(answer) for answer in quick.got]
        poll = Coap(
            code=Code.GET, uri_path=("v1", token, "latest"), _mid=50, _mtype=CON, _token=b""
        )
        quick.send(poll.encode())
        assert (await quick.until_got(7))[6][1] == Code.TOO_MANY_REQUESTS
    assert [answer.code for answer in answers] == [Code.CHANGED] * 4 + [Code.TOO_MANY_REQUESTS] * 2
    assert 1 <= (answers[-1].opt.max_age or 0) <= 20
    assert b"over its quota" in answers[-1].payload

    async def is_told() -> bool:
        found = await plain.http.get(f"/api/v1/devices/{device_id}", headers=plain.headers)
        return "over its quota" in (found.json()["status_reason"] or "")

    await until(is_told, "on its status page")


async def test_what_waits_for_the_database_is_bounded_though_the_device_was_told_to_come_again(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await plain.device()
    coap = plain.app.state.coap

    async def away(*_: object) -> None:
        raise Unavailable("the database is away")

    async with wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 1}', 1))
        await device.until_got(1)
        monkeypatch.setattr(plain.app.state.sources, "register", away)
        coap.limits = replace(coap.limits, answer_within_s=0.0)
        [guest] = coap.guests.values()
        for mid in range(2, 200):
            device.send(telemetry(token, b'{"new": %d}' % mid, mid))
            await until(lambda mid=mid: len(device.got) + len(coap._waiting) >= mid, "seen")  # type: ignore[misc]  # bound at once
            coap._tick()
        assert guest.in_hand == 64
        assert {answer[1] for answer in device.got[1:]} == {Code.SERVICE_UNAVAILABLE}
        monkeypatch.undo()
        await until(lambda: guest.in_hand == 0, "taken when it is back")


async def test_a_fault_of_ours_in_one_datagram_ends_nothing(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await plain.device()
    coap = plain.app.state.coap
    async with wire(plain) as device:
        device.send(telemetry(token, b'{"temp": 1}', 1))
        await device.until_got(1)
        with monkeypatch.context() as patch:
            patch.setattr(coap, "_take", lambda *_: 1 / 0)
            device.send(telemetry(token, b'{"temp": 2}', 2))
            await until(lambda: coap.failed == 1, "noticed")
        device.send(telemetry(token, b'{"temp": 3}', 3))
        await device.until_got(2)
    assert [v for _, _, v in await plain.until_stored(device_id, 2)] == [1.0, 3.0]
