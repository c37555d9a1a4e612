"""The ledger over HTTP: what became of everything that came, by hour."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from libs.common.errors import FieldError, Invalid, NotFound
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Moment, Out
from services.ingest.api.deps import CanReadTelemetry, InTransaction
from services.ingest.domain.ledger import Counts, Hour
from services.ingest.usecases import ledger as usecases

router = APIRouter(prefix="/api/v1/devices/{device_id}/ledger", tags=["ledger"])
of_tenant = APIRouter(prefix="/api/v1/telemetry/ledger", tags=["ledger"])

LONGEST = timedelta(days=62)
SHOWN = timedelta(days=1)

From = Annotated[
    Moment | None,
    Query(alias="from", description="From the hour that this lies in; a day before `to`."),
]
To = Annotated[
    Moment | None, Query(alias="to", description="Up to the hour that this lies in; now.")
]


async def _catch_up(request: Request) -> None:
    await request.app.state.bookkeeping.catch_up()


UpToDate = Annotated[None, Depends(_catch_up)]
"""Stands before the transaction, which would be held up by it."""


class CountsOut(Out):
    """What became of the points that came: `received` is the sum of the three after it."""

    received: int
    accepted: int
    """Stored."""
    duplicates: int
    """There was a point of this series and time already."""
    quarantined: int
    """Not stored, with the reason; what could not be read at all counts as one."""
    gaps: int
    """In how many places the device's own counter left something out."""
    missing: int
    """How many messages or readings it left out there."""


class HourOut(CountsOut):
    """What came within one hour."""

    hour: datetime
    """When it began, UTC."""


class LedgerOut(Out):
    """The hours in which something came, and all of them together."""

    start: Annotated[datetime, Field(serialization_alias="from")]
    end: Annotated[datetime, Field(serialization_alias="to")]
    """The first moment that is not counted."""
    totals: CountsOut
    hours: list[HourOut]


@router.get("", responses=problems(NotFound, Invalid))
async def get_device_ledger(
    device_id: UUID,
    who: CanReadTelemetry,
    _: UpToDate,
    store: InTransaction,
    now: Now,
    since: From = None,
    until: To = None,
) -> LedgerOut:
    """Return what became of all that a device sent, by the hour in which it was received.

    All that was acknowledged and has left the queue is counted.
    """
    start, end = _range(since, until, now)
    return _to_out(start, end, await usecases.hours(store, device_id, since=start, until=end))


@of_tenant.get("", responses=problems(Invalid))
async def get_ledger(
    who: CanReadTelemetry,
    _: UpToDate,
    store: InTransaction,
    now: Now,
    since: From = None,
    until: To = None,
) -> LedgerOut:
    """Return what became of all that all devices sent, those that are removed included."""
    start, end = _range(since, until, now)
    return _to_out(start, end, await store.ledger.hours(start, end))


def _range(
    since: datetime | None, until: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """Return whole hours that hold the range asked for. Raises Invalid if it is none, or too long."""
    end = _hour_of(until or now)
    if until is None or until != end:
        end += timedelta(hours=1)
    start = _hour_of(since) if since is not None else end - SHOWN
    if not timedelta() < end - start <= LONGEST:
        raise Invalid(
            f"a range of more than nothing, and of {LONGEST.days} days at most",
            errors=[FieldError("?from", "not before `to`, or too far before it")],
        )
    return start, end


def _hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _counts(counts: Counts) -> dict[str, int]:
    return CountsOut.model_validate(counts).model_dump()


def _to_out(start: datetime, end: datetime, hours: Sequence[Hour]) -> LedgerOut:
    return LedgerOut(
        start=start,
        end=end,
        totals=CountsOut(**_counts(sum((hour.counts for hour in hours), Counts()))),
        hours=[HourOut(hour=hour.hour, **_counts(hour.counts)) for hour in hours],
    )
