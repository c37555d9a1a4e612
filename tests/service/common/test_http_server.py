"""What a client may make an HTTP server hold before anybody knows who it is. Over real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network

import httpx2
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import connect

from libs.common.http.bounds import Bounds
from libs.common.http.server import ServerConfig
from tests.waiting import until


class Echo:
    """Reads a body to its end, and answers with what was asked; remembers what became of it."""

    def __init__(self) -> None:
        self.heads: list[Scope] = []
        self.gone = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        self.heads.append(scope)
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = b"x" * 50_000_000 if scope["path"] == "/big" else b"ok"
        await send({"type": "http.response.body", "body": body})


Served = Callable[..., contextlib.AbstractAsyncContextManager[int]]


@contextlib.asynccontextmanager
async def serving(app: Echo, bounds: Bounds) -> AsyncIterator[int]:
    """Serve the app within the bounds; gives the port."""
    server = uvicorn.Server(ServerConfig(app, bounds, lifespan="off", drain_s=0))
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started, "the server listens")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


class Client:
    """A client that sends what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send, as far as the server takes it."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def head(self) -> bytes:
        """Return the head of an answer; what came of it if the server closed before its end."""
        try:
            async with asyncio.timeout(10):
                return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""

    async def rest(self) -> bytes:
        """Return all that comes until the server closes, which it must."""
        try:
            async with asyncio.timeout(10):
                return await self._reader.read()
        except ConnectionError:
            return b""


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    """Connect."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def test_what_is_within_bounds_passes_and_the_connection_is_kept() -> None:
    app = Echo()
    async with serving(app, Bounds(head_bytes=4096)) as port, client(port) as one:
        for _ in range(3):
            await one.send(GET + b"a: " + b"x" * 3000 + b"\r\n\r\n")
            assert (await one.head()).startswith(b"HTTP/1.1 200")
            await one._reader.readuntil(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        GET + b"a: " + b"x" * 100_000 + b"\r\n\r\n",
        GET + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        # These never end.
        GET + b"a: " + b"x" * 1_000_000,
        GET + b"x" * 1_000_000,
    ],
    ids=["long header", "many headers", "long address", "endless header", "endless name"],
)
async def test_a_head_that_is_too_long_is_refused(head: bytes) -> None:
    app = Echo()
    async with serving(app, Bounds()) as port, client(port) as one:
        sending = asyncio.create_task(one.send(head))
        assert (await one.head()).startswith(b"HTTP/1.1 431") or not app.heads
        await one.rest()
        await sending
        assert not app.heads


async def test_a_head_that_comes_by_drops_has_one_deadline_in_all() -> None:
    app = Echo()
    async with serving(app, Bounds(head_within_s=0.5)) as port, client(port) as one:
        answered = asyncio.create_task(one.head())
        await one.send(GET)
        while not answered.done():
            await one.send(b"a: b\r\n")
            await asyncio.wait([answered], timeout=0.05)
        assert (await answered).startswith(b"HTTP/1.1 408")
        assert not app.heads


async def test_who_says_nothing_is_hung_up_on() -> None:
    async with serving(Echo(), Bounds(head_within_s=0.2)) as port, client(port) as one:
        assert await one.rest() == b""


@pytest.mark.parametrize("idle", [b"\r\n", b"GE"])
async def test_a_kept_connection_has_the_deadline_for_each_request_anew(idle: bytes) -> None:
    async with serving(Echo(), Bounds(head_within_s=0.3)) as port, client(port) as one:
        await one.send(GET + b"\r\n")
        assert (await one.head()).startswith(b"HTTP/1.1 200")
        await one._reader.readuntil(b"0\r\n\r\n")
        # Shorter than uvicorn's own time for a connection that nobody uses, which ends at a byte.
        await one.send(idle)
        async with asyncio.timeout(3):
            await one.rest()


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", b"x"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x"),
    ],
    ids=["of a length", "in chunks", "in the name of a chunk"],
)
async def test_a_body_that_comes_by_drops_ends(head: bytes, drop: bytes) -> None:
    app = Echo()
    bounds = Bounds(body_within_s=0.3, body_rate=1_000)
    async with serving(app, bounds) as port, client(port) as one:
        ended = asyncio.create_task(one.rest())
        await one.send(head)
        while not ended.done():
            await one.send(drop)
            await asyncio.wait([ended], timeout=0.02)
        await until(lambda: app.gone == 1, "the app is told")


async def test_a_body_that_comes_fast_enough_may_take_its_time() -> None:
    app = Echo()
    bounds = Bounds(body_within_s=0.2, body_rate=1_000)
    async with serving(app, bounds) as port, client(port) as one:
        began = asyncio.get_running_loop().time()
        await one.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 20000\r\n\r\n")
        answered = asyncio.create_task(one.head())
        for _ in range(20):
            await one.send(b"x" * 1_000)
            await asyncio.wait([answered], timeout=0.05)
        assert (await answered).startswith(b"HTTP/1.1 200")
        assert asyncio.get_running_loop().time() - began > 2 * bounds.body_within_s


async def test_trailers_do_not_change_the_head_that_the_app_has() -> None:
    app = Echo()
    async with serving(app, Bounds()) as port, client(port) as one:
        await one.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        await one.send(b"0\r\nx-iiot-principal: forged\r\n\r\n")
        assert (await one.head()).startswith(b"HTTP/1.1 200")
        assert [name for name, _ in app.heads[0]["headers"]] == [b"host", b"transfer-encoding"]


async def test_who_does_not_read_the_answer_is_cut_off() -> None:
    app = Echo()
    async with serving(app, Bounds(answer_within_s=0.3)) as port:
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: bool(app.heads), "it is answered")
            async with httpx2.AsyncClient(trust_env=False) as other:
                assert (await other.get(f"http://127.0.0.1:{port}/")).text == "ok"

            def is_cut() -> bool:
                try:
                    deaf.send(b"x", socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return False
                except ConnectionError:
                    return True
                return False

            await until(is_cut, "the connection is gone")


async def test_an_address_may_hold_so_many_connections_and_others_come_in() -> None:
    async with serving(Echo(), Bounds(connections_per_address=2)) as port:
        async with client(port), client(port), client(port) as third:
            assert (await third.head()).startswith(b"HTTP/1.1 503")
        async with client(port):

            async def is_let_in() -> bool:
                async with client(port) as again:
                    await again.send(GET + b"\r\n")
                    return (await again.head()).startswith(b"HTTP/1.1 200")

            await until(is_let_in, "there is room again")


async def test_a_proxy_of_ours_may_hold_as_many_as_there_are() -> None:
    bounds = Bounds(connections_per_address=1, proxies=(ip_network("127.0.0.0/8"),))
    async with serving(Echo(), bounds) as port, client(port), client(port) as second:
        await second.send(GET + b"\r\n")
        assert (await second.head()).startswith(b"HTTP/1.1 200")


async def test_websockets_count_against_all_connections_and_not_against_the_address() -> None:
    bounds = Bounds(connections=3, connections_per_address=2)
    async with serving(Echo(), bounds) as port:
        address = f"ws://127.0.0.1:{port}/"
        async with (
            connect(address, proxy=None),
            connect(address, proxy=None),
            client(port),
            client(port) as fourth,
        ):
            assert (await fourth.head()).startswith(b"HTTP/1.1 503")
