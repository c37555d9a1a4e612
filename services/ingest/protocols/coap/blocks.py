"""Messages that come, or go, in blocks (RFC 7959), in bounded memory.

aiocoap's own assembly knows no limits, neither of a message's size nor of how many are open.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from aiocoap import Message
from aiocoap.numbers import Code
from aiocoap.optiontypes import BlockOption

from libs.common.errors import TooLarge

OPEN_S = 93.0
"""MAX_TRANSMIT_WAIT: whoever has not sent the next block by then has given up."""

MOST_OF_ONE = 4
"""Messages that one device sends in blocks at a time."""

MOST_OPEN = 256
"""Messages that all devices do."""


class Incomplete(Exception):
    """A block came without those before it."""


@dataclass(slots=True)
class _Open:
    owner: Hashable
    body: bytearray
    until: float


class Assemblies:
    """The messages of which not all blocks have come yet. Times are in seconds.

    Of one owner there are a few, and beyond `most` of all owners there is none: one that was begun
    and left gives way, the one that waited longest for its next block first.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self.most_bytes = most_bytes
        self._open: OrderedDict[Hashable, _Open] = OrderedDict()
        """The one whose last block came longest ago first."""

    def __len__(self) -> int:
        return len(self._open)

    def take(
        self, owner: Hashable, name: Hashable, block: Any, body: bytes, size: int | None, now: float
    ) -> bytes | None:
        """Take a block of the message that `name` tells from the owner's others; return the message
        with its last.

        Raises TooLarge (as soon as it is known), or Incomplete.
        """
        key = (owner, name)
        found = self._open.pop(key, None)
        if max(block.start + len(body), size or 0) > self.most_bytes:
            raise TooLarge(f"a message has at most {self.most_bytes} bytes")
        if block.block_number == 0:
            if not block.more:
                return body
            found = _Open(owner, bytearray(), now)
        elif found is None or found.until < now or len(found.body) != block.start:
            raise Incomplete
        if block.more and len(body) != block.size:
            raise Incomplete
        found.body += body
        if not block.more:
            return bytes(found.body)
        if block.block_number == 0:
            self._make_room(owner, now)
        found.until = now + OPEN_S
        self._open[key] = found
        return None

    def _make_room(self, owner: Hashable, now: float) -> None:
        while self._open and next(iter(self._open.values())).until < now:
            self._open.popitem(last=False)
        own = [key for key, found in self._open.items() if found.owner == owner]
        if len(own) >= MOST_OF_ONE:
            del self._open[own[0]]
        elif len(self._open) >= self._most:
            self._open.popitem(last=False)


def block_of(answer: Message, asked: Any, largest_exponent: int) -> Message:
    """Return the block of an answer that was asked for; all of it, if it fits into one.

    `asked` is the request's Block2 option. Nothing is kept between two blocks: the answer is made
    again for each, and its ETag tells whether it still is the same.
    """
    exponent = min(largest_exponent, asked.size_exponent if asked is not None else 6)
    size: int = 2 ** (exponent + 4)
    number = asked.block_number if asked is not None else 0
    if number == 0 and len(answer.payload) <= size:
        return answer
    # Asked for larger blocks than there are here, the device counts in its own.
    start = number * (asked.size if asked is not None else size)
    if start >= len(answer.payload):
        return Message(code=Code.BAD_OPTION, payload=b"there is no such block")
    more = start + size < len(answer.payload)
    cut = answer.copy(payload=answer.payload[start : start + size])
    cut.opt.block2 = BlockOption.BlockwiseTuple(start // size, more, exponent)
    return cut
