"""What is read of a DTLS datagram before OpenSSL sees it: who has a session yet to begin, and whose key."""

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.protocols.coap.dtls import hello_in, identity_in, records

RANDOM = bytes(range(32))


def record(kind: int, content: bytes, epoch: int = 0) -> bytes:
    return (
        bytes([kind])
        + b"\xfe\xfd"
        + epoch.to_bytes(2)
        + bytes(6)
        + len(content).to_bytes(2)
        + content
    )


def handshake(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    whole = len(body) if length is None else length
    return bytes([kind]) + whole.to_bytes(3) + bytes(5) + len(body).to_bytes(3) + body


def key_exchange(identity: bytes) -> bytes:
    return handshake(16, len(identity).to_bytes(2) + identity)


HELLO = record(22, handshake(1, b"\xfe\xfd" + RANDOM + b"\0"))


def test_a_hello_is_known_by_its_random_number() -> None:
    assert hello_in(HELLO) == RANDOM
    assert hello_in(record(22, handshake(1, b"\xfe\xfd" + RANDOM), epoch=1)) is None
    assert hello_in(record(22, key_exchange(b"press 7"))) is None


def test_the_identity_stands_in_the_key_exchange_whatever_comes_with_it() -> None:
    exchange = record(22, key_exchange(b"press 7"))
    assert identity_in(exchange) == "press 7"
    assert identity_in(HELLO + exchange + record(20, b"\1")) == "press 7"
    assert identity_in(record(22, key_exchange(b"press 7"), epoch=1)) is None
    assert identity_in(HELLO) is None


def test_a_key_exchange_in_fragments_names_nobody() -> None:
    assert identity_in(record(22, handshake(16, b"\0\7pre", length=9))) is None


@given(st.binary(max_size=80), st.integers(0, 120), st.integers(0, 40))
def test_whatever_comes_is_read_or_is_not_and_raises_nothing(
    noise: bytes, cut: int, at: int
) -> None:
    whole = HELLO + record(22, key_exchange(b"press 7"))
    for datagram in (noise, whole[:cut], whole[:at] + noise + whole[at:], b"\x16\xfe\xfd" + noise):
        hello_in(datagram)
        identity_in(datagram)
        assert sum(13 + len(read.content) for read in records(datagram)) <= len(datagram)
