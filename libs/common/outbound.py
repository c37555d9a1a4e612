"""The way out: HTTP requests to addresses that tenants chose, and never into our own network.

One guard judges a URL when it is entered and again when it is used. What it judges at delivery
is the address itself, in the moment of connecting, so nothing can change in between.
"""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta

import httpcore2
import httpx2

from libs.common.destinations import Destinations
from libs.common.errors import Forbidden, TooLarge, Unavailable, invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Endpoint = tuple[Address, int]
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]

PORTS = frozenset({80, 443, 8080, 8443})
TIME_LIMIT = timedelta(seconds=10)
MAX_REQUEST_BYTES = 1024 * 1024
MAX_READ_BYTES = 64 * 1024
MAX_URL_CHARS = 2048

# IANA's special-purpose registries, and what clouds answer on though it looks public.
_CLOSED_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; also Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform services
        "169.254.0.0/16",  # link-local; the clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_PORT = re.compile(r"[0-9]{0,5}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# A last label like these makes resolvers read the whole as a number: 0x7f.1, 2130706433, 127.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_INNER_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".svc", ".lan")


class Blocked(Exception):
    """The guard does not let this out. The text may be shown to the tenant: it names no address."""


class Unreachable(Exception):
    """No answer: connecting, TLS or the reply failed, or the time was up. Worth another try."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `body` is at most the first 64 KiB, undecoded; `whole` says if that is all.

    Header names are in lower case; of a repeated header the first counts.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


def is_public(address: Address) -> bool:
    """Say whether an address lies in the open internet and nowhere else.

    IPv4 inside IPv6 is judged by what it carries where that is in use (mapped, NAT64), and refused
    where it no longer is (compatible, 6to4, Teredo).
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in block for block in _CLOSED_V4)
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(address.packed[-4:]))
    return address in _GLOBAL_V6 and not any(address in block for block in _CLOSED_V6)


