"""Heads that two servers in a row might read differently, and bodies that never come. Over real sockets."""

import pytest

from libs.common.http.bounds import Bounds
from tests.service.common.test_http_server import Echo, client, serving

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"content-length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        HEAD + CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        HEAD + b"content-length: 5, 5\r\n\r\nhello",
        HEAD + b"content-length: +5\r\n\r\nhello",
        HEAD + b"content-length: 0x5\r\n\r\nhello",
        HEAD + b"content-length: 5 5\r\n\r\nhello",
        HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding\x00: chunked\r\n\r\n0\r\n\r\n",
        HEAD + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: x\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        HEAD + CHUNKED + b"\r\n5\nhello\n0\r\n\r\n",
        HEAD + CHUNKED + b"\r\n-1\r\nhello\r\n0\r\n\r\n",
        HEAD + CHUNKED + b"\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nevil: a\x00b\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    sent: bytes,
) -> None:
    app = Echo()
    async with serving(app, Bounds()) as port, client(port) as one:
        await one.send(sent + b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await one.rest()
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"application/problem+json" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
    assert all(head["path"] != "/smuggled" for head in app.heads)


async def test_a_body_that_does_not_come_is_answered_with_408() -> None:
    app = Echo()
    async with serving(app, Bounds(body_within_s=0.2)) as port, client(port) as one:
        await one.send(HEAD + b"content-length: 100\r\n\r\nhalf of")
        answer = await one.rest()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request-timeout" in answer
    assert app.gone == 1


async def test_a_forwarded_header_is_nobodys_word() -> None:
    app = Echo()
    async with serving(app, Bounds()) as port, client(port) as one:
        await one.send(
            b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 203.0.113.7\r\n"
            b"x-forwarded-proto: https\r\nconnection: close\r\n\r\n"
        )
        assert b" 200 " in await one.rest()
    [head] = app.heads
    assert head["client"][0] == "127.0.0.1"
    assert head["scheme"] == "http"
