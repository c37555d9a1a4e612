"""Devices that speak: who a token belongs to, and what it may go on doing."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from libs.common.bus.outcome import is_transient
from libs.common.db.transactions import Transactions
from libs.common.errors import NotFound, Unauthenticated, Unavailable
from libs.common.historian.point import Kind
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token, is_token
from services.ingest.store.store import IngestStore

T = TypeVar("T")

REMEMBERED = 100_000
REMEMBERED_S = 60.0
"""How long a token is believed without a look at the database. Revocation is told by event, at
once; this is the net below it, and `Sources.verify` for what is open."""
VERIFIED_AT_ONCE = 2_000
"""With one query. More would hold the event loop up for too long, and with it all devices."""

REPLACED = "the device's token was replaced"


class TokenLookup(Protocol):
    """Finds the device behind a token's hash, and knows who may go on."""

    async def source_of(self, token_hash: bytes) -> Source | None:
        """Return the device, or None if the token is nobody's or the device's tenant is closed."""
        ...

    async def let_in(self, sources: Sequence[Source]) -> set[UUID]:
        """Return which of the devices may go on, with the token they came in by."""
        ...


class Sources:
    """The devices known to this process. One object a device, shared by all protocols."""

    def __init__(
        self, tokens: TokenLookup, transactions: Transactions[IngestStore], shards: int
    ) -> None:
        self._tokens = tokens
        self._transactions = transactions
        self._shards = shards
        self._by_hash: OrderedDict[bytes, tuple[Source, float]] = OrderedDict()
        """Those who logged in lately, with when they were looked up, in that order."""
        self._by_device: WeakValueDictionary[UUID, Source] = WeakValueDictionary()
        """All that anybody holds: a connection, a bridge, or the memory of a login."""
        self._registering: dict[UUID, asyncio.Lock] = {}
        self._revocations = 0
        self.on_revoked: list[Callable[[UUID, str], None]] = []
        """Called with a device's id and the reason when what it has open must be cut."""

    async def login(self, token: str) -> Source:
        """Return the device whose token it is.

        Raises Unauthenticated if it is nobody's or the device's tenant is closed, Unavailable if
        that cannot be found out now.
        """
        if not is_token(token):
            raise Unauthenticated("this is not a device's token")
        token_hash = hash_token(token)
        now = asyncio.get_running_loop().time()
        known = self._by_hash.get(token_hash)
        if known is not None and now - known[1] < REMEMBERED_S:
            return known[0]
        found = await self._look_up(lambda: self._tokens.source_of(token_hash))
        if found is None:
            raise Unauthenticated("the token is not valid")
        found.token_hash = token_hash
        source = self._settle(found)
        self._by_hash[token_hash] = (source, now)
        self._by_hash.move_to_end(token_hash)
        while len(self._by_hash) > REMEMBERED:
            self._by_hash.popitem(last=False)
        return source

    async def of_tenant(self, tenant_id: UUID, device_id: UUID) -> Source:
        """Return a device of the tenant, for somebody who sends in its name.

        Raises NotFound, also if the tenant is closed; Unavailable if that cannot be found out now.
        """
        known = self._by_device.get(device_id)
        if known is not None and known.tenant_id == tenant_id:
            return known

        async def look() -> Source:
            async with self._transactions.begin(tenant_id) as store:
                if await store.tenant.is_closed():
                    raise NotFound(f"no device {device_id}: its tenant is closed")
                return await store.devices.source(device_id, self._shards)

        return self._settle(await self._look_up(look))

    async def _look_up(self, look: Callable[[], Awaitable[T]]) -> T:
        while True:
            revocations = self._revocations
            try:
                found = await look()
            except Exception as error:
                if is_transient(error):
                    raise Unavailable("devices cannot be looked up now", retry_after_s=2) from error
                raise
            if revocations == self._revocations:
                return found
            # What was read may be older than a revocation told meanwhile, which will not be told again.

    def _settle(self, found: Source) -> Source:
        """Return the one object of the device, which whoever holds it shares, brought up to date."""
        known = self._by_device.get(found.device_id)
        if (
            known is not None
            and known.token_hash is not None
            and found.token_hash not in (None, known.token_hash)
        ):
            # It has another token by now, and we were not told.
            self.revoke(found.device_id, REPLACED)
            known = None
        if known is None:
            self._by_device[found.device_id] = found
            return found
        known.series.update(found.series)
        known.token_hash = known.token_hash or found.token_hash
        return known

    def revoke(self, device_id: UUID, reason: str) -> None:
        """Forget a device, and cut what it has open."""
        self._revocations += 1
        source = self._by_device.pop(device_id, None)
        if source is not None:
            source.is_revoked = True
            if source.token_hash is not None:
                self._by_hash.pop(source.token_hash, None)
        for cut in self.on_revoked:
            cut(device_id, reason)

    def revoke_tenant(self, tenant_id: UUID, reason: str) -> None:
        """Forget all devices of a tenant, and cut what they have open."""
        self._revocations += 1
        for source in list(self._by_device.values()):
            if source.tenant_id == tenant_id:
                self.revoke(source.device_id, reason)

    async def verify(self) -> None:
        """Look whether all devices that are known may go on, and revoke those that may not.

        The net below the events, which a process may miss. Raises what is transient; then whoever
        was looked at is revoked, the others stay as they were.
        """
        self._forget_stale()
        known = list(self._by_device.values())
        for start in range(0, len(known), VERIFIED_AT_ONCE):
            asked = known[start : start + VERIFIED_AT_ONCE]
            hashes = [source.token_hash for source in asked]
            let_in = await self._tokens.let_in(asked)
            for source, token_hash in zip(asked, hashes, strict=True):
                # Meanwhile it may have been revoked, or have come in by another token.
                is_the_same = (
                    self._by_device.get(source.device_id) is source
                    and source.token_hash == token_hash
                )
                if is_the_same and source.device_id not in let_in:
                    self.revoke(source.device_id, "the device may not go on")

    def _forget_stale(self) -> None:
        """Drop those whose next login would look them up anyway."""
        now = asyncio.get_running_loop().time()
        while self._by_hash:
            token_hash, (_, looked_up) = next(iter(self._by_hash.items()))
            if now - looked_up < REMEMBERED_S:
                return
            del self._by_hash[token_hash]

    async def register(self, source: Source, kinds: dict[str, Kind], most: int) -> None:
        """Add the series of these metrics to the source, made where missing as long as it has fewer
        than `most`.

        Raises Unavailable if the database cannot be asked now, or the source is revoked: then no
        more is kept of it.
        """
        lock = self._registering.setdefault(source.device_id, asyncio.Lock())
        try:
            async with lock:
                if source.is_revoked:
                    raise Unavailable("the device may not go on", retry_after_s=2)
                missing = {m: int(k) for m, k in kinds.items() if m not in source.series}
                # Counted under the lock: messages that race may not have more than one may.
                room = max(0, most - len(source.series))
                missing = dict(list(missing.items())[:room])
                if missing:
                    async with self._transactions.begin(source.tenant_id) as store:
                        found = await store.devices.series(source.device_id, source.tenant, missing)
                    source.series.update(found)
        except Exception as error:
            if is_transient(error):
                raise Unavailable(
                    "a new metric cannot be registered now", retry_after_s=2
                ) from error
            raise
        finally:
            if not lock.locked():
                self._registering.pop(source.device_id, None)
