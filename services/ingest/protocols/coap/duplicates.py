"""Which messages were taken lately, so that one that comes twice is taken once. Pure.

A device sends a message again when it misses the answer: the same bytes, message id and token among
them, from the same address, within EXCHANGE_LIFETIME. The message id alone would not do: a device that
is quick comes round its 65,536 within that time, and another device gets the same address from the
same NAT. What is kept of a message is a number and its answer, which most of them share: about 80 bytes.
"""

from typing import NamedTuple, TypeAlias


class Peer(NamedTuple):
    """A DTLS session: where its device is, and a number that no other session of this process has."""

    host: str
    port: int
    session: int


Address: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | Peer"

EXCHANGE_LIFETIME_S = 247.0
MOST_ANSWER_BYTES = 32 * 1024 * 1024
"""Of the answers that are kept, where these are not all alike."""
GENERATIONS = 4
"""The oldest is forgotten as a whole. So a message is known for the lifetime, and a third more."""


def key_of(address: Address, datagram: bytes) -> int:
    """Return the number of a message: 64 bits, by a hash whose key is this process's secret."""
    return hash((address, datagram))


class Duplicates:
    """The answers to the latest messages, by their numbers. Times are in seconds.

    Beyond `most` messages, or `most_bytes` of answers that are not shared, the oldest quarter is
    forgotten before its time.
    """

    def __init__(
        self, most: int, most_bytes: int, now: float, lifetime_s: float = EXCHANGE_LIFETIME_S
    ) -> None:
        self._most = max(1, most // GENERATIONS)
        self._most_bytes = max(1, most_bytes // GENERATIONS)
        self._turn_s = lifetime_s / (GENERATIONS - 1)
        self._generations: list[dict[int, bytes]] = [{} for _ in range(GENERATIONS)]
        """The newest first."""
        self._bytes = 0
        self._turned_at = now

    def __len__(self) -> int:
        return sum(map(len, self._generations))

    def answer(self, key: int) -> bytes | None:
        """Return how a message was answered; None: it was not, or that is forgotten."""
        for generation in self._generations:
            answer = generation.get(key)
            if answer is not None:
                return answer
        return None

    def remember(self, key: int, answer: bytes, *, is_shared: bool = False) -> None:
        """Note how a message was answered. `is_shared`: the answer is a constant and takes no room."""
        self._generations[0][key] = answer
        if not is_shared:
            self._bytes += len(answer)
        if len(self._generations[0]) >= self._most or self._bytes >= self._most_bytes:
            self._turn()

    def tick(self, now: float) -> None:
        """Forget what is old enough."""
        if now - self._turned_at >= self._turn_s:
            self._turned_at = now
            self._turn()

    def _turn(self) -> None:
        self._generations = [{}, *self._generations[:-1]]
        self._bytes = 0
