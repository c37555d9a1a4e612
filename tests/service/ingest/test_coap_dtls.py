"""Devices that share a key with us speak CoAP over DTLS, whatever else their tenant allows.

libcoap's clients show that others' devices can; the rest is said by OpenSSL's client half, whose datagrams
can be lost, kept and forged here.
"""

import asyncio
import json
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import aiocoap
import pytest
from aiocoap.numbers import Code
from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.protocols.coap.dtls import MOST_OF_DEVICE, Dtls
from services.ingest.settings import Settings
from tests.database import DatabaseUrls
from tests.service.ingest.conftest import World
from tests.waiting import until

LOOPBACK = "127.0.0.1"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "coap_host": LOOPBACK,
            "coap_port": 0,
            "coap_dtls_port": 0,
            "coap_dtls_sessions": MOST_OF_DEVICE + 2,
        }
    )


class Client(asyncio.DatagramProtocol):
    """A device's half of DTLS, by OpenSSL."""

    def __init__(self, identity: str, secret: str) -> None:
        key = bytes.fromhex(secret)

        def show(_: object, __: object, name: object, ___: int, room: object, ____: int) -> int:
            ffi.memmove(name, identity.encode() + b"\0", len(identity) + 1)
            ffi.memmove(room, key, len(key))
            return len(key)

        self._callback = ffi.callback(
            "unsigned int (*)(SSL *, const char *, char *, unsigned int,"
            " unsigned char *, unsigned int)",
            show,
        )
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        # What RFC 7252 asks of each device.
        context.set_cipher_list(b"PSK-AES128-CCM8:@SECLEVEL=0")
        context.set_options(SSL.OP_NO_QUERY_MTU)
        lib.SSL_CTX_set_psk_client_callback(context._context, self._callback)
        self._context = context
        self.sent: list[bytes] = []
        """Datagrams as they left."""
        self.datagrams: list[bytes] = []
        """What was in those that came."""
        self.heard: list[aiocoap.Message] = []
        self.came = 0
        self.loses = 0
        """Which of the datagrams that come is lost, counted from 1."""
        self.is_closed = False
        """Whether the other side ended the session."""
        self.is_open = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the session, as a device does that was switched off."""
        self.is_open = self.is_closed = False
        self.connection = SSL.Connection(self._context, None)
        self.connection.set_connect_state()
        self.connection.set_ciphertext_mtu(1280)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.came += 1
        if self.came == self.loses:
            return
        self.connection.bio_write(data)
        self.go_on()

    def go_on(self) -> None:
        """Do what OpenSSL has to do, and send what it has to say."""
        try:
            if not self.is_open:
                self.connection.do_handshake()
                self.is_open = True
            while True:
                self.datagrams.append(self.connection.recv(16_384))
                self.heard.append(aiocoap.Message.decode(self.datagrams[-1]))
        except SSL.WantReadError:
            pass
        except SSL.Error:
            self.is_closed = True
        self.flush()

    def flush(self) -> None:
        with suppress(SSL.Error):
            self.sent.append(self.connection.bio_read(65_507))
            self.transport.sendto(self.sent[-1])

    async def shake_hands(self) -> None:
        self.go_on()
        await until(lambda: self.is_open or self.is_closed, "the end of the handshake")
        assert self.is_open, "no session"

    def say(self, message: aiocoap.Message) -> None:
        self.connection.send(message.encode())
        self.flush()

    async def ask(self, message: aiocoap.Message) -> aiocoap.Message:
        self.say(message)

        def answers() -> list[aiocoap.Message]:
            return [answer for answer in self.heard if answer.token == message.token]

        await until(lambda: bool(answers()), "an answer")
        return answers()[0]


def discovery() -> aiocoap.Message:
    message = aiocoap.Message(code=Code.GET, uri_path=(".well-known", "core"))
    message.mtype, message.mid, message.token = aiocoap.CON, 1, b"d"
    return message


def telemetry(payload: bytes, mid: int = 1, token: bytes = b"t") -> aiocoap.Message:
    message = aiocoap.Message(
        code=Code.POST, payload=payload, uri_path=("v1", "telemetry"), content_format=50
    )
    message.mtype, message.mid, message.token = aiocoap.CON, mid, token
    return message


async def give_key(world: World, device_id: UUID) -> tuple[str, str]:
    answer = await world.http.post(
        f"/api/v1/devices/{device_id}/credentials", json={"kind": "psk"}, headers=world.headers
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["identity"], answer.json()["secret"]


class Plant:
    """Makes devices with keys, and connects them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clients: list[Client] = []

    @property
    def dtls(self) -> Dtls:
        dtls: Dtls = self.world.app.state.dtls
        return dtls

    async def device(self) -> tuple[UUID, str, str]:
        device_id, _ = await self.world.device()
        return device_id, *await give_key(self.world, device_id)

    async def client(self, identity: str, secret: str) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_datagram_endpoint(
            lambda: Client(identity, secret),
            remote_addr=(LOOPBACK, self.world.app.state.coap_dtls_port),
        )
        self.clients.append(client)
        return client

    async def connected(self) -> tuple[UUID, Client]:
        device_id, identity, secret = await self.device()
        client = await self.client(identity, secret)
        await client.shake_hands()
        return device_id, client


