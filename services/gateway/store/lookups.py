"""What is read across tenants, as role `gateway_engine`: before the tenant is known, and what is due."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from libs.common.db.engine import Database


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a secret is."""

    tenant_id: UUID
    session_id: UUID
    user_id: UUID


@dataclass(frozen=True, slots=True)
class Series:
    """What the historian's number of a series stands for. `kind` 1 is a bool."""

    id: int
    tenant_id: UUID
    device_id: UUID
    metric: str
    kind: int


class Lookups:
    """Looks across tenants, by name."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def holder_of_refresh_token(self, token_hash: bytes) -> Holder | None:
        """Return whose refresh token it is; None if nobody's."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM gateway.session_of_refresh_token(:hash)"),
                    {"hash": token_hash},
                )
            ).one_or_none()
        return None if found is None else Holder(found.tenant_id, found.session_id, found.user_id)

    async def take_ticket(self, ticket_hash: bytes, now: datetime) -> Holder | None:
        """Use a ticket up and return whose it was; None if it is unknown, used or too old."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text(
                        "DELETE FROM gateway.tickets WHERE ticket_hash = :hash"
                        " RETURNING tenant_id, session_id, user_id, expires_at"
                    ),
                    {"hash": ticket_hash},
                )
            ).one_or_none()
        if found is None or found.expires_at <= now:
            return None
        return Holder(found.tenant_id, found.session_id, found.user_id)

    async def revoked_since(self, moment: datetime) -> list[UUID]:
        """Return the sessions that were revoked since then."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text("SELECT id FROM gateway.sessions WHERE revoked_at >= :moment"),
                {"moment": moment},
            )
            return [row.id for row in rows]

    async def forget(self, *, sessions_before: datetime, tickets_before: datetime) -> None:
        """Remove sessions and tickets that expired before the moments."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text("DELETE FROM gateway.sessions WHERE expires_at < :moment"),
                {"moment": sessions_before},
            )
            await connection.execute(
                text("DELETE FROM gateway.tickets WHERE expires_at < :moment"),
                {"moment": tickets_before},
            )

    async def describe_series(self, ids: Sequence[int]) -> list[Series]:
        """Return what the series are, of whichever tenant."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text("SELECT * FROM historian.describe_series(cast(:ids AS int[]))"),
                {"ids": list(ids)},
            )
            return [
                Series(row.id, row.tenant_id, row.device_id, row.metric, row.kind) for row in rows
            ]
