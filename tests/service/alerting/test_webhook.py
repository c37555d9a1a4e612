"""Webhooks over real sockets: receivers that behave, that do not, and that lead elsewhere."""

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address

import httpcore2
import pytest
import trustme
from standardwebhooks import Webhook

from libs.common.outbound import (
    MAX_READ_BYTES,
    Address,
    Blocked,
    Guard,
    OutboundClient,
    Unreachable,
)
from services.alerting.adapters.webhook import WebhookSender, write_secret
from services.alerting.domain.outcome import Delivered, Gone, Refused, Retry
from tests.notices import a_notice

BASE = "https://console.example/"
SECRET = write_secret(b"s" * 32)
LOOPBACK = IPv4Address("127.0.0.1")
PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Receiver:
    """A server on loopback that keeps what it was sent and answers as it is told."""

    def __init__(self, answer: bytes | Answer) -> None:
        self._answer = answer
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.connections = 0
        self.sent = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            headers[":line"] = head[0]
            raw = {line.split(":")[0].lower(): line.split(": ", 1)[1] for line in head[1:] if line}
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append((headers | raw, body))
            if isinstance(self._answer, bytes):
                writer.write(self._answer)
                await writer.drain()
            else:
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiving(
    answer: bytes | Answer = OK, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    receiver = Receiver(answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(receiver.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def client_for(
    *receivers: Receiver, time_limit: timedelta = timedelta(seconds=10)
) -> OutboundClient:
    allow = frozenset((LOOPBACK, receiver.port) for receiver in receivers)
    return OutboundClient(Guard(allow), time_limit=time_limit)


def sender_for(*receivers: Receiver) -> WebhookSender:
    return WebhookSender(client_for(*receivers), BASE)


class Dialer(httpcore2.AsyncNetworkBackend):
    """Notes which address is dialled; leads the known ones to a server of ours."""

    def __init__(self, routes: dict[str, int] | None = None) -> None:
        self.dialled: list[str] = []
        self._routes = routes or {}
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.dialled.append(host)
        if host not in self._routes:
            raise httpcore2.ConnectError("nobody there")
        return await self._inner.connect_tcp("127.0.0.1", self._routes[host])


class Names:
    """A resolver that gives one set of answers after the other, the last for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [ip_address(address) for address in answer]


async def test_a_receiver_gets_the_signed_bytes_and_nothing_else() -> None:
    async with receiving() as receiver:
        now = datetime.now(UTC)
        outcome = await sender_for(receiver).send(a_notice(), receiver.url, [SECRET], now=now)

    assert outcome == Delivered("HTTP 200")
    [(headers, body)] = receiver.requests
    told = Webhook(SECRET).verify(body, headers)
    assert told["data"]["title"] == "Bearing runs hot"
    assert headers[":line"] == "POST /hook?a=1 HTTP/1.1"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["webhook-id"] == str(a_notice().notification_id)
    assert "cookie" not in headers


async def test_a_repeated_delivery_has_the_same_id_and_body() -> None:
    async with receiving(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n") as receiver:
        sender = sender_for(receiver)
        for minutes in (0, 1):
            now = datetime.now(UTC) + timedelta(minutes=minutes)
            outcome = await sender.send(a_notice(), receiver.url, [SECRET], now=now)
            assert outcome == Retry("HTTP 500")

    (first, first_body), (second, second_body) = receiver.requests
    assert first["webhook-id"] == second["webhook-id"]
    assert first_body == second_body
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    assert receiver.connections == 2


async def test_a_receiver_that_is_gone_says_so() -> None:
    async with receiving(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n") as receiver:
        outcome = await sender_for(receiver).send(
            a_notice(), receiver.url, [SECRET], now=datetime.now(UTC)
        )

    assert outcome == Gone("HTTP 410")


async def test_a_webhook_without_a_secret_is_never_sent() -> None:
    async with receiving() as receiver:
        outcome = await sender_for(receiver).send(
            a_notice(), receiver.url, [], now=datetime.now(UTC)
        )

    assert isinstance(outcome, Refused)
    assert receiver.connections == 0


async def test_a_message_over_a_mebibyte_is_never_sent() -> None:
    async with receiving() as receiver:
        huge = a_notice(message="x" * 1024 * 1024)
        outcome = await sender_for(receiver).send(
            huge, receiver.url, [SECRET], now=datetime.now(UTC)
        )

    assert isinstance(outcome, Refused)
    assert receiver.connections == 0


class TestInnerNetwork:
    """Nothing of ours is ever connected to, whichever way a URL leads there."""

    async def test_a_neighbour_of_the_excepted_port_sees_no_connection(self) -> None:
        async with receiving() as excepted, receiving() as neighbour:
            sender = sender_for(excepted)
            outcome = await sender.send(a_notice(), neighbour.url, [SECRET], now=datetime.now(UTC))
            assert isinstance(outcome, Refused)

        assert neighbour.connections == 0

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_is_not_followed(self, status: int) -> None:
        async with receiving() as target:
            redirect = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {target.url}\r\nContent-Length: 0\r\n\r\n"
            async with receiving(redirect.encode()) as receiver:
                # Even where the target itself would be allowed.
                outcome = await sender_for(receiver, target).send(
                    a_notice(), receiver.url, [SECRET], now=datetime.now(UTC)
                )

        assert outcome == Retry(f"HTTP {status}")
        assert target.connections == 0

    async def test_a_proxy_in_the_environment_is_ignored(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with receiving() as proxy, receiving() as receiver:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
                monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
            reply = await client_for(receiver).post(receiver.url, b"{}", {})

        assert reply.status == 200
        assert proxy.connections == 0

    async def test_a_name_that_turns_to_us_after_it_was_entered_is_refused(self) -> None:
        names = Names([PUBLIC], ["127.0.0.1"])
        dialer = Dialer()
        sender = WebhookSender(OutboundClient(Guard(resolve=names), dial=dialer), BASE)
        url = "https://rebinding.example.com/"

        await sender.check(url)
        outcome = await sender.send(a_notice(), url, [SECRET], now=datetime.now(UTC))

        assert isinstance(outcome, Refused)
        assert "127.0.0.1" not in outcome.reason
        assert dialer.dialled == []

    async def test_what_was_judged_is_what_is_dialled(self) -> None:
        names = Names([PUBLIC], ["127.0.0.1"])
        dialer = Dialer()
        client = OutboundClient(Guard(resolve=names), dial=dialer)

        with pytest.raises(Unreachable):
            await client.post("https://rebinding.example.com/", b"{}", {})

        assert names.asked == 1
        assert dialer.dialled == [PUBLIC]

    @pytest.mark.parametrize("answers", [[PUBLIC, "10.0.0.1"], ["::1", PUBLIC]])
    async def test_one_inner_answer_among_public_ones_stops_the_delivery(
        self, answers: list[str]
    ) -> None:
        dialer = Dialer()
        client = OutboundClient(Guard(resolve=Names(answers)), dial=dialer)

        with pytest.raises(Blocked):
            await client.post("https://mixed.example.com/", b"{}", {})

        assert dialer.dialled == []


class TestTls:
    authority = trustme.CA()

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def certified(self, name: str) -> tuple[ssl.SSLContext, list[str]]:
        asked: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(name).configure_cert(context)
        context.sni_callback = lambda _socket, server_name, _context: asked.append(server_name)
        return context, asked

    async def test_the_name_is_kept_though_the_address_is_dialled(self) -> None:
        tls, asked = self.certified("hooks.example.com")
        async with receiving(tls=tls) as receiver:
            # The first of two addresses is down.
            dialer = Dialer({PUBLIC: receiver.port})
            guard = Guard(resolve=Names(["2606:4700::1", PUBLIC]))
            client = OutboundClient(guard, ssl_context=self.trusting(), dial=dialer)
            reply = await client.post("https://hooks.example.com:8443/x", b"{}", {})

        assert reply.status == 200
        assert dialer.dialled == ["2606:4700::1", PUBLIC]
        assert asked == ["hooks.example.com"]
        assert receiver.requests[0][0]["host"] == "hooks.example.com:8443"

    async def test_a_certificate_for_another_name_is_not_accepted(self) -> None:
        tls, _ = self.certified("other.example.com")
        async with receiving(tls=tls) as receiver:
            dialer = Dialer({PUBLIC: receiver.port})
            guard = Guard(resolve=Names([PUBLIC]))
            client = OutboundClient(guard, ssl_context=self.trusting(), dial=dialer)
            with pytest.raises(Unreachable, match="not trusted"):
                await client.post("https://hooks.example.com/", b"{}", {})

        assert receiver.requests == []


class TestBadReceivers:
    limit = timedelta(seconds=0.5)

    async def test_one_that_never_answers_is_given_up_on(self) -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with receiving(silent) as receiver:
            started = time.monotonic()
            with pytest.raises(Unreachable, match="no reply within"):
                await client_for(receiver, time_limit=self.limit).post(receiver.url, b"{}", {})

        assert time.monotonic() - started < 5

    async def test_one_that_drips_its_headers_is_given_up_on(self) -> None:
        async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"X-More: 1\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

        async with receiving(drip) as receiver:
            with pytest.raises(Unreachable):
                await client_for(receiver, time_limit=self.limit).post(receiver.url, b"{}", {})

    async def test_one_that_drips_its_body_has_answered_and_is_cut_at_the_limit(self) -> None:
        async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.02)

        async with receiving(drip) as receiver:
            started = time.monotonic()
            reply = await client_for(receiver, time_limit=self.limit).post(receiver.url, b"{}", {})

        assert time.monotonic() - started < 5
        assert (reply.status, reply.whole) == (200, False)
        assert reply.body
        assert set(reply.body) == {ord("a")}

    async def test_ten_gigabytes_are_not_read(self) -> None:
        sent = 0
        cut = asyncio.Event()

        async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
            try:
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    sent += 65536
            finally:
                cut.set()

        async with receiving(flood) as receiver:
            reply = await client_for(receiver).post(receiver.url, b"{}", {})
            await asyncio.wait_for(cut.wait(), 5)

        assert len(reply.body) == MAX_READ_BYTES
        assert not reply.whole
        # What the two sockets' buffers hold, not more.
        assert sent < 50_000_000

    async def test_a_compressed_bomb_stays_compressed(self) -> None:
        bomb = gzip.compress(b"\0" * 20_000_000)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"

        async with receiving(head.encode() + bomb) as receiver:
            reply = await client_for(receiver).post(receiver.url, b"{}", {})

        assert reply.body == bomb[:MAX_READ_BYTES]

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"220 mail.example ESMTP\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
        ],
    )
    async def test_what_is_not_http_is_no_answer(self, answer: bytes) -> None:
        async with receiving(answer) as receiver:
            with pytest.raises(Unreachable):
                await client_for(receiver).post(receiver.url, b"{}", {})

    async def test_a_body_that_breaks_off_does_not_undo_the_status(self) -> None:
        async with receiving(b"HTTP/1.1 204 OK\r\n\r\n") as empty:
            assert (await client_for(empty).post(empty.url, b"{}", {})).whole
        async with receiving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok") as broken:
            reply = await client_for(broken).post(broken.url, b"{}", {})

        assert (reply.status, reply.body, reply.whole) == (200, b"ok", False)

    async def test_one_that_is_down_is_tried_again(self) -> None:
        async with receiving() as receiver:
            pass
        outcome = await sender_for(receiver).send(
            a_notice(), receiver.url, [SECRET], now=datetime.now(UTC)
        )

        assert outcome == Retry("cannot connect")