@pytest.fixture
async def plant(world: World) -> AsyncIterator[Plant]:
    plant = Plant(world)
    yield plant
    for client in plant.clients:
        client.transport.close()


@pytest.mark.parametrize("library", ["openssl", "gnutls"])
async def test_a_stock_client_sends_a_point(plant: Plant, library: str) -> None:
    device_id, identity, secret = await plant.device()
    port = plant.world.app.state.coap_dtls_port
    program = shutil.which(f"coap-client-{library}")
    if program is None:
        pytest.fail(f"coap-client-{library} is missing: install libcoap3-bin")
    sending = await asyncio.create_subprocess_exec(
        *(program, "-B", "10", "-m", "post", "-t", "50", "-e", '{"temp": 21.5}'),
        *("-u", identity, "-k", bytes.fromhex(secret).decode()),
        f"coaps://{LOOPBACK}:{port}/v1/telemetry",
    )
    assert await asyncio.wait_for(sending.wait(), 20) == 0
    points = await plant.world.until_stored(device_id, 1)
    assert [(metric, value) for metric, _, value in points] == [("temp", 21.5)]


async def test_the_same_words_of_two_devices_are_each_ones_own(plant: Plant) -> None:
    (one, first), (other, second) = await plant.connected(), await plant.connected()
    for client in (first, second):
        assert (await client.ask(telemetry(b'{"temp": 1}'))).code is Code.CHANGED
    assert len(await plant.world.until_stored(one, 1)) == 1
    assert len(await plant.world.until_stored(other, 1)) == 1


async def test_another_devices_token_in_the_path_changes_nothing(plant: Plant) -> None:
    device_id, client = await plant.connected()
    other, token = await plant.world.device()
    message = telemetry(b'{"temp": 1}')
    message.opt.uri_path = ("v1", token, "telemetry")
    assert (await client.ask(message)).code is Code.CHANGED
    assert len(await plant.world.until_stored(device_id, 1)) == 1
    assert await plant.world.stored(other) == []


async def test_what_is_sent_twice_is_taken_once_also_in_a_new_session(plant: Plant) -> None:
    device_id, client = await plant.connected()
    once = telemetry(b'{"once": 1}')
    await client.ask(once)
    client.say(once)
    await until(lambda: len(client.heard) == 2, "the answer once more")
    assert client.datagrams[0] == client.datagrams[1]

    ts = int(datetime.now(UTC).timestamp() * 1000)
    again = telemetry(json.dumps({"ts": ts, "values": {"again": 1}}).encode(), 2, b"again")
    await client.ask(again)
    client.begin_anew()
    await client.shake_hands()
    client.say(again)
    await until(lambda: len(client.heard) == 4, "an answer in the new session")
    client.say(once)  # a device that was switched off counts from 1 again: this is a new message
    await until(lambda: len(client.heard) == 5, "its answer")
    await client.ask(telemetry(b'{"last": 1}', 3, b"last"))
    points = await plant.world.until_stored(device_id, 4)
    assert sorted(metric for metric, _, _ in points) == ["again", "last", "once", "once"]
    assert plant.dtls.sessions == 1, "the one before it gave way: the address is the same"


async def test_a_device_observes_its_commands(plant: Plant) -> None:
    device_id, client = await plant.connected()
    observing = aiocoap.Message(code=Code.GET, uri_path=("v1", "commands"), observe=0)
    observing.mtype, observing.mid, observing.token = aiocoap.CON, 1, b"c"
    assert (await client.ask(observing)).opt.observe is not None
    answer = await plant.world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": "stop", "params": {}},
        headers=plant.world.headers,
    )
    assert answer.status_code == 201, answer.text
    await until(lambda: len(client.heard) == 2, "the command")
    assert json.loads(client.heard[1].payload)["name"] == "stop"


@pytest.mark.parametrize("is_known", [True, False], ids=["wrong key", "unknown identity"])
async def test_who_shows_no_key_gets_no_session_and_is_counted(
    plant: Plant, is_known: bool
) -> None:
    _, identity, _ = await plant.device()
    shown = identity if is_known else secrets.token_hex(16)
    client = await plant.client(shown, secrets.token_hex(32))
    client.go_on()
    budgets = plant.world.app.state.reception.guesses._budgets
    await until(lambda: LOOPBACK in budgets, "a guess that counts")
    await until(lambda: plant.dtls.sessions == 0, "no session")
    assert not client.is_open
    assert client.is_closed is not is_known, "that it is unknown is said"


