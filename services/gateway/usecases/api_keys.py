"""Programs that call with API keys: what each may do, and when it was used last."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import structlog

from libs.common.auth.api_key import hash_key, is_well_formed
from libs.common.auth.guesses import Guesses
from libs.common.auth.principal import LIFETIME, Kind
from libs.common.clock import Clock
from libs.common.errors import Forbidden, Unauthenticated, Unavailable
from libs.common.events.audit import AuditActor, AuditEntry
from libs.common.refusals import Refusal, Refusals
from services.gateway.domain.api_key import ApiKey, Use
from services.gateway.usecases.callers import RENEWED_BEFORE, Vouched
from services.gateway.usecases.keyring import Keyring

log = structlog.get_logger(__name__)

FRESH_S = 60.0
"""How long a key is believed. Changes are told by event, at once; this is the net below."""
STALE_S = 900.0
"""How long it is believed while tenancy is away."""
REMEMBERED = 20_000
USES_WAITING = 10_000
"""Of so many keys the last use waits to be told; of more it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCaller(Vouched):
    """A program that calls with a key."""

    key: ApiKey


class WrongAddress(Forbidden):
    """The key is good, and is not to be used from where it came."""


class ApiKeySource(Protocol):
    """Knows the keys."""

    async def api_key(self, key_hash: bytes) -> ApiKey | None:
        """Return the key with this hash, if it is good; None for any other. Raises Unavailable."""
        ...

    async def note_key_uses(self, uses: Sequence[Use]) -> None:
        """Take down when keys were used last. Raises Unavailable."""
        ...


@dataclass(slots=True)
class _Known:
    key: ApiKey
    asked_at: float
    caller: KeyCaller | None = None


class ApiKeys:
    """The keys that this process has seen, by their hash."""

    def __init__(
        self,
        source: ApiKeySource,
        guesses: Guesses,
        keyring: Keyring,
        clock: Clock,
        refusals: Refusals,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._guesses = guesses
        self._keyring = keyring
        self._clock = clock
        self._refusals = refusals
        self._monotonic = monotonic
        self._known: dict[bytes, _Known] = {}
        self._generation = 0
        """Moves with each `forget`: an answer that was under way then may be the old one."""
        self._uses: dict[UUID, Use] = {}

    async def caller(self, shown: str, address: str) -> KeyCaller:
        """Return what calls with this key from an address.

        Raises Unauthenticated if it is nobody's, or over; Forbidden from where it may not be used;
        TooManyRequests if too many that were nobody's came from the address; Unavailable if it
        cannot be known now.
        """
        key_hash = hash_key(shown)
        known = self._known.get(key_hash)
        if known is None or self._monotonic() - known.asked_at >= FRESH_S:
            if not is_well_formed(shown):
                raise _refusal()
            known = await self._ask(key_hash, address)
        key, now = known.key, self._clock.now()
        if key.is_over(now):
            raise _refusal()
        if not key.may_come_from(address):
            self._note_refusal(key, address)
            raise WrongAddress("this API key may not be used from this address")
        if len(self._uses) < USES_WAITING or key.key_id in self._uses:
            self._uses[key.key_id] = Use(key.tenant_id, key.key_id, now, address)
        return self._vouched(known)

    def forget(self, key_id: UUID) -> None:
        """Believe nothing of a key any more."""
        self._forget_those(lambda key: key.key_id == key_id)

    def forget_tenant(self, tenant_id: UUID) -> None:
        """Believe nothing of a tenant's keys any more."""
        self._forget_those(lambda key: key.tenant_id == tenant_id)

    def forget_all(self) -> None:
        """Believe nothing of any key any more: some changes may not have been told."""
        self._forget_those(lambda _key: True)

    async def tell_uses(self) -> None:
        """Let tenancy know which keys were used since the last time. Raises Unavailable."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            await self._source.note_key_uses(list(uses.values()))
        except Unavailable:
            self._uses = uses | self._uses
            raise

    async def _ask(self, key_hash: bytes, address: str) -> _Known:
        while True:
            generation = self._generation
            known = self._known.get(key_hash)
            try:
                key = await self._guesses.look_up(
                    key_hash, address, "API key", lambda: self._look_up(key_hash)
                )
            except Unavailable:
                if known is None or self._monotonic() - known.asked_at >= STALE_S:
                    raise
                if generation != self._generation:
                    continue
                log.warning("tenancy is away; what it said of an API key earlier is believed")
                return known
            except Unauthenticated:
                self._known.pop(key_hash, None)
                raise
            # Otherwise something changed while we asked.
            if generation == self._generation:
                break
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        known = self._known[key_hash] = _Known(key, self._monotonic())
        return known

    async def _look_up(self, key_hash: bytes) -> ApiKey:
        key = await self._source.api_key(key_hash)
        if key is None:
            raise _refusal()
        return key

    def _note_refusal(self, key: ApiKey, address: str) -> None:
        """Have it recorded in the tenant that a key came from elsewhere: it may have been stolen."""
        entry = AuditEntry(
            action="access.denied",
            resource="api_key",
            resource_id=str(key.key_id),
            outcome="denied",
            detail={"reason": "address"},
        )
        actor = AuditActor(kind=Kind.API_KEY, id=key.key_id, address=address)
        self._refusals.note(Refusal(key.tenant_id, key.key_id, entry), actor)

    def _vouched(self, known: _Known) -> KeyCaller:
        # Services judge a principal by the machine's own clock.
        now = datetime.now(UTC)
        if known.caller is None or known.caller.renew_at <= now:
            principal = known.key.principal
            known.caller = KeyCaller(
                principal=principal,
                principal_token=self._keyring.signer().sign(principal, now).encode(),
                renew_at=now + LIFETIME - RENEWED_BEFORE,
                plan=known.key.tenant_plan,
                key=known.key,
            )
        return known.caller

    def _forget_those(self, are: Callable[[ApiKey], bool]) -> None:
        self._generation += 1
        for key_hash, known in list(self._known.items()):
            if are(known.key):
                del self._known[key_hash]


def _refusal() -> Unauthenticated:
    return Unauthenticated("the API key is not valid")
