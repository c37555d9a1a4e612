"""A network that loses packets: two namespaces of the test's own, one of which is a bad router."""

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class LossyNetwork:
    """A place that can be reached from here, and reaches us, through a router that loses packets."""

    far: str
    router: str
    near: str
    """Our own address, as it is known there."""

    def inside(self, *words: str) -> list[str]:
        """Return the command that runs a program there."""
        return ["ip", "netns", "exec", self.far, *words]

    def dropped(self) -> int:
        """Return how many packets were lost."""
        words = ("ip", "netns", "exec", self.router, "nft", "--json", "list", "counters")
        said = json.loads(_run(*words))
        return sum(part["counter"]["packets"] for part in said["nftables"] if "counter" in part)


@contextmanager
def lossy_network(*, percent: int) -> Iterator[LossyNetwork]:
    """Make such a network, which loses so many packets in either direction. Needs root, ip and nft.

    A packet is lost on its way, not where it is sent: there the sender would be told. Raises
    RuntimeError with what the system said if the network cannot be made.
    """
    number = next(_numbers)
    far, router = (f"iiot-{part}-{os.getpid()}-{number}" for part in ("far", "router"))
    # Eight addresses that no other process that tests has: 10.200.0.0/13 has room for 65,536 such.
    block = (os.getpid() * 8 + number) % 65_536 * 8
    first = (10 << 24) + (200 << 16) + block
    near, inner, outer, away = (_address(first + place) for place in (1, 2, 5, 6))
    device = f"io{os.getpid()}"
    rules = f"""
        table inet loss {{
          counter lost {{
          }}
          chain passing {{
            type filter hook forward priority 0;
            numgen random mod 100 < {percent} counter name lost drop
          }}
        }}
    """
    try:
        for words in (
            ("ip", "netns", "add", router),
            ("ip", "netns", "add", far),
            ("ip", "link", "add", device, "type", "veth", "peer", "name", "in", "netns", router),
            ("ip", "-n", router, "link", "add", "out", "type", "veth", "peer", "name", "eth0",
             "netns", far),
            ("ip", "addr", "add", f"{near}/30", "dev", device),
            ("ip", "-n", router, "addr", "add", f"{inner}/30", "dev", "in"),
            ("ip", "-n", router, "addr", "add", f"{outer}/30", "dev", "out"),
            ("ip", "-n", far, "addr", "add", f"{away}/30", "dev", "eth0"),
            ("ip", "link", "set", device, "up"),
            ("ip", "-n", router, "link", "set", "in", "up"),
            ("ip", "-n", router, "link", "set", "out", "up"),
            ("ip", "-n", far, "link", "set", "eth0", "up"),
            ("ip", "-n", far, "link", "set", "lo", "up"),
            ("ip", "-n", far, "route", "add", "default", "via", outer),
            ("ip", "route", "add", f"{_address(first + 4)}/30", "via", inner),
        ):  # fmt: skip
            _run(*words)
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        _run("ip", "netns", "exec", router, "sh", "-c", forward)
        _run("ip", "netns", "exec", router, "nft", "-f", "-", stdin=rules)
        yield LossyNetwork(far, router, near)
    finally:
        # Cables and routes go with the namespaces at their ends.
        for namespace in (far, router):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def _address(number: int) -> str:
    return str(IPv4Address(number))


def _run(*words: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RuntimeError(f"{words[0]} is missing: apt-get install iproute2 nftables") from error
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