async def test_a_wrong_key_does_not_keep_the_device_out(plant: Plant) -> None:
    _, identity, secret = await plant.device()
    guesser = await plant.client(identity, secrets.token_hex(32))
    guesser.go_on()
    guesses = plant.world.app.state.reception.guesses
    await until(lambda: bool(guesses._refused), "a guess that counts")
    client = await plant.client(identity, secret)
    await client.shake_hands()


async def test_plain_datagrams_are_ignored_on_the_dtls_port(plant: Plant) -> None:
    _, token = await plant.world.device()
    plain = telemetry(b'{"temp": 1}')
    plain.opt.uri_path = ("v1", token, "telemetry")
    address = (LOOPBACK, plant.world.app.state.coap_dtls_port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.sendto(plain.encode(), address)
        await until(lambda: plant.dtls.ignored == 1, "it came")
        await plant.connected()  # what is answered at all is answered by then
        with pytest.raises(BlockingIOError):
            stranger.recv(2_048)


async def test_nothing_is_kept_of_hellos_from_forged_addresses(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = await plant.connected()
    without_cookie, with_cookie = client.sent[:2]
    assert len(with_cookie) > len(without_cookie)
    dtls = plant.dtls
    answers: list[bytes] = []
    wire = SimpleNamespace(
        sendto=lambda data, _: answers.append(data), is_closing=lambda: False, close=lambda: None
    )
    monkeypatch.setattr(dtls, "_transport", wire)
    for hello in (without_cookie, with_cookie):
        for number in range(1_000):
            dtls.datagram_received(hello, (f"192.0.2.{number % 256}", 1_024 + number))
    assert dtls.sessions == 1, "the device's"
    assert (dtls.failed, len(answers)) == (0, 2_000)
    assert max(map(len, answers)) <= len(without_cookie), "nobody is flooded by us"


async def test_forged_datagrams_do_not_end_a_session(plant: Plant) -> None:
    device_id, client = await plant.connected()
    address = client.transport.get_extra_info("sockname")
    hello, with_cookie, last_flight = client.sent[:3]
    alert = bytes.fromhex("15fefd 0000 0000000000ff 0002 0228")
    encrypted = bytes.fromhex("17fefd 0001 000000000007 0040") + secrets.token_bytes(64)
    for forged in (b"", b"\x16", hello, with_cookie, last_flight, alert, encrypted, encrypted[:30]):
        plant.dtls.datagram_received(forged, address)
    assert (plant.dtls.sessions, plant.dtls.failed) == (1, 0)
    assert (await client.ask(telemetry(b'{"temp": 1}'))).code is Code.CHANGED
    assert len(await plant.world.until_stored(device_id, 1)) == 1


async def test_a_removed_device_is_cut_within_five_seconds(plant: Plant) -> None:
    device_id, client = await plant.connected()
    await client.ask(telemetry(b'{"temp": 1}'))
    await plant.world.http.delete(f"/api/v1/devices/{device_id}", headers=plant.world.headers)
    await until(lambda: client.is_closed, "cut", within_s=5)
    assert plant.dtls.sessions == 0
    client.begin_anew()
    with pytest.raises(AssertionError, match="no session"):
        await client.shake_hands()


async def test_a_device_has_a_few_sessions_and_the_idlest_of_all_gives_way(plant: Plant) -> None:
    _, talker = await plant.connected()
    _, quiet = await plant.connected()
    _, identity, secret = await plant.device()
    for _ in range(MOST_OF_DEVICE + 1):
        roaming = await plant.client(identity, secret)
        await roaming.shake_hands()
    assert plant.dtls.sessions == MOST_OF_DEVICE + 2
    await talker.ask(telemetry(b'{"temp": 1}'))
    assert not quiet.is_closed, "a device that roams takes nobody's place"
    await plant.connected()
    await until(lambda: quiet.is_closed, "the idlest was told")
    assert plant.dtls.sessions == MOST_OF_DEVICE + 2
    assert not talker.is_closed


async def test_what_is_lost_in_the_handshake_is_sent_again(plant: Plant) -> None:
    _, identity, secret = await plant.device()
    client = await plant.client(identity, secret)
    client.loses = 2  # after the cookie, what answers its return
    await client.shake_hands()
    assert client.came > client.loses


async def test_without_its_package_the_service_says_what_to_install(
    settings: Settings, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "services.ingest.protocols.coap.dtls")
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    app = build(settings, LocalBus(database_urls.bus, SystemClock()), SystemClock())
    with pytest.raises(RuntimeError, match="pip install"):
        async with app.router.lifespan_context(app):
            pass


async def test_who_proved_where_he_is_discovers_all_there_is_at_once(plant: Plant) -> None:
    _, client = await plant.connected()
    answer = await client.ask(discovery())
    assert answer.opt.block2 is None
    assert b"</v1/latest>" in answer.payload
