"""Devices that speak: who a token belongs to, what it may go on doing, and whether it is online."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import NotFound, Unauthenticated, Unavailable
from libs.common.historian.point import Kind
from services.ingest.domain.device import Source, Status
from services.ingest.domain.token import hash_token, is_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import note_status

log = structlog.get_logger(__name__)

REMEMBERED = 100_000
REMEMBERED_S = 60.0
"""How long a token is believed without a look at the database. Revocation is told by event, at
once; this is the net below it."""

STATUS_PAUSE_S = 1.0


class TokenLookup(Protocol):
    """Finds the device behind a token's hash."""

    async def source_of(self, token_hash: bytes) -> Source | None:
        """Return the device, or None if the token is nobody's."""
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
        self._by_device: dict[UUID, tuple[Source, bytes]] = {}
        self._registering: dict[UUID, asyncio.Lock] = {}
        self._revocations = 0
        self.on_revoked: list[Callable[[UUID, str], None]] = []
        """Called with a device's id and the reason when what it has open must be cut."""

    async def login(self, token: str) -> Source:
        """Return the device whose token it is.

        Raises Unauthenticated if it is nobody's, Unavailable if that cannot be found out now.
        """
        if not is_token(token):
            raise Unauthenticated("this is not a device's token")
        token_hash = hash_token(token)
        now = asyncio.get_running_loop().time()
        known = self._by_hash.get(token_hash)
        if known is not None and now - known[1] < REMEMBERED_S:
            return known[0]
        source = await self._look_up(token_hash)
        if source is None:
            raise Unauthenticated("the token is not valid")
        known = self._by_hash.get(
            token_hash
        )  # another login of the same device may have been quicker
        if known is not None:
            # Keep the one object that the device's open connections hold.
            known[0].series.update(source.series)
            source = known[0]
        self._by_hash[token_hash] = (source, now)
        self._by_hash.move_to_end(token_hash)
        self._by_device[source.device_id] = (source, token_hash)
        while len(self._by_hash) > REMEMBERED:
            _, (forgotten, _) = self._by_hash.popitem(last=False)
            self._by_device.pop(forgotten.device_id, None)
        return source

    async def _look_up(self, token_hash: bytes) -> Source | None:
        while True:
            revocations = self._revocations
            try:
                source = await self._tokens.source_of(token_hash)
            except Exception as error:
                if is_transient(error):
                    raise Unavailable("devices cannot be verified now", retry_after_s=2) from error
                raise
            if revocations == self._revocations:
                return source
            # What was read may be older than a revocation told meanwhile, which will not be told again.

    async def of_tenant(self, tenant_id: UUID, device_id: UUID) -> Source:
        """Return a device of the tenant, for a user who sends in its name.

        Raises NotFound, or Unavailable if that cannot be found out now.
        """
        known = self._by_device.get(device_id)
        if known is not None and known[0].tenant_id == tenant_id:
            return known[0]
        try:
            async with self._transactions.begin(tenant_id) as store:
                return await store.devices.source(device_id, self._shards)
        except Exception as error:
            if is_transient(error):
                raise Unavailable("the device cannot be looked up now", retry_after_s=2) from error
            raise

    def revoke(self, device_id: UUID, reason: str) -> None:
        """Forget a device, and cut what it has open."""
        self._revocations += 1
        known = self._by_device.pop(device_id, None)
        if known is not None:
            source, token_hash = known
            source.is_revoked = True
            self._by_hash.pop(token_hash, None)
        for cut in self.on_revoked:
            cut(device_id, reason)

    async def register(self, source: Source, kinds: dict[str, Kind], most: int) -> None:
        """Add the series of these metrics to the source, made where missing as long as it has fewer
        than `most`.

        Raises Unavailable if the database cannot be asked now.
        """
        lock = self._registering.setdefault(source.device_id, asyncio.Lock())
        try:
            async with lock:
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


class Presence:
    """Notes who is online, behind the connections' back: only the newest word of each device counts.

    What cannot be written now is written later; what was not written when the process dies is put
    right by the device's next connection.
    """

    def __init__(self, transactions: Transactions[IngestStore], clock: Clock) -> None:
        self._transactions = transactions
        self._clock = clock
        self._words: dict[UUID, tuple[UUID, Status, str, datetime]] = {}
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def note(self, source: Source, status: Status, reason: str) -> None:
        """Remember that a device came or went."""
        if not source.is_revoked:
            self._words[source.device_id] = (source.tenant_id, status, reason, self._clock.now())
            self._some.set()

    def start(self) -> None:
        """Begin to write."""
        self._stopping = False
        self._task = asyncio.create_task(self._write_forever(), name="ingest.presence")

    async def stop(self) -> None:
        """Write what is there, once, then end."""
        if self._task is not None:
            self._stopping = True
            self._some.set()
            _, late = await asyncio.wait([self._task], timeout=5)
            for task in late:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write_forever(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._words:
                device_id, (tenant_id, status, reason, at) = next(iter(self._words.items()))
                del self._words[device_id]
                try:
                    async with self._transactions.begin(tenant_id) as store:
                        await note_status(store, device_id, status, reason, at=at)
                except NotFound:
                    continue  # removed meanwhile
                except Exception as error:
                    if not is_transient(error):
                        log.exception("a device's status was not noted", device=str(device_id))
                        continue
                    self._words.setdefault(device_id, (tenant_id, status, reason, at))
                    if self._stopping:
                        return
                    await asyncio.sleep(STATUS_PAUSE_S)
            if self._stopping:
                return
