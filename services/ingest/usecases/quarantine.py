"""Trying again what lies in the quarantine, corrected or as it was."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, FieldError, Invalid, NotFound
from services.ingest.domain.channel import Channel
from services.ingest.domain.formats import FORMATS, sniff
from services.ingest.domain.payload import Decoded, Refusal, Window, decode
from services.ingest.domain.quarantined import Quarantined
from services.ingest.store.store import IngestStore
from services.ingest.usecases.reports import take_report
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Intake, accept

MOST_FAULTS = 20


class Replays:
    """Takes entries in again, in the name of the device that sent them."""

    def __init__(
        self,
        transactions: Transactions[IngestStore],
        sources: Sources,
        intake: Intake,
        *,
        past: timedelta,
        ahead: timedelta,
        within: timedelta,
    ) -> None:
        self._transactions = transactions
        self._sources = sources
        self._intake = intake
        self._past = past
        self._ahead = ahead
        self._within = within

    async def replay(
        self, tenant_id: UUID, entry_id: UUID, corrected: bytes | None, *, now: datetime
    ) -> None:
        """Take an entry in, with the payload it has or a corrected one; then the entry is gone.

        All of it is taken or nothing: what would be refused again raises Malformed or Invalid and
        the entry stays. What has no time of its own has that of the entry, so an entry that is
        replayed twice is stored once. Raises NotFound; Conflict if only the beginning of the
        payload is kept and none is given, or the device is removed; Unavailable as `accept` does.
        """
        async with self._transactions.begin(tenant_id) as store:
            entry, kept = await store.quarantine.get(entry_id)
        if corrected is None and entry.cut_from is not None:
            raise Conflict("only the beginning of the payload is kept: send the whole of it")
        payload = kept if corrected is None else corrected
        if entry.channel is Channel.TELEMETRY:
            await self._take_telemetry(tenant_id, entry, payload, now)
        else:
            await self._take_report(tenant_id, entry, payload)

    async def _take_telemetry(
        self, tenant_id: UUID, entry: Quarantined, payload: bytes, now: datetime
    ) -> None:
        try:
            source = await self._sources.of_tenant(tenant_id, entry.device_id)
        except NotFound as error:
            raise _removed(entry) from error
        window = Window.around(now, past=self._past, ahead=self._ahead)
        decoded = _read(payload, entry.received_at, window)
        self._intake.fit(source, decoded)
        _check(decoded, [*decoded.refused, *self._intake.misfits(source, decoded)])
        if not self._intake.knows(source, decoded.points):
            await self._intake.register(source, decoded)
            # Somebody else may have registered a metric of this name, of another kind.
            _check(decoded, [*decoded.refused, *self._intake.misfits(source, decoded)])
        await accept(self._intake, source, decoded, within=self._within)
        # Durable first, removed then: who dies between leaves an entry that may be replayed again.
        async with self._transactions.begin(tenant_id) as store:
            with suppress(NotFound):
                await store.quarantine.discard(entry.id)

    async def _take_report(self, tenant_id: UUID, entry: Quarantined, payload: bytes) -> None:
        async with self._transactions.begin(tenant_id) as store:
            # Removed first: of two who replay it at once one waits here, and finds it gone.
            await store.quarantine.discard(entry.id)
            try:
                await store.devices.get(entry.device_id)
            except NotFound as error:
                raise _removed(entry) from error
            await take_report(store, entry.device_id, entry.channel, payload, at=entry.received_at)


def _read(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read an entry in the form it was written in, or JSON: parts are kept as readings in JSON."""
    return FORMATS.get(sniff(payload), decode)(payload, received_at, window)


def _check(decoded: Decoded, refusals: Sequence[Refusal]) -> None:
    """Raise Invalid if something is refused, or if there is nothing to take."""
    if refusals:
        raise Invalid(
            "the entry would be refused again",
            errors=[
                FieldError(
                    f"#/{refusal.index}" if decoded.ends else "#",
                    f"{refusal.reason}: {refusal.detail}",
                )
                for refusal in refusals[:MOST_FAULTS]
            ],
        )
    if not decoded.points:
        raise Invalid("there is no point in it", errors=[FieldError("#", "holds no point")])


def _removed(entry: Quarantined) -> Conflict:
    return Conflict(f"the device {entry.device_id} is no more, or its tenant is closed")
