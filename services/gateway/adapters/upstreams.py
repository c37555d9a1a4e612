"""The services behind the gateway: each an app in this process, or at one or several addresses.

Both are spoken to as ASGI: `await upstream(scope, receive, send)` answers the request. The scope
given has only the headers that the service may see.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import aiohttp
import httpx2
import msgspec
import structlog
from multidict import CIMultiDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from libs.common.db.engine import unbound
from libs.common.errors import Unavailable
from services.gateway.domain.breaker import Breaker

log = structlog.get_logger(__name__)

SMALL = 256 * 1024
"""An answer up to this size is sent on whole."""
KEPT_ALIVE_S = 3.0
"""Shorter than the services keep a connection: else one would be used just as it is closed."""

# RFC 9110, section 7.6.1: these concern one connection. Date and Server are the gateway's own.
_NOT_PASSED = frozenset(
    {
        b"connection",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


_BODILESS = frozenset({"GET", "HEAD"})
_TYPE_IF_MISSING = ("content-type",)


class Upstream(Protocol):
    """A service."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises Unavailable, with nothing sent yet, if the service is away."""
        ...


class InProcess:
    """A service that runs in this process (the edge)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {
            "type": "http",
            "asgi": scope["asgi"],
            "http_version": scope["http_version"],
            "method": scope["method"],
            "scheme": scope["scheme"],
            "path": scope["path"],
            "raw_path": scope.get("raw_path"),
            "query_string": scope["query_string"],
            "root_path": "",
            "headers": scope["headers"],
            "client": scope.get("client"),
            "server": scope.get("server"),
        }
        # What this task is bound to is the gateway's, not the service's.
        with unbound():
            await self._app(inner, receive, send)


class Remote:
    """A service at an address, over connections that are kept."""

    def __init__(self, name: str, base_url: str, session: aiohttp.ClientSession) -> None:
        self._name = name
        self._base = base_url.rstrip("/")
        self._session = session
        self._breaker = Breaker()

    @property
    def is_resting(self) -> bool:
        """Whether it did not answer lately, and is given a pause."""
        return self._breaker.is_open(time.monotonic())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait_s = self._breaker.wait_s(time.monotonic())
        if wait_s > 0:
            raise self._away(wait_s)
        has_begun = False
        body = _Body(scope, receive)
        try:
            async with self._session.request(
                scope["method"],
                self._url(scope),
                headers=_headers(scope),
                data=await body.data(),
                skip_auto_headers=_TYPE_IF_MISSING if _has_no_type(scope) else None,
                allow_redirects=False,
            ) as answer:
                self._breaker.succeeded()
                has_begun = True
                await _send_on(answer, send)
        except _ClientGone:
            return
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            if isinstance(body.error, _ClientGone):
                return
            if has_begun:
                raise
            if body.error is not None:
                # The client broke the request off. The service did nothing wrong.
                raise body.error from None
            self._breaker.failed(time.monotonic())
            if isinstance(error, aiohttp.SocketTimeoutError):
                raise Unavailable(
                    f"the service {self._name} takes too long; what was asked may still be done",
                    retry_after_s=5,
                ) from error
            raise self._away(1) from error

    def _url(self, scope: Scope) -> URL:
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        return URL(f"{self._base}{path}?{query}" if query else self._base + path, encoded=True)

    def _away(self, retry_after_s: float) -> Unavailable:
        return Unavailable(f"the service {self._name} is away", retry_after_s=retry_after_s)


class Balanced:
    """A service at several addresses, which take turns. One that does not answer is left out for a while."""

    def __init__(self, remotes: Sequence[Remote]) -> None:
        self._remotes = tuple(remotes)
        self._turn = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. What only reads is asked of the others, too, before it fails."""
        self._turn = (self._turn + 1) % len(self._remotes)
        in_turn = [*self._remotes[self._turn :], *self._remotes[: self._turn]]
        awake = [remote for remote in in_turn if not remote.is_resting] or in_turn
        *others, last = awake if scope["method"] in _BODILESS else awake[:1]
        for remote in others:
            with contextlib.suppress(Unavailable):
                await remote(scope, receive, send)
                return
        await last(scope, receive, send)


Urls = Mapping[str, str | Sequence[str]]
"""Where services are, by name: an address each, or several."""


