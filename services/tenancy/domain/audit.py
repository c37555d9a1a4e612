"""The trail of a tenant: a chain of entries, each sealed with the hash of the one before.

An entry's hash is SHA-256 over the hash before it (32 bytes) and the entry as canonical JSON in
UTF-8: keys sorted by their code points, no blanks, nothing escaped but what must be, numbers in
plain decimals without needless zeros, times in UTC with six places. It is like RFC 8785 but for the
numbers, which there are IEEE doubles, while a database's are not.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

START = bytes(32)
"""What the first entry follows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was done, or was refused."""

    seq: int
    at: datetime
    service: str
    action: str
    outcome: str
    resource: str
    resource_id: str | None
    label: str | None
    actor_kind: str
    actor_id: UUID | None
    session_id: UUID | None
    address: str | None
    user_agent: str | None
    request_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    detail: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Link:
    """An entry in its place in the chain."""

    entry: Entry
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends, and where what is kept of it begins."""

    seq: int = 0
    hash: bytes = START
    first_seq: int = 1
    first_prev_hash: bytes = START


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries are asked for; None: it does not matter. `action` may end with a dot: all below."""

    since: datetime | None = None
    until: datetime | None = None
    actor_id: UUID | None = None
    action: str | None = None
    resource: str | None = None
    resource_id: str | None = None
    outcome: str | None = None
    request_id: str | None = None
    service: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What looking at a whole chain showed. `broken_at` is the first entry that is not as it was."""

    entries: int
    head: Head
    broken_at: int | None = None
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every entry is as it was written, and none is missing."""
        return self.broken_at is None


def canonical(value: object) -> str:
    """Return a value as its one canonical JSON text."""
    match value:
        case dict():
            pairs = (f"{canonical(key)}:{canonical(value[key])}" for key in sorted(value))
            return "{" + ",".join(pairs) + "}"
        case list() | tuple():
            return "[" + ",".join(map(canonical, value)) + "]"
        case bool() | None | str():
            return json.dumps(value, ensure_ascii=False)
        case int():
            return str(value)
        case float() | Decimal():
            number = Decimal(str(value))
            return f"{number.normalize():f}" if number else "0"
        case datetime():
            return f'"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"'
        case UUID():
            return f'"{value}"'
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def hash_of(tenant_id: UUID, entry: Entry, prev_hash: bytes) -> bytes:
    """Return the hash that seals an entry, and with it all before it."""
    text = canonical({"tenant_id": tenant_id, **asdict(entry)})
    return hashlib.sha256(prev_hash + text.encode("utf-8", "surrogatepass")).digest()


def chain(tenant_id: UUID, entries: Iterable[Entry], prev_hash: bytes) -> list[Link]:
    """Return the entries as links, the first of which follows `prev_hash`."""
    links = []
    for entry in entries:
        link = Link(entry, prev_hash, hash_of(tenant_id, entry, prev_hash))
        links.append(link)
        prev_hash = link.hash
    return links


class Verification:
    """Looks at a chain from its beginning, a part at a time, and remembers no more than the end."""

    def __init__(self, tenant_id: UUID, head: Head) -> None:
        self._tenant_id = tenant_id
        self._head = head
        self._hash = head.first_prev_hash
        self._entries = 0
        self._fault: tuple[int, str] | None = None

    @property
    def expected(self) -> int:
        """The number of the entry that must come next."""
        return self._head.first_seq + self._entries

    @property
    def is_broken(self) -> bool:
        """Whether a fault was found: what comes after it proves nothing."""
        return self._fault is not None

    def look_at(self, links: Iterable[Link]) -> None:
        """Look at the links that come next."""
        for link in links:
            if self.is_broken:
                return
            reason = self._fault_of(link)
            if reason is not None:
                self._fault = (self.expected, reason)
                return
            self._hash = link.hash
            self._entries += 1

    def _fault_of(self, link: Link) -> str | None:
        if link.entry.seq != self.expected:
            return f"the entry is missing; {link.entry.seq} comes instead"
        if link.prev_hash != self._hash:
            return "the entry does not follow the one before it"
        if link.hash != hash_of(self._tenant_id, link.entry, link.prev_hash):
            return "the entry is not what was written"
        return None

    def verdict(self, *, last: int) -> Verdict:
        """Return what the chain is worth; `last` is the greatest number that any entry has."""
        head = self._head
        fault = self._fault
        if fault is None and self.expected <= head.seq:
            fault = (self.expected, f"the end is missing, up to {head.seq}")
        if fault is None and self._hash != head.hash:
            fault = (head.seq, "the head is not the hash of the last entry")
        if fault is None and last > head.seq:
            fault = (head.seq + 1, "there are entries beyond the head")
        return Verdict(self._entries, head, *(fault or ()))
