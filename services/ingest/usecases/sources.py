"""Devices that speak: who a token belongs to, and what it may go on doing."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.db.acting import is_limited
from libs.common.db.transactions import Transactions
from libs.common.errors import NotFound, Unauthenticated, Unavailable
from libs.common.historian.point import Kind
from libs.common.places import whole_tenant
from libs.common.quotas.terms import Resource
from services.ingest.domain.credential import CredentialKind, Proof, Shown
from services.ingest.domain.device import Source
from services.ingest.domain.token import hash_token, is_token
from services.ingest.store.store import IngestStore

log = structlog.get_logger(__name__)

T = TypeVar("T")

REMEMBERED = 100_000
REMEMBERED_S = 60.0
"""How long a token is believed without a look at the database. Revocation is told by event, at
once; this is the net below it, and `Sources.verify` for what is open."""
VERIFIED_AT_ONCE = 2_000
"""With one query. More would hold the event loop up for too long, and with it all devices."""

REPLACED = "the device's credential was replaced"
ENDED = "the device's credential has ended"


class TokenLookup(Protocol):
    """Finds the device behind a credential's hash, and knows who may go on."""

    async def source_of(
        self, kind: CredentialKind, shown: bytes, device_id: UUID | None = None
    ) -> Source | None:
        """Return the device, or None if the credential is nobody's or its tenant is closed."""
        ...

    async def secret_of(
        self, kind: CredentialKind, shown: bytes
    ) -> tuple[Source, UUID, bytes] | None:
        """Return also the credential's id and its sealed secret."""
        ...

    async def let_in(self, sources: Sequence[Source]) -> set[UUID]:
        """Return which of the devices may go on, with all the credentials they came in by."""
        ...


