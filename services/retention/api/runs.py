"""Erasing over HTTP: now, or just what would be."""

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import Field

from libs.common.errors import Invalid, Unavailable
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.retention.api.deps import CanWrite, Erasing
from services.retention.domain.policy import DataType
from services.retention.usecases.erasure import ErasedDay, ErasedRows

router = APIRouter(prefix="/api/v1/retention", tags=["retention"])


class RunBody(Body):
    """Whether to erase, or just to say what would be erased."""

    dry_run: bool = True


class ErasedRowsOut(Out):
    """Points of one tenant that go by the row."""

    tenant_id: UUID
    data_type: DataType
    keep_days: Annotated[int, Field(examples=[90])]
    policy_id: Annotated[UUID | None, Field(description="Null: the installation's default.")]
    before: Annotated[datetime, Field(description="Older points have had their time.")]
    rows: Annotated[int, Field(examples=[125000])]
    complete: Annotated[
        bool, Field(description="False: there are more; the next run goes on from here.")
    ]


class ErasedDayOut(Out):
    """A day (UTC) of all tenants that goes as a whole."""

    day: date
    rows: Annotated[int, Field(description="An estimate.", examples=[125000])]
    bytes: Annotated[int, Field(examples=[11750000])]
    busy: Annotated[bool, Field(description="It was being read and stays until the next run.")]


class RunOut(Out):
    """What was erased, or would be."""

    dry_run: bool
    tenants: list[ErasedRowsOut]
    days: Annotated[
        list[ErasedDayOut],
        Field(description="For the platform's admins alone; points in them count above, too, in a dry run."),
    ]  # fmt: skip


@router.post("/run", responses=problems(Invalid, Unavailable))
async def run_retention(
    request: Request, body: RunBody, who: CanWrite, erasure: Erasing, now: Now
) -> RunOut:
    """Erase now what has had its time, or say what would be.

    For the tenant's own points; for the platform's admins of all tenants, and whole days too.
    """
    most: int = request.app.state.settings.request_rows
    days: list[ErasedDay] = []
    if who.platform_admin:
        days, rows = await erasure.of_all(dry_run=body.dry_run, most=most, now=now)
    else:
        own = await erasure.of_tenant(who.tenant_id, dry_run=body.dry_run, most=most, now=now)
        rows = [own]
    return RunOut(
        dry_run=body.dry_run,
        tenants=[_to_rows(erased) for erased in rows],
        days=[
            ErasedDayOut(day=d.size.day, rows=d.size.rows, bytes=d.size.bytes, busy=d.is_busy)
            for d in days
        ],
    )


def _to_rows(erased: ErasedRows) -> ErasedRowsOut:
    return ErasedRowsOut(
        tenant_id=erased.keeping.tenant_id,
        data_type=DataType.TELEMETRY,
        keep_days=erased.keeping.keep_days,
        policy_id=erased.keeping.policy_id,
        before=erased.before,
        rows=erased.rows,
        complete=erased.is_complete,
    )
