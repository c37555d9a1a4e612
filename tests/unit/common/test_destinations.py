"""Where connectors may connect to."""

import asyncio
import socket
from ipaddress import IPv4Network

import pytest

from libs.common import destinations
from libs.common.destinations import Destinations
from libs.common.errors import Forbidden, Unavailable


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2001:0:7f00:1::",
        "2002:7f00:1::",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "fd00:42::42",
        "fd00:c1::a9fe:a9fe",
        "fd20:ce::254",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "127.1",
        "0",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "fe80::1%lo",
        "fec0::1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
    ],
)
async def test_no_plant_has_its_machines_there(address: str) -> None:
    with pytest.raises(Forbidden, match="connects to nothing at"):
        await Destinations().address_of(address, 1883)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.0.7", "8.8.8.8", "fd12::1", "2001:4860::8"]
)
async def test_a_plant_s_network_is_open(address: str) -> None:
    assert await Destinations().address_of(address, 1883) == address


async def test_an_installation_may_name_its_plants_networks() -> None:
    plants = Destinations([IPv4Network("10.1.0.0/16")])
    assert await plants.address_of("10.1.2.3", 1883) == "10.1.2.3"
    assert await plants.address_of("::ffff:10.1.2.3", 1883) == "::ffff:10.1.2.3"
    for closed in ("10.2.0.1", "8.8.8.8", "::1"):
        with pytest.raises(Forbidden):
            await plants.address_of(closed, 1883)


def resolve(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> None:
    async def resolved(host: str, port: int) -> list[str]:
        if host in names:
            return names[host]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(destinations, "_resolve", resolved)


async def test_one_closed_address_condemns_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, mixed=["10.0.0.7", "169.254.169.254"], good=["10.0.0.7", "10.0.0.8"])
    assert await Destinations().address_of("good", 1883) == "10.0.0.7"
    with pytest.raises(Forbidden):
        await Destinations().address_of("mixed", 1883)


@pytest.mark.parametrize("written", ["db", "10.0.0.5", "::ffff:10.0.0.5", "alias"])
async def test_the_platform_s_own_servers_are_nobody_s_plant(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    resolve(
        monkeypatch,
        db=["10.0.0.5"],
        alias=["10.0.0.5"],
        **{each: [each] for each in ("10.0.0.5", "10.0.0.6", "::ffff:10.0.0.5")},
    )
    own = Destinations(own=["db", "gone"])
    assert await own.address_of("10.0.0.6", 502) == "10.0.0.6"
    with pytest.raises(Forbidden):
        await own.address_of(written, 5432)
    # Unless the operator says so: of a plant's one machine, for example.
    await Destinations([IPv4Network("10.0.0.0/24")], own=["db"]).address_of("10.0.0.5", 502)


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY])
async def test_while_nobody_can_tell_where_our_own_servers_are_nothing_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async def resolved(host: str, port: int) -> list[str]:
        if host == "db":
            raise socket.gaierror(code, "db cannot be resolved now")
        return [host]

    monkeypatch.setattr(destinations, "_resolve", resolved)
    with pytest.raises(Unavailable) as refused:
        await Destinations(own=["db"]).address_of("10.0.0.5", 5432)
    assert "db" not in refused.value.detail
    # An operator who names the plants' networks has said it without us.
    named = Destinations([IPv4Network("10.0.0.0/24")], own=["db"])
    assert await named.address_of("10.0.0.5", 502) == "10.0.0.5"


async def test_names_that_are_slow_to_resolve_leave_the_platform_its_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server may be as slow as its owner likes, and a tenant may have many connectors."""
    monkeypatch.setattr(destinations, "LOOK_UP_S", 0.01)
    asked: list[str] = []
    may_answer = asyncio.Event()

    async def never(host: str, port: int, **how: object) -> list[tuple[object, ...]]:
        asked.append(host)
        if host.startswith("slow"):
            await may_answer.wait()
        return [(0, 0, 0, "", ("10.0.0.7", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    own = Destinations()
    for _ in range(3):
        for number in range(10):
            with pytest.raises(Unavailable, match="not resolved in time"):
                await own.address_of(f"slow{number}", 1883)
    assert asked == ["slow0", "slow1"]
    # What is an address needs nobody's thread.
    assert await own.address_of("10.0.0.7", 1883) == "10.0.0.7"
    may_answer.set()
    await asyncio.wait(list(own._looking_up.values()))
    assert await own.address_of("plant", 1883) == "10.0.0.7"
