"""Network addresses: who one stands for, and which networks it lies in."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


@lru_cache(maxsize=4096)
def origin_of(address: str) -> str:
    """Return whom to count what comes from an address against.

    That is the address itself, and of IPv6 its /64, which is what one subscriber has. Raises
    ValueError for what is no address.
    """
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False).network_address)
    return str(parsed)


def is_address(text: str) -> bool:
    """Whether it is an address, not a name."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_within(address: str, networks: Iterable[Network]) -> bool:
    """Whether an address lies in one of the networks; what is no address lies in none."""
    try:
        parsed = _parse(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def _parse(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
