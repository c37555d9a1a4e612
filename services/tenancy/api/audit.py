"""The audit trail: searched, exported, and verified."""

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from libs.common.errors import Malformed, NotFound
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Moment, Out
from services.tenancy.api.deps import AllTransactions, CanReadAudit, InTransaction
from services.tenancy.domain.audit import Link, Wanted
from services.tenancy.domain.trail_sheet import HEADINGS, sheet_row
from services.tenancy.usecases import audit as usecases

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

Outcome = Literal["ok", "denied", "failed"]


class Format(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    NDJSON = "ndjson"


class ActorOut(Out):
    """Who acted, and from where."""

    kind: Annotated[str, Field(description="`user`, `api_key`, `service`, or `nobody` that is known.", examples=["user"])]  # fmt: skip
    id: UUID | None
    session_id: UUID | None
    address: str | None
    user_agent: str | None


class AuditEntryOut(Out):
    """One thing that was done, or was refused."""

    seq: Annotated[int, Field(description="Its place in the tenant's trail, from 1 on without a gap.")]  # fmt: skip
    at: datetime
    service: Annotated[str, Field(examples=["ingest"])]
    action: Annotated[str, Field(examples=["device.updated"])]
    outcome: Outcome
    resource: Annotated[str, Field(examples=["device"])]
    resource_id: str | None
    label: Annotated[
        str | None, Field(description="What it was called then.", examples=["press-7"])
    ]
    actor: ActorOut
    request_id: str | None
    before: Annotated[dict[str, Any] | None, Field(description="What it was, as far as it changed.")]  # fmt: skip
    after: Annotated[dict[str, Any] | None, Field(description="What it became. Of a secret only that it was set, changed or removed.")]  # fmt: skip
    detail: dict[str, Any] | None
    prev_hash: Annotated[
        str, Field(description="The hash of the entry before, in hex.", examples=["9d5e3ae1f0c4b7"])
    ]
    hash: Annotated[
        str,
        Field(
            description="SHA-256 of `prev_hash` and this entry, in hex.",
            examples=["41c7e0aa92d35b"],
        ),
    ]


class VerificationOut(Out):
    """What looking at the whole trail showed."""

    ok: bool
    entries: Annotated[int, Field(description="How many are as they were written, from the beginning on.")]  # fmt: skip
    first_seq: Annotated[int, Field(description="The first that is kept.")]
    head_seq: Annotated[int, Field(description="The last that was written.")]
    head_hash: Annotated[str, Field(description="Its hash: kept elsewhere, it proves later that none was rewritten.", examples=["41c7e0aa92d35b"])]  # fmt: skip
    broken_at: Annotated[int | None, Field(description="The first that is not as it was written.")]
    reason: str | None


class _Position(msgspec.Struct):
    seq: int


async def _wanted(
    since: Annotated[Moment | None, Query(alias="from", description="Not before.")] = None,
    until: Annotated[Moment | None, Query(alias="to", description="Before.")] = None,
    actor_id: Annotated[UUID | None, Query(description="Who acted.")] = None,
    action: Annotated[
        str | None,
        Query(max_length=100, description="`device.updated`, or `device.` for all of devices."),
    ] = None,
    resource: Annotated[str | None, Query(max_length=100)] = None,
    resource_id: Annotated[str | None, Query(max_length=200)] = None,
    outcome: Annotated[Outcome | None, Query()] = None,
    request_id: Annotated[str | None, Query(max_length=128)] = None,
    service: Annotated[str | None, Query(max_length=100)] = None,
) -> Wanted:
    return Wanted(
        since=since,
        until=until,
        actor_id=actor_id,
        action=action,
        resource=resource,
        resource_id=resource_id,
        outcome=outcome,
        request_id=request_id,
        service=service,
    )


WantedEntries = Annotated[Wanted, Depends(_wanted)]


@router.get("/logs", responses=problems(Malformed))
async def list_audit_logs(
    who: CanReadAudit, store: InTransaction, wanted: WantedEntries, limit: Limit, cursor: Cursor
) -> Page[AuditEntryOut]:
    """List what was done, newest first."""
    before = decode_cursor(cursor, _Position).seq if cursor else None
    links = await store.trail.find(wanted, limit + 1, before)
    more, links = len(links) > limit, links[:limit]
    return Page(
        items=[_out(link) for link in links],
        next_cursor=encode_cursor(_Position(links[-1].entry.seq)) if more else None,
    )


@router.get(
    "/logs/export",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "text/csv": {"schema": {"type": "string"}, "example": HEADINGS},
                "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"seq": 1}\n'},
            }
        }
    },
)
async def export_audit_logs(
    who: CanReadAudit,
    transactions: AllTransactions,
    wanted: WantedEntries,
    format: Annotated[Format, Query(description="A sheet, or a JSON object a line.")] = Format.CSV,  # noqa: A002 - what it is called in the query
) -> StreamingResponse:
    """Return all that was done, newest first, as a file."""

    async def parts() -> AsyncIterator[bytes]:
        if format is Format.CSV:
            yield HEADINGS.encode()
        async for links in usecases.pages(transactions, who.tenant_id, wanted):
            if format is Format.CSV:
                yield "".join(map(sheet_row, links)).encode()
            else:
                yield b"".join(_out(link).model_dump_json().encode() + b"\n" for link in links)

    return StreamingResponse(
        parts(),
        media_type="text/csv" if format is Format.CSV else "application/x-ndjson",
        headers={"content-disposition": f'attachment; filename="audit.{format}"'},
    )


@router.get("/logs/{seq}", responses=problems(NotFound))
async def get_audit_log(
    seq: Annotated[int, Path(ge=1, lt=2**63)], who: CanReadAudit, store: InTransaction
) -> AuditEntryOut:
    """Return one entry."""
    return _out(await store.trail.get(seq))


@router.get("/verification")
async def verify_audit_logs(who: CanReadAudit, store: InTransaction) -> VerificationOut:
    """Look at the tenant's whole trail: is every entry as it was written, and none missing?"""
    verdict = await store.trail.verify()
    return VerificationOut(
        ok=verdict.ok,
        entries=verdict.entries,
        first_seq=verdict.head.first_seq,
        head_seq=verdict.head.seq,
        head_hash=verdict.head.hash.hex(),
        broken_at=verdict.broken_at,
        reason=verdict.reason,
    )


def _out(link: Link) -> AuditEntryOut:
    entry = link.entry
    return AuditEntryOut(
        seq=entry.seq,
        at=entry.at,
        service=entry.service,
        action=entry.action,
        outcome=entry.outcome,
        resource=entry.resource,
        resource_id=entry.resource_id,
        label=entry.label,
        actor=ActorOut(
            kind=entry.actor_kind,
            id=entry.actor_id,
            session_id=entry.session_id,
            address=entry.address,
            user_agent=entry.user_agent,
        ),
        request_id=entry.request_id,
        before=entry.before,
        after=entry.after,
        detail=entry.detail,
        prev_hash=link.prev_hash.hex(),
        hash=link.hash.hex(),
    )