class Upstreams:
    """The services by name. Give the apps of this process, or URLs, or both (the app wins).

    `apps` is looked up at each request, so it may be filled after this was made. What stands in `file`
    (JSON, as `urls`) comes besides, and is looked at anew by `look`.
    """

    def __init__(
        self,
        apps: Mapping[str, ASGIApp],
        urls: Urls,
        *,
        timeout_s: float,
        file: Path | None = None,
    ) -> None:
        self._apps = apps
        self._set = urls
        self._urls = _each_a_list(urls)
        self._file = file
        self._file_seen: tuple[int, int] | None = None
        self.on_changed: list[Callable[[], None]] = []
        """Called when a service came or went."""
        self._timeout_s = timeout_s
        self._upstreams: dict[str, Upstream] = {}
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Be ready to call services at addresses."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=256, keepalive_timeout=KEPT_ALIVE_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._timeout_s, sock_connect=2, sock_read=self._timeout_s
            ),
            trust_env=False,
        )

    async def look(self) -> None:
        """Take up what stands in the file, if it changed. What cannot be read changes nothing."""
        if self._file is None:
            return
        try:
            stat = await asyncio.to_thread(self._file.stat)
            seen = stat.st_mtime_ns, stat.st_size
            if seen == self._file_seen:
                return
            text = await asyncio.to_thread(self._file.read_bytes)
            listed = msgspec.json.decode(text, type=dict[str, str | list[str]])
        except (OSError, msgspec.MsgspecError) as error:
            if self._file_seen is not None:
                log.warning("the file of upstreams cannot be read", cause=repr(error))
            self._file_seen = None
            return
        self._file_seen = seen
        await self._replace(_each_a_list({**self._set, **listed}))

    async def _replace(self, urls: dict[str, tuple[str, ...]]) -> None:
        before, self._urls = self._urls, urls
        changed = [name for name in {*before, *urls} if before.get(name) != urls.get(name)]
        for name in changed:
            # Requests under way keep the one they have.
            self._upstreams.pop(name, None)
            client = self._clients.pop(name, None)
            if client is not None:
                await client.aclose()
        if changed:
            log.info("services came or went", services=sorted(changed))
            for tell in self.on_changed:
                tell()

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()
        if self._session is not None:
            await self._session.close()

    def __getitem__(self, name: str) -> Upstream:
        """Return a service. Raises Unavailable if this installation has none of that name."""
        upstream = self._upstreams.get(name)
        if upstream is None:
            upstream = self._upstreams[name] = self._find(name)
        return upstream

    def names(self) -> list[str]:
        """Return the names of all services there are."""
        return sorted({*self._apps, *self._urls})

    def client(self, name: str) -> httpx2.AsyncClient:
        """Return a client for the gateway's own calls to a service. Raises Unavailable as above."""
        client = self._clients.get(name)
        if client is None:
            transport: httpx2.AsyncBaseTransport
            if name in self._apps:
                transport = httpx2.ASGITransport(app=self._apps[name])
            elif name in self._urls:
                transport = httpx2.AsyncHTTPTransport(trust_env=False)
            else:
                raise _unknown(name)
            client = self._clients[name] = httpx2.AsyncClient(
                transport=transport,
                base_url=self._urls.get(name, (f"http://{name}",))[0],
                timeout=5,
                trust_env=False,
            )
        return client

    def _find(self, name: str) -> Upstream:
        if name in self._apps:
            return InProcess(self._apps[name])
        if name in self._urls and self._session is not None:
            remotes = [Remote(name, url, self._session) for url in self._urls[name]]
            return remotes[0] if len(remotes) == 1 else Balanced(remotes)
        raise _unknown(name)


def _each_a_list(urls: Urls) -> dict[str, tuple[str, ...]]:
    found = {n: (given,) if isinstance(given, str) else tuple(given) for n, given in urls.items()}
    return {name: addresses for name, addresses in found.items() if addresses}


def _unknown(name: str) -> Unavailable:
    return Unavailable(f"the service {name} is not part of this installation", retry_after_s=60)


class _ClientGone(Exception):
    pass


def _has_no_type(scope: Scope) -> bool:
    return scope["method"] not in _BODILESS and not any(
        name == b"content-type" for name, _ in scope["headers"]
    )


def _headers(scope: Scope) -> CIMultiDict[str]:
    headers = CIMultiDict(
        [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name != b"host" and name != b"transfer-encoding"
        ]
    )
    # What is missing the client library would add in its own name.
    if "accept-encoding" not in headers:
        headers["accept-encoding"] = "identity"
    if "user-agent" not in headers:
        headers["user-agent"] = "iiot-gateway"
    return headers


class _Body:
    """A request's body on its way to a service, and what ailed it.

    What is raised while it is sent the client library reports as a broken connection, as if the
    service were at fault.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._is_there = any(
            name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"]
        )
        self._receive = receive
        self.error: Exception | None = None

    async def data(self) -> bytes | AsyncIterator[bytes] | None:
        """Return the body: whole if it came in one piece, else as it comes."""
        if not self._is_there:
            return None
        first = await self._next()
        if not first.get("more_body", False):
            return bytes(first.get("body", b""))
        return self._pieces(first)

    async def _pieces(self, message: Message) -> AsyncIterator[bytes]:
        while True:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return
            try:
                message = await self._next()
            except Exception as error:
                self.error = error
                raise

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request":
            raise _ClientGone
        return message


async def _send_on(answer: aiohttp.ClientResponse, send: Send) -> None:
    headers = []
    for name, value in answer.raw_headers:
        lower = name.lower()
        if lower not in _NOT_PASSED:
            headers.append((lower, value))
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    length = answer.content_length
    if length is not None and length <= SMALL:
        body = await answer.read()
        await send(start)
        await send({"type": "http.response.body", "body": body})
        return
    await send(start)
    async for chunk in answer.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
