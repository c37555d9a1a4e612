"""Where the platform may be sent to by a tenant's URL, judged without touching a network."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid
from libs.common.outbound import Address, Blocked, Guard, is_public

PUBLIC = "93.184.216.34"


def answering(*addresses: str) -> Guard:
    async def resolve(host: str, port: int) -> Sequence[Address]:
        return [ip_address(address) for address in addresses]

    return Guard(resolve=resolve)


async def never_asked(host: str, port: int) -> Sequence[Address]:
    raise AssertionError(f"{host} was looked up")


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2002:0a00:0001::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1111%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_of_our_own_network_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC,
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.0",
        "172.32.0.1",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001:830::200e",
        "::ffff:93.184.216.34",
        "64:ff9b::5db8:d822",
    ],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@given(st.integers(0, 2**32 - 1))
def test_whatever_python_calls_private_or_special_is_not_public(number: int) -> None:
    address = IPv4Address(number)
    if not address.is_global or address.is_multicast or address.is_reserved:
        # Two registered blocks inside 192.0.0.0/24 are global; the block is closed as a whole.
        assert not is_public(address)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["::ffff:0:0", "64:ff9b::"]))
def test_a_carried_address_is_judged_like_itself(number: int, prefix: str) -> None:
    carrier = IPv6Address(int(IPv6Address(prefix)) + number)

    assert is_public(carrier) == is_public(IPv4Address(number))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_an_obsolete_carrier_is_never_public(number: int, rest: int) -> None:
    assert not is_public(IPv6Address(number))
    assert not is_public(IPv6Address((0x2002 << 112) | (number << 80) | rest))
    assert not is_public(IPv6Address((0x2001 << 112) | (rest << 32) | number))


@pytest.mark.parametrize(
    "url",
    [
        # numbers that resolvers read as addresses
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://1.2.3.4.5/",
        "https://127.0.0.1./",
        "https://0/",
        "https://evil.example.0x7f/",
        # the same in other letters
        "https://127。0。0。1/",  # ideographic full stops
        "https://１２７.0.0.1/",  # full-width digits
        "https://①②⑦.0.0.1/",
        "https://ⓛocalhost/",
        "https://%31%32%37.0.0.1/",
        # addresses written out
        "https://127.0.0.1/",
        "https://10.0.0.5/hook",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::]/",
        "https://[::1]/",
        "https://[::1%lo]/",
        "https://[::1%25lo]/",
        "https://[fe80::1%25eth0]/",
        "https://[::127.0.0.1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[fd00:ec2::254]/",
        "https://[ff02::1]/",
        # names of our own network
        "https://localhost/",
        "https://LOCALHOST/",
        "https://localhost./",
        "https://postgres/",
        "https://api.localhost/",
        "https://metadata.google.internal/",
        "https://printer.local/",
        "https://postgres.iiot.svc/",
        "https://postgres.svc.cluster.local/",
        # who the host is depends on the reader
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\@example.com/",
        "https://example.com:443@127.0.0.1/",
        "https:\\\\example.com/",
        "https://exam ple.com/",
        "https://example.com\r\nHost: evil.example/",
        "https://example.com/\tpath",
        "https://exa\u0000mple.com/",
        # schemes
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "//example.com/",
        "example.com/hook",
        "https:///hook",
        "https:example.com",
        "",
        # ports
        "https://example.com:22/",
        "https://example.com:0/",
        "https://example.com:5432/",
        "https://example.com:65536/",
        "https://example.com:99999999/",
        "https://example.com:-1/",
        "https://example.com:٤٤٣/",
        # shapes
        "https://-example.com/",
        "https://exa_mple..com/",
        "https://exam*ple.com/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 130}example/",
        f"https://example.com/{'a' * 3000}",
    ],
)
async def test_a_url_that_its_text_condemns_is_refused_without_a_look_up(url: str) -> None:
    guard = Guard(resolve=never_asked)

    with pytest.raises(Invalid) as refusal:
        await guard.check(url, "/config/url")

    assert [error.pointer for error in refusal.value.errors] == ["/config/url"]


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/alerts?token=a%20b#part",
        "https://hooks.example.com:443/",
        "https://hooks.example.com:8443/",
        "https://HOOKS.example.com",
        "https://bücher.example/",
        "https://xn--bcher-kva.example/",
        f"https://{PUBLIC}/",
        "https://[2606:4700:4700::1111]:8443/",
    ],
)
async def test_a_url_in_the_public_internet_passes(url: str) -> None:
    await answering(PUBLIC, "2606:4700:4700::1111").check(url)


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["10.0.0.1", PUBLIC], [PUBLIC, "::1"]]
)
async def test_one_inner_answer_condemns_the_name(answers: list[str]) -> None:
    with pytest.raises(Invalid) as refusal:
        await answering(*answers).check("https://hooks.example.com/")

    assert not any(answer in str(refusal.value) for answer in answers)


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1", "::1", "[::1]", "::ffff:127.0.0.1"])
async def test_an_inner_address_is_not_handed_out_for_connecting(host: str) -> None:
    with pytest.raises(Blocked):
        await Guard(resolve=never_asked).addresses(host, 443)


async def test_a_name_that_does_not_resolve_yet_may_be_entered() -> None:
    async def resolve(host: str, port: int) -> Sequence[Address]:
        raise OSError("no such name")

    await Guard(resolve=resolve).check("https://not-yet.example.com/")


class TestTheOperatorsException:
    guard = Guard(frozenset({(IPv4Address("127.0.0.1"), 9025)}), resolve=never_asked)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_lets_one_address_and_port_through(self, scheme: str) -> None:
        await self.guard.check(f"{scheme}://127.0.0.1:9025/hooks/main")

    def test_leaves_every_other_port_of_that_address_closed(self) -> None:
        for port in {*range(1, 65536, 61), 80, 443, 8080, 8443, 9024, 9026} - {9025}:
            for scheme in ("http", "https"):
                with pytest.raises(Blocked):
                    self.guard.parse(f"{scheme}://127.0.0.1:{port}/")

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.2:9025/",
            "http://[::1]:9025/",
            "http://[::ffff:127.0.0.1]:9025/",
            "http://localhost:9025/",
            "http://127.1:9025/",
            "http://2130706433:9025/",
            "http://user@127.0.0.1:9025/",
            "https://hooks.example.com:9025/",
        ],
    )
    async def test_opens_nothing_that_only_leads_to_it(self, url: str) -> None:
        with pytest.raises(Invalid):
            await self.guard.check(url)

    async def test_is_not_reached_by_a_name(self) -> None:
        async def resolve(host: str, port: int) -> Sequence[Address]:
            return [IPv4Address("127.0.0.1")]

        guard = Guard(frozenset({(IPv4Address("127.0.0.1"), 443)}), resolve=resolve)

        with pytest.raises(Blocked):
            await guard.addresses("hooks.example.com", 443)
