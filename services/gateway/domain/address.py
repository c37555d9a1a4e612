"""Whose address a request comes from, when proxies stand before us."""

from collections.abc import Sequence

from libs.common.addresses import Network, is_within, origin_of


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the origin of the right-most hop that is no proxy of ours; nobody can forge that one.

    `peer` is who connected to us, `forwarded_for` the values of X-Forwarded-For in order.
    """
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
    current = peer
    while hops and is_within(current, trusted):
        current = hops.pop()
    try:
        return origin_of(current)
    except ValueError:
        # A proxy of ours passed on something that is no address: count it as that proxy.
        return peer
