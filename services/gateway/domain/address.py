"""Whose address a request comes from, when proxies stand before us."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the right-most hop that is no proxy of ours; nobody can forge that one.

    `peer` is who connected to us, `forwarded_for` the values of X-Forwarded-For in order. An IPv6
    address is cut to its /64, which is what one subscriber has.
    """
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
    current = peer
    while hops and is_within(current, trusted):
        current = hops.pop()
    try:
        address = ip_address(current)
    except ValueError:
        # A proxy of ours passed on something that is no address: count it as that proxy.
        return peer
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Network((address, 64), strict=False).network_address)
    return str(address)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address lies in one of the networks."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)
