"""Where the platform may connect to when tenants say where: the addresses are their choice, the network is ours."""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from libs.common.addresses import Network, is_address, is_within
from libs.common.errors import Forbidden, Unavailable

CLOSED: tuple[Network, ...] = (
    *map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "127.0.0.0/8",  # loopback: the platform's own servers may listen there
            "168.63.129.16/32",  # Azure's platform services
            "169.254.0.0/16",  # link-local; the clouds' metadata
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata
            "100.100.100.200/32",  # Alibaba's metadata
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    ),
    *map(
        IPv6Network,
        (
            "::/96",  # unspecified, loopback; IPv4 within, as it was written once
            "::ffff:0:0:0/96",  # IPv4 within: it would pass unseen
            "fe80::/10",  # link-local
            "fec0::/10",  # site-local, as it was once
            "fd00:ec2::/32",  # Amazon's metadata
            "fd00:42::42/128",  # Scaleway's
            "fd00:c1::a9fe:a9fe/128",  # Oracle's
            "fd20:ce::254/128",  # Google's
            "ff00::/8",  # multicast
            "64:ff9b::/96",  # IPv4 within: it would pass unseen
            "64:ff9b:1::/48",  # likewise
            "2001::/32",  # likewise
            "2002::/16",  # likewise
        ),
    ),
)
"""What no plant has its machines in. Private networks are open: there they are."""


LOOKED_UP_AT_ONCE = 2
"""Names. A look-up holds a thread until it ends, and the platform's own have few to share."""
LOOK_UP_S = 10.0
_NO_ADDRESS = (socket.EAI_NONAME, socket.EAI_NODATA)


class Destinations:
    """Judges addresses: those within `allowed`, or, where nothing is said, all but CLOSED and `own`.

    `own` are the hosts of the platform's own servers: they may well be in a private network.
    """

    def __init__(self, allowed: Sequence[Network] = (), own: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)
        self._own = tuple(own)
        self._room = asyncio.Semaphore(LOOKED_UP_AT_ONCE)
        self._looking_up: dict[tuple[str, int], asyncio.Task[list[str]]] = {}

    async def address_of(self, host: str, port: int) -> str:
        """Return the address to connect to for a host: connect to this, with no second look-up.

        One address that is not allowed condemns a name, whatever the others are. Raises Forbidden,
        or Unavailable if the name does not resolve, or it is not to be known now what is closed.
        """
        try:
            addresses = await self._look_up(host, port)
            closed = await self._closed()
        except TimeoutError as error:
            raise Unavailable(f"the name {host!r} was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise Unavailable(f"the name {host!r} does not resolve") from error
        if not addresses or not all(self._is_allowed(each, closed) for each in addresses):
            raise Forbidden(f"this installation connects to nothing at {host!r}")
        return addresses[0]

    async def _look_up(self, host: str, port: int) -> list[str]:
        if is_address(host):
            return await _resolve(host, port)
        found = self._looking_up.get((host, port))
        if found is None:
            found = asyncio.create_task(self._in_turn(host, port))
            self._looking_up[host, port] = found
            found.add_done_callback(lambda _: self._looking_up.pop((host, port)))
        # Who waits may give up; the thread does not, and so its place stays taken.
        async with asyncio.timeout(LOOK_UP_S):
            await asyncio.wait([found])
        return found.result()

    async def _in_turn(self, host: str, port: int) -> list[str]:
        async with self._room:
            return await _resolve(host, port)

    async def _closed(self) -> Sequence[Network]:
        if self._allowed:
            return ()
        closed = list(CLOSED)
        # They may move as any host may. Their names are not the tenants': nothing is slow about them.
        try:
            async with asyncio.timeout(LOOK_UP_S):
                for host in self._own:
                    closed += [ip_network(each) for each in await _addresses_of(host)]
        except (OSError, UnicodeError) as error:
            raise Unavailable("which addresses are closed cannot be looked up now") from error
        return closed

    def _is_allowed(self, address: str, closed: Sequence[Network]) -> bool:
        if self._allowed:
            return is_within(address, self._allowed)
        return "%" not in address and not is_within(address, closed)


def hosts_of(urls: Iterable[str]) -> list[str]:
    """Return the hosts of our own servers, with which no tenant has anything to do."""
    hosts = [urlsplit(url).hostname for url in urls]
    return list(dict.fromkeys(host for host in hosts if host))


async def _addresses_of(host: str) -> list[str]:
    """Return a host's addresses, none if it has none. Raises OSError if nobody can tell now."""
    try:
        return await _resolve(host, 0)
    except socket.gaierror as error:
        if error.errno not in _NO_ADDRESS:
            raise
        return []  # what has no address needs no guard


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