class Sources:
    """The devices known to this process. One object a device, shared by all protocols."""

    def __init__(
        self,
        tokens: TokenLookup,
        transactions: Transactions[IngestStore],
        shards: int,
        clock: Clock,
    ) -> None:
        self._tokens = tokens
        self._transactions = transactions
        self._shards = shards
        self._clock = clock
        self._by_shown: OrderedDict[Shown, tuple[Source, float]] = OrderedDict()
        """Those who logged in lately, with when they were looked up, in that order."""
        self._shown_again: set[Shown] = set()
        """By which of these somebody has come again since. They are looked up with others, before
        they would be looked up each by itself: thousands may come within a second."""
        self._by_device: WeakValueDictionary[UUID, Source] = WeakValueDictionary()
        """All that anybody holds: a connection, a bridge, or the memory of who spoke lately."""
        self._ending: dict[UUID, datetime] = {}
        """When the first of the credentials ends by which a device came in."""
        self._spoken_for: OrderedDict[UUID, tuple[Source, float]] = OrderedDict()
        """Those in whose name others spoke lately, with when, the least lately first. What they have
        spent and counted is theirs the next time too, when nobody else holds them."""
        self._registering: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        """One message with new metrics of a device at a time."""
        self._looking = 0
        """How many look-ups are under way."""
        self._changes = 0
        self._changed: dict[UUID | None, int] = {}
        """What has changed while there were any, with the number of its last change."""
        self.on_revoked: list[Callable[[UUID, str], None]] = []
        """Called with a device's id and the reason when what it has open must be cut."""

    async def login(self, token: str) -> Source:
        """Return the device whose token it is.

        Raises Unauthenticated if it is nobody's or the device's tenant is closed, Unavailable if
        that cannot be found out now.
        """
        if not is_token(token):
            raise Unauthenticated("this is not a device's token")
        return await self.login_by(CredentialKind.TOKEN, hash_token(token))

    async def login_by(
        self, kind: CredentialKind, shown: bytes, device_id: UUID | None = None
    ) -> Source:
        """Return the device whose credential has this hash; raises as `login`.

        Several tenants may name one certificate, so that its device must be named too.
        """
        now = asyncio.get_running_loop().time()
        known = self._by_shown.get((kind, shown))
        if (
            known is not None
            and now - known[1] < REMEMBERED_S
            and device_id in (None, known[0].device_id)
        ):
            self._shown_again.add((kind, shown))
            return known[0]

        async def look() -> Source | None:
            return await self._tokens.source_of(kind, shown, device_id)

        found = await self._look_up(look, _itself)
        if found is not None and await self._is_surprised_by(found):
            found = await self._look_up(look, _itself)
        if found is None:
            raise Unauthenticated(f"the {kind} is not valid")
        source = self._settle(found)
        self._by_shown[kind, shown] = (source, now)
        self._by_shown.move_to_end((kind, shown))
        while len(self._by_shown) > REMEMBERED:
            self._by_shown.popitem(last=False)
        return source

    async def secret_of(self, kind: CredentialKind, shown: bytes) -> tuple[Source, UUID, bytes]:
        """Return a device by the hash of its secret's identity, with the credential's id and the
        secret as it was sealed. Raises as `login`.
        """

        async def look() -> tuple[Source, UUID, bytes] | None:
            return await self._tokens.secret_of(kind, shown)

        def whose(found: tuple[Source, UUID, bytes] | None) -> Source | None:
            return None if found is None else found[0]

        found = await self._look_up(look, whose)
        if found is not None and await self._is_surprised_by(found[0]):
            found = await self._look_up(look, whose)
        if found is None:
            raise Unauthenticated("the identity is not known")
        source, credential_id, sealed = found
        return self._settle(source), credential_id, sealed

    async def _is_surprised_by(self, found: Source) -> bool:
        """Whether a device shows a credential that it did not have here before.

        Then it may have lost those that it came in by, and we were not told: it is revoked if so.
        """
        known = self._by_device.get(found.device_id)
        if known is None or not known.proofs or found.proofs.keys() <= known.proofs.keys():
            return False
        let_in = await self._look_up(lambda: self._tokens.let_in([known]), lambda _: known)
        if known.device_id not in let_in and self._by_device.get(known.device_id) is known:
            self.revoke(known.device_id, REPLACED)
        return True

    async def of_tenant(self, tenant_id: UUID, device_id: UUID) -> Source:
        """Return a device of the tenant, for somebody who sends in its name.

        Raises NotFound, also if the tenant is closed, or the device lies beyond the sender's reach;
        Unavailable if that cannot be found out now.
        """

        async def look() -> Source:
            async with self._transactions.begin(tenant_id) as store:
                if await store.tenant.is_closed():
                    raise NotFound(f"no device {device_id}: its tenant is closed")
                return await store.devices.source(device_id, self._shards)

        source = self._by_device.get(device_id)
        # What others know must not open what lies beyond the reach of who asks.
        if source is None or source.tenant_id != tenant_id or is_limited():
            source = self._settle(await self._look_up(look, _itself))
        self._spoken_for[device_id] = (source, asyncio.get_running_loop().time())
        self._spoken_for.move_to_end(device_id)
        if len(self._spoken_for) > REMEMBERED:
            self._spoken_for.popitem(last=False)
        return source

    def changed(self, what: UUID | None) -> None:
        """Say that a device, a profile or a tenant is no longer what it was; None: any may not be.

        Look-ups under way may have read what it was, and nobody will be told again: they are repeated.
        """
        self._changes += 1
        if self._looking:
            self._changed[what] = self._changes

    async def _look_up(
        self, look: Callable[[], Awaitable[T]], whose: Callable[[T], Source | None]
    ) -> T:
        while True:
            before = self._changes
            self._looking += 1
            try:
                found = await look()
                source = whose(found)
                # What changed of others does not count: while many devices come at once, there is
                # always something.
                if source is None or not self._has_changed(source, before):
                    return found
            except Exception as error:
                if is_transient(error):
                    raise Unavailable("devices cannot be looked up now", retry_after_s=2) from error
                raise
            finally:
                self._looking -= 1
                if not self._looking:
                    self._changed.clear()

    def _has_changed(self, source: Source, since: int) -> bool:
        profile_id = None if source.profile is None else source.profile.id
        about = (None, source.device_id, source.tenant_id, profile_id)
        return any(self._changed.get(what, 0) > since for what in about)

    def _settle(self, found: Source) -> Source:
        """Return the one object of the device, which whoever holds it shares, brought up to date."""
        known = self._by_device.get(found.device_id)
        if known is None:
            self._by_device[found.device_id] = known = found
        else:
            known.series.update(found.series)
            known.proofs.update(found.proofs)
            known.profile = found.profile
        for proof in found.proofs.values():
            if proof.ends_at is not None:
                self._note_end(known.device_id, proof.ends_at)
        return known

    def _note_end(self, device_id: UUID, at: datetime) -> None:
        self._ending[device_id] = min(at, self._ending.get(device_id, at))

    def withdraw(self, device_id: UUID, credentials: Collection[UUID]) -> None:
        """Revoke a device that lost credentials, unless it came in by others. None named: all."""
        source = self._by_device.get(device_id)
        by = set() if source is None else {p.credential_id for p in source.proofs.values()}
        if credentials and by and by.isdisjoint(credentials):
            # It is here with the new one already. A look-up under way may have read the old one.
            self.changed(device_id)
        else:
            self.revoke(device_id, REPLACED)

    def end(self, device_id: UUID, credentials: Collection[UUID], at: datetime) -> None:
        """Note that credentials of a device end at a moment, if it came in by one of them here."""
        source = self._by_device.get(device_id)
        # A look-up under way may have read that they do not.
        self.changed(device_id)
        if source is None:
            return
        for shown, proof in source.proofs.items():
            if proof.credential_id in credentials:
                source.proofs[shown] = Proof(proof.credential_id, at)
                self._note_end(device_id, at)
        self.cut_ended()

    def cut_ended(self) -> None:
        """Revoke the devices whose credentials have ended; called every second."""
        now = self._clock.now()
        for device_id in [device for device, at in self._ending.items() if at <= now]:
            source = self._by_device.get(device_id)
            if source is None:
                del self._ending[device_id]
            else:
                self.revoke(device_id, ENDED)

    def all_known(self) -> list[Source]:
        """Return the devices that this process knows."""
        return list(self._by_device.values())

    def known_of(self, tenant_id: UUID) -> list[Source]:
        """Return the devices of a tenant that this process knows."""
        return [source for source in self._by_device.values() if source.tenant_id == tenant_id]

    def is_known(self, token: str) -> bool:
        """Whether it is known whose token it is, so that `login` asks nobody."""
        return (CredentialKind.TOKEN, hash_token(token)) in self._by_shown

    def known(self, device_id: UUID) -> Source | None:
        """Return a device if this process knows it."""
        return self._by_device.get(device_id)

    def revoke(self, device_id: UUID, reason: str) -> None:
        """Forget a device, and cut what it has open."""
        self.changed(device_id)
        source = self._by_device.pop(device_id, None)
        if source is not None:
            source.is_revoked = True
            for shown in source.proofs:
                self._by_shown.pop(shown, None)
        self._ending.pop(device_id, None)
        for cut in self.on_revoked:
            try:
                cut(device_id, reason)
            except Exception:
                # One protocol's trouble must leave nothing open that the others have of the device.
                log.exception("a revoked device was not cut", device=str(device_id))

    def revoke_tenant(self, tenant_id: UUID, reason: str) -> None:
        """Forget all devices of a tenant, and cut what they have open."""
        self.changed(tenant_id)
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
            asked_at = asyncio.get_running_loop().time()
            let_in = await self._tokens.let_in(asked)
            for source in asked:
                # Meanwhile it may have been revoked, and have come in again.
                if self._by_device.get(source.device_id) is not source:
                    continue
                if source.device_id in let_in:
                    self._believe_on(source, asked_at)
                else:
                    self.revoke(source.device_id, "the device may not go on")

    def _believe_on(self, source: Source, looked_up: float) -> None:
        for shown in source.proofs:
            if shown in self._shown_again and shown in self._by_shown:
                self._by_shown[shown] = (source, looked_up)
                self._by_shown.move_to_end(shown)
            self._shown_again.discard(shown)

    def _forget_stale(self) -> None:
        """Drop those whose next login would look them up anyway."""
        now = asyncio.get_running_loop().time()
        while self._by_shown:
            shown, (_, looked_up) = next(iter(self._by_shown.items()))
            if now - looked_up < REMEMBERED_S:
                break
            del self._by_shown[shown]
        self._shown_again &= self._by_shown.keys()
        while self._spoken_for:
            device_id, (_, spoke_at) = next(iter(self._spoken_for.items()))
            if now - spoke_at < REMEMBERED_S:
                break
            del self._spoken_for[device_id]

    async def register(
        self, source: Source, kinds: dict[str, Kind], units: dict[str, str], most: int
    ) -> None:
        """Add the series of these metrics to the source, made where missing as long as it has fewer
        than `most`; series without a unit get theirs.

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
                learnt = {
                    metric: unit
                    for metric, unit in units.items()
                    if metric in missing
                    or (metric in source.series and source.series[metric].unit is None)
                }
                if missing or learnt:
                    async with self._transactions.begin(source.tenant_id) as store:
                        missing = await _within_plan(store, source, missing)
                        found = await store.devices.series(
                            source.device_id, source.tenant, missing, learnt
                        )
                    source.series.update(found)
        except Exception as error:
            if is_transient(error):
                raise Unavailable(
                    "a new metric cannot be registered now", retry_after_s=2
                ) from error
            raise


async def _within_plan(
    store: IngestStore, source: Source, missing: dict[str, int]
) -> dict[str, int]:
    """Return as many of the missing metrics as the tenant's plan has room for."""
    most = (await store.quotas.of(Resource.METRICS)).most if missing else None
    if most is None:
        return missing
    await store.quotas.take_turn(Resource.METRICS)
    async with whole_tenant(store.session):
        there_are = await store.devices.count_series(source.tenant)
    return dict(list(missing.items())[: max(0, most - there_are)])


def _itself(found: Source | None) -> Source | None:
    return found
