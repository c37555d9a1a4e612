"""What strangers asked for, until it is looked at whether it concerns anybody."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import text

from libs.common.db.engine import Database

LEASE = timedelta(seconds=30)


class RequestKind(StrEnum):
    """What is asked for."""

    REGISTER = "register"
    FORGOT = "forgot"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRequest:
    """What a stranger asked for. Only who registers gives a tenant, a name and a password."""

    id: UUID
    kind: RequestKind
    email: str
    tenant_slug: str | None = None
    name: str | None = None
    password_hash: str | None = field(default=None, repr=False)
    requested_at: datetime


class AccountRequests:
    """The requests of all strangers. `engine` crosses tenants: there is no tenant yet."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def add(self, request: AccountRequest) -> None:
        """Keep a request, which is due at once."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text(
                    "INSERT INTO tenancy.account_requests (id, kind, email, tenant_slug, name,"
                    " password_hash, requested_at, due_at)"
                    " VALUES (:id, :kind, :email, :slug, :name, :hash, :at, :at)"
                ),
                {
                    "id": request.id,
                    "kind": request.kind,
                    "email": request.email,
                    "slug": request.tenant_slug,
                    "name": request.name,
                    "hash": request.password_hash,
                    "at": request.requested_at,
                },
            )

    async def claim(self, most: int) -> list[AccountRequest]:
        """Claim up to so many, those due longest first. Unless removed, they are due again soon."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "UPDATE tenancy.account_requests r"
                    " SET due_at = (SELECT sec.iiot_now()) + :lease FROM ("
                    "  SELECT id FROM tenancy.account_requests"
                    "  WHERE due_at <= (SELECT sec.iiot_now())"
                    "  ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED) due"
                    " WHERE r.id = due.id RETURNING r.id, r.kind, r.email, r.tenant_slug, r.name,"
                    " r.password_hash, r.requested_at"
                ),
                {"most": most, "lease": LEASE},
            )
            return [
                AccountRequest(**{**row._mapping, "kind": RequestKind(row.kind)}) for row in rows
            ]

    async def remove(self, request_id: UUID) -> None:
        """Forget a request."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text("DELETE FROM tenancy.account_requests WHERE id = :id"), {"id": request_id}
            )


def new_request(kind: RequestKind, email: str, at: datetime, **more: str) -> AccountRequest:
    """Return a request that is not kept yet."""
    return AccountRequest(id=uuid4(), kind=kind, email=email, requested_at=at, **more)
