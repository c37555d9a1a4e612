"""Erasing points that have had their time.

What all tenants are done with is dropped by the day, which costs nothing; what just some are done
with is deleted by the row. Both in many transactions of their own: each is true as far as it has
got, and the next run goes on from there.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import structlog

from libs.common.errors import Unavailable
from libs.common.events.retention import DataErased
from services.retention.domain.expiry import Keeping, expired_before, is_over, longest_days
from services.retention.domain.policy import DataType
from services.retention.store.points import DaySize, StoredPoints

log = structlog.get_logger(__name__)

GONE_KEPT = timedelta(days=7)
"""For how long the number of a tenant that is no more is known: points that come that late are still
told to be its own, and erased. Later ones are nobody's, and go with their day."""


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """A tenant's points from `before`: how many were deleted, or would be; and whether that is all."""

    keeping: Keeping
    before: datetime
    rows: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class ErasedDay:
    """A day of all tenants, that was dropped, or would be; `is_busy` if it is read just now."""

    size: DaySize
    is_busy: bool = False


class Erasure:
    """Erases points, or says what would be erased."""

    def __init__(self, points: StoredPoints, *, default_days: int, batch_rows: int) -> None:
        self._points = points
        self._default_days = default_days
        self._batch_rows = batch_rows

    async def of_tenant(
        self, tenant_id: UUID, *, dry_run: bool, most: int, now: datetime
    ) -> ErasedRows:
        """Delete a tenant's expired points by the row, up to `most`."""
        keepings = {keeping.tenant_id: keeping for keeping in await self._points.keepings()}
        # One that never had a point has nothing to be erased, whatever it wants.
        keeping = keepings.get(tenant_id, Keeping(tenant_id, self._default_days, None))
        return await self._rows(keeping, dry_run=dry_run, most=most, now=now)

    async def of_all(
        self, *, dry_run: bool, most: int | None, now: datetime
    ) -> tuple[list[ErasedDay], list[ErasedRows]]:
        """Drop the days that are over for all; then delete what is over for some, up to `most` each.

        In a dry run, points that lie in those days count in both. `most` None: without end.
        """
        days = await self._days(dry_run=dry_run, now=now)
        keepings = await self._points.keepings()
        longest = longest_days(keepings, self._default_days)
        rows = [
            await self._rows(keeping, dry_run=dry_run, most=most, now=now)
            for keeping in keepings
            # The points of the others go by the day.
            if keeping.keep_days < longest
        ]
        return days, [erased for erased in rows if erased.rows]

    async def forget_tenants(self, *, now: datetime) -> None:
        """Forget the tenants that are long gone, and all of their points erased."""
        forgotten = await self._points.forget_tenants(now - GONE_KEPT)
        if forgotten:
            log.info("tenants forgotten", count=forgotten)

    async def _days(self, *, dry_run: bool, now: datetime) -> list[ErasedDay]:
        longest = longest_days(await self._points.keepings(), self._default_days)
        erased = []
        for size in await self._points.days():
            if not is_over(size.day, now, longest):
                continue
            if dry_run:
                erased.append(ErasedDay(size))
                continue
            try:
                if await self._drop(size.day, now):
                    log.info("day dropped", day=str(size.day), rows=size.rows, bytes=size.bytes)
                    erased.append(ErasedDay(size))
            except Unavailable as error:
                log.warning("day not dropped", day=str(size.day), reason=error.detail)
                erased.append(ErasedDay(size, is_busy=True))
        return erased

    async def _drop(self, day: date, now: datetime) -> bool:
        start = datetime.combine(day, time(), UTC)
        return await self._points.drop_day(
            day,
            # As the tenants want it then: a policy may have changed since.
            lambda keepings: is_over(day, now, longest_days(keepings, self._default_days)),
            lambda keeping: DataErased(
                tenant_id=keeping.tenant_id,
                at=now,
                data_type=DataType.TELEMETRY,
                how="day_dropped",
                start=start,
                before=start + timedelta(days=1),
                policy_id=keeping.policy_id,
            ),
        )

    async def _rows(
        self, keeping: Keeping, *, dry_run: bool, most: int | None, now: datetime
    ) -> ErasedRows:
        before = expired_before(now, keeping.keep_days)
        if dry_run:
            most = self._batch_rows if most is None else most
            count = await self._points.count(keeping.tenant_id, before, most)
            return ErasedRows(keeping, before, count, is_complete=count < most)
        total = 0
        while most is None or total < most:
            batch = self._batch_rows if most is None else min(self._batch_rows, most - total)
            rows = await self._points.delete(
                keeping.tenant_id,
                before,
                batch,
                lambda rows: DataErased(
                    tenant_id=keeping.tenant_id,
                    at=now,
                    data_type=DataType.TELEMETRY,
                    how="rows_deleted",
                    before=before,
                    rows=rows,
                    policy_id=keeping.policy_id,
                ),
            )
            total += rows
            if rows < batch:
                return ErasedRows(keeping, before, total, is_complete=True)
        return ErasedRows(keeping, before, total, is_complete=False)