async def resolve_nothing(host: str, port: int) -> Sequence[Address]:
    """Know no name: URLs lead somewhere only if they write an address out."""
    raise OSError(f"no address for {host}")


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides where requests may go: public addresses, the usual ports, https.

    `allow` holds the operator's exceptions, each one exact address and one exact port, and only
    for URLs that write that address out: a name never leads there. They may use http.
    """

    allow: frozenset[Endpoint] = frozenset()
    resolve: Resolver = resolve_nothing
    ports: frozenset[int] = field(default=PORTS)

    async def check(self, url: str, pointer: str = "/url") -> None:
        """Raise Invalid at `pointer` unless requests to the URL would be let out now.

        A name that does not resolve (yet) passes: delivery asks again.
        """
        try:
            parsed = self.parse(url)
            async with asyncio.timeout(TIME_LIMIT.total_seconds()):
                await self.addresses(parsed.raw_host.decode("ascii"), port_of(parsed))
        except Blocked as blocked:
            raise invalid(pointer, str(blocked)) from None
        except (OSError, TimeoutError):
            return

    def parse(self, url: str) -> httpx2.URL:
        """Return the URL as it will be used. Raises Blocked for what its text alone rules out."""
        parsed = _parse(url)
        host, port = parsed.raw_host.decode("ascii"), port_of(parsed)
        literal = _literal(host)
        if literal is not None and (literal, port) in self.allow:
            return parsed
        if parsed.scheme != "https":
            raise Blocked("must begin with https://")
        if port not in self.ports:
            raise Blocked(f"port must be one of {', '.join(map(str, sorted(self.ports)))}")
        if literal is None:
            _check_name(host)
        elif not is_public(literal):
            raise Blocked("must lead to a public address")
        return parsed

    async def addresses(self, host: str, port: int) -> Sequence[Address]:
        """Return where to connect for a host. Raises Blocked if any answer is not public.

        One answer in our own network condemns the name, whatever the others are: whoever
        serves it chooses which one is used. Raises OSError if there is no answer.
        """
        literal = _literal(host)
        if literal is not None:
            if (literal, port) not in self.allow and not is_public(literal):
                raise Blocked("must lead to a public address")
            return [literal]
        found = list(dict.fromkeys(await self.resolve(host, port)))
        if not found:
            raise OSError(f"no address for {host}")
        if not all(is_public(address) for address in found):
            raise Blocked("must lead to public addresses only")
        return found


@dataclass(frozen=True, slots=True)
class PlantGuard(Guard):
    """Lets requests out into the plant's own network too, wherever `destinations` lets them.

    For servers that belong to the tenant's organisation, such as the one its people log in at.
    Plain HTTP is for loopback alone, which `destinations` must have been opened for.
    """

    destinations: Destinations = field(default_factory=Destinations)

    def parse(self, url: str) -> httpx2.URL:
        """Return the URL as it will be used. Raises Blocked for what its text alone rules out."""
        parsed = _parse(url)
        literal = _literal(parsed.raw_host.decode("ascii"))
        if parsed.scheme != "https" and not (literal is not None and literal.is_loopback):
            raise Blocked("must begin with https://")
        return parsed

    async def addresses(self, host: str, port: int) -> Sequence[Address]:
        """Return where to connect for a host. Raises Blocked, or OSError if there is no answer."""
        try:
            address = await self.destinations.address_of(host.strip("[]"), port)
        except Forbidden as error:
            raise Blocked("must lead to an address that this installation connects to") from error
        except Unavailable as error:
            raise OSError(f"no address for {host}") from error
        return [ipaddress.ip_address(address)]


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the very address that the guard has judged; there is no second look-up."""

    def __init__(self, guard: Guard, inner: httpcore2.AsyncNetworkBackend) -> None:
        self._guard = guard
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._guard.addresses(host, port)
        except OSError:
            raise httpcore2.ConnectError("the name does not resolve") from None
        failure: Exception = httpcore2.ConnectError("no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise Blocked("must lead to a public address")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class OutboundClient:
    """Asks URLs of tenants through a guard.

    It stands on httpcore2, below httpx2's client, because that layer has none of what would have
    to be switched off: it follows no redirect, reads no proxy from the environment, keeps no
    cookie and decompresses nothing. Each request has a connection of its own. `dial` opens the
    sockets; only tests hand in another.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        time_limit: timedelta = TIME_LIMIT,
        ssl_context: ssl.SSLContext | None = None,
        dial: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self.guard = guard
        self._time_limit_s = time_limit.total_seconds()
        self._ssl = ssl_context or httpx2.create_ssl_context(trust_env=False)
        self._backend = _GuardedBackend(guard, dial or httpcore2.AnyIOBackend())

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Post exactly `body` and return the reply, whatever its status.

        The limit holds for everything together: look-up, connecting, TLS, sending, the answer.
        Once the status is known, it stands: a body that does not end in time is cut.

        Raises Blocked if the guard refuses, Unreachable if there is no reply within the limit,
        TooLarge for a body over 1 MiB.
        """
        return await self.request("POST", url, headers, body)

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Ask by any method; as `post` otherwise."""
        if body is not None and len(body) > MAX_REQUEST_BYTES:
            raise TooLarge(f"a request may hold {MAX_REQUEST_BYTES} bytes")
        parsed = self.guard.parse(url)
        sent = _request_headers(parsed, headers)
        answer: httpcore2.Response | None = None
        received = bytearray()
        whole = False
        try:
            async with (
                asyncio.timeout(self._time_limit_s),
                self._pool() as pool,
                pool.stream(method, _target(parsed), headers=sent, content=body) as answer,
            ):
                whole = await _read(answer, received)
        except TimeoutError:
            if answer is None:
                raise Unreachable(f"no reply within {self._time_limit_s:g} s") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as bad:
            if answer is None:
                raise Unreachable(_plainly(bad)) from bad
        assert answer is not None
        return Reply(answer.status, _reply_headers(answer.headers), bytes(received), whole)

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._ssl,
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=self._backend,
        )


def _parse(url: str) -> httpx2.URL:
    if len(url) > MAX_URL_CHARS:
        raise Blocked(f"must be at most {MAX_URL_CHARS} characters long")
    if "\\" in url or any(character.isspace() for character in url):
        raise Blocked("must not hold blanks or backslashes")
    try:
        parsed = httpx2.URL(url)
        host = parsed.raw_host.decode("ascii")
    except (httpx2.InvalidURL, UnicodeError):
        raise Blocked("is not a URL") from None
    if parsed.scheme not in {"http", "https"} or not host:
        raise Blocked("must begin with https:// and name a host")
    authority = _authority(url)
    if parsed.userinfo or "@" in authority:
        raise Blocked("must not hold a user name or password")
    if not _PORT.fullmatch(authority.rpartition("]")[2].partition(":")[2]):
        raise Blocked("port must be a number")
    return parsed


def port_of(url: httpx2.URL) -> int:
    """Return the port a URL leads to, written or not."""
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


async def _read(response: httpcore2.Response, received: bytearray) -> bool:
    """Fill `received` up to its limit and say whether that was the whole body."""
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            received += chunk
            if len(received) > MAX_READ_BYTES:
                del received[MAX_READ_BYTES:]
                return False
    return True


def _target(url: httpx2.URL) -> httpcore2.URL:
    """Hand the judged parts down as they are; parsing the text again could read it differently."""
    return httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _request_headers(url: httpx2.URL, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    # httpcore2 would write an IPv6 host without its brackets.
    ours = {"Host": url.netloc.decode("ascii"), "Connection": "close"}
    return [
        (name.encode("ascii"), value.encode("latin-1"))
        for name, value in ({"Accept-Encoding": "identity"} | dict(headers) | ours).items()
    ]


def _reply_headers(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw:
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return headers


def _authority(url: str) -> str:
    _, _, rest = url.partition("//")
    return re.split(r"[/?#]", rest, maxsplit=1)[0]


def _literal(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return address


def _check_name(host: str) -> None:
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise Blocked("must write an IPv4 address as four decimal numbers")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Blocked("does not name a host")
    if len(labels) < 2 or host.endswith(_INNER_SUFFIXES):
        raise Blocked("must name a host in the public internet")


def _plainly(error: Exception) -> str:
    """Say what failed without the inner address that some system messages carry."""
    if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
        return "the server's certificate is not trusted"
    match error:
        case httpcore2.ConnectError() | httpcore2.ConnectTimeout():
            return "cannot connect"
        case httpcore2.ProtocolError():
            return "the answer is not HTTP"
        case _:
            return "the connection was lost"
