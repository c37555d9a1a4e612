"""How answers travel: not again if the client has them, and small.

What a service answers whole is tagged, so that a client that has it is told no more than that
(RFC 9110, section 13), and packed, if the client unpacks. What streams goes on as a stream.
"""

import hashlib
import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.http.doorway import ROUTE
from services.gateway.domain.routes import API

TAGGED = 256 * 1024
"""Bytes: larger answers get no tag."""
PACKED_FROM = 1024
"""Bytes: smaller answers hardly become smaller."""
_LEVEL = 1
"""The quickest: on JSON it saves nearly as much as the others, and others wait meanwhile."""
_NAMES_OF_ROUTE = (ROUTE, "route", "endpoint")
"""Where the scope says which route it was, for log and metrics."""
_READING = frozenset({"GET", "HEAD"})
# Packed, a secret beside what somebody else chose can be guessed from the length (BREACH). Answers that
# carry secrets are those of logins, and of what is created: keys and tokens are shown once.
_WITH_SECRETS = f"{API}auth/"
_PACKABLE = (
    b"application/json",
    b"application/problem+json",
    b"application/x-ndjson",
    b"application/manifest+json",
    b"image/svg+xml",
    b"text/",
)
_OF_THE_BODY = frozenset({b"content-length", b"content-type", b"content-encoding"})
"""What a 304 does not say (RFC 9110, section 15.4.5)."""


class Answers:
    """Tags and packs answers to requests that read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["method"] not in _READING:
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        if scope["method"] == "GET" or not scope["path"].startswith(API):
            await self._app(scope, receive, answer.send)
            return
        # Services have routes that GET; HEAD is the same without the body (RFC 9110, section 9.3.2).
        asked = {**scope, "method": "GET"}
        await self._app(asked, receive, answer.send)
        scope.update({key: asked[key] for key in _NAMES_OF_ROUTE if key in asked})


class _Answer:
    """One answer on its way out."""

    __slots__ = ("_if_none_match", "_is_head", "_packer", "_packs", "_path", "_send", "_start")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._path: str = scope["path"]
        self._is_head = scope["method"] == "HEAD"
        self._send = send
        self._start: Message | None = None
        self._packer: zlib._Compress | None = None
        self._if_none_match: bytes | None = None
        self._packs = False
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                self._if_none_match = value
            elif name == b"accept-encoding":
                self._packs = _takes_gzip(value)

    async def send(self, message: Message) -> None:
        """Send a message on; the head waits for the first piece of the body."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        if self._start is None:
            if not self._is_head:
                await self._send(self._pack(message))
            return
        start, self._start = self._start, None
        body, is_whole = message.get("body", b""), not message.get("more_body", False)
        if start["status"] != 200:
            await self._go(start, message)
            return
        headers: list[tuple[bytes, bytes]] = list(start["headers"])
        said = dict(headers)
        tag = said.get(b"etag")
        if (
            is_whole
            and self._path.startswith(API)
            and not self._path.startswith(_WITH_SECRETS)
            and tag is None
            and b"no-store" not in said.get(b"cache-control", b"")
        ):
            if len(body) <= TAGGED:
                tag = b'W/"' + hashlib.blake2b(body, digest_size=12).hexdigest().encode() + b'"'
                headers.append((b"etag", tag))
            if b"cache-control" not in said:
                # Whoever keeps it asks each time whether it still holds; and nobody in between keeps it.
                headers.append((b"cache-control", b"no-cache, private"))
        if tag and is_whole and self._if_none_match and _has(tag, self._if_none_match):
            left = [header for header in headers if header[0] not in _OF_THE_BODY]
            await self._send({**start, "status": 304, "headers": left})
            await self._send({"type": "http.response.body", "body": b""})
            return
        can_pack = (
            b"content-encoding" not in said
            and said.get(b"content-type", b"").startswith(_PACKABLE)
            and not self._path.startswith(_WITH_SECRETS)
        )
        if can_pack:
            headers.append((b"vary", b"Accept-Encoding"))
        if can_pack and self._packs and (not is_whole or len(body) >= PACKED_FROM):
            self._packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
            message = self._pack(message)
            headers = [
                (name, _weak(value) if name == b"etag" else value)
                for name, value in headers
                if name != b"content-length" and name != b"accept-ranges"
            ]
            headers.append((b"content-encoding", b"gzip"))
            if is_whole:
                headers.append((b"content-length", str(len(message["body"])).encode()))
        await self._go({**start, "headers": headers}, message)

    async def _go(self, start: Message, first: Message) -> None:
        await self._send(start)
        await self._send({"type": first["type"], "body": b""} if self._is_head else first)

    def _pack(self, message: Message) -> Message:
        if self._packer is None:
            return message
        is_last = not message.get("more_body", False)
        packed = self._packer.compress(message.get("body", b""))
        # Each piece leaves as it came: a stream stays one.
        packed += self._packer.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)
        return {**message, "body": packed}


def _takes_gzip(accepted: bytes) -> bool:
    """Whether a client unpacks gzip: it is named, or all is, and not with q=0."""
    found: dict[bytes, bool] = {}
    for part in accepted.lower().split(b","):
        name, _, parameter = part.strip().partition(b";")
        weight = parameter.strip().removeprefix(b"q=")
        found[name.strip()] = not parameter or weight.strip(b"0.") != b""
    return found.get(b"gzip", found.get(b"*", False))


def _has(tag: bytes, if_none_match: bytes) -> bool:
    """Whether the client has what is tagged so; compared weakly, as it is for reading."""
    given = [one.strip() for one in if_none_match.split(b",")]
    return given == [b"*"] or _opaque(tag) in {_opaque(one) for one in given}


def _opaque(tag: bytes) -> bytes:
    return tag.removeprefix(b"W/")


def _weak(tag: bytes) -> bytes:
    return tag if tag.startswith(b"W/") else b"W/" + tag
