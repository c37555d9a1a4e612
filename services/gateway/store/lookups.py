"""What is read across tenants, as role `gateway_engine`: before the tenant is known, and what is due."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from libs.common.db.engine import Database
from services.gateway.domain.passkey import Purpose
from services.gateway.domain.policy import Policy
from services.gateway.store.rate_limits import to_policy


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

    async def tenant_of_pending_login(self, token_hash: bytes) -> UUID | None:
        """Return the tenant that a pending login is for; None if it is nobody's."""
        async with self._engine.connection() as connection:
            found: UUID | None = await connection.scalar(
                text("SELECT gateway.tenant_of_pending_login(:hash)"), {"hash": token_hash}
            )
        return found

    async def keep_challenge(
        self, challenge_hash: bytes, purpose: Purpose, user_id: UUID | None, expires_at: datetime
    ) -> None:
        """Keep a challenge that an authenticator is asked."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text(
                    "INSERT INTO gateway.challenges (challenge_hash, purpose, user_id, expires_at)"
                    " VALUES (:hash, :purpose, cast(:user AS uuid), :until)"
                ),
                {"hash": challenge_hash, "purpose": purpose, "user": user_id, "until": expires_at},
            )

    async def take_challenge(
        self, challenge_hash: bytes, purpose: Purpose, user_id: UUID | None, now: datetime
    ) -> bool:
        """Use a challenge up; return whether it was made for this user and purpose, just now."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text(
                        "DELETE FROM gateway.challenges WHERE challenge_hash = :hash"
                        " RETURNING purpose, user_id, expires_at"
                    ),
                    {"hash": challenge_hash},
                )
            ).one_or_none()
        return found is not None and (
            found.purpose == purpose and found.user_id == user_id and found.expires_at > now
        )

    async def forget(self, *, sessions_before: datetime, others_before: datetime) -> None:
        """Remove sessions, and tickets, pending logins and challenges, that expired before the moments."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text("DELETE FROM gateway.sessions WHERE expires_at < :moment"),
                {"moment": sessions_before},
            )
            for statement in (
                "DELETE FROM gateway.tickets WHERE expires_at < :moment",
                "DELETE FROM gateway.pending_logins WHERE expires_at < :moment",
                "DELETE FROM gateway.challenges WHERE expires_at < :moment",
            ):
                await connection.execute(text(statement), {"moment": others_before})

    async def rate_limit_policies(self) -> list[Policy]:
        """Return the policies of the installation and of all tenants."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(text("SELECT * FROM gateway.rate_limit_policies"))
            return [to_policy(dict(row)) for row in rows.mappings()]

    async def cors_origins(self) -> list[tuple[UUID, str]]:
        """Return the origins of all tenants."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text("SELECT tenant_id, origin FROM gateway.cors_origins")
            )
            return [(row.tenant_id, row.origin) for row in rows]

    async def fingerprint(self) -> tuple[object, ...]:
        """Return what differs as soon as a policy or an origin was added, changed or removed."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT (SELECT (count(*), sum(version), max(updated_at))::text"
                    " FROM gateway.rate_limit_policies) AS limits,"
                    " (SELECT (count(*), max(added_at), sum(hashtextextended(tenant_id::text ||"
                    " origin, 0)))::text FROM gateway.cors_origins) AS origins"
                )
            )
            return tuple(rows.one())

    async def places_of(
        self, tenant_id: UUID, device_ids: Collection[UUID]
    ) -> dict[UUID, frozenset[UUID]]:
        """Return the groups that each of the tenant's devices is in; one in no group may be missing."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text("SELECT * FROM historian.places_of(:tenant, cast(:devices AS uuid[]))"),
                {"tenant": tenant_id, "devices": list(device_ids)},
            )
            return {row.device_id: frozenset(row.groups) for row in rows}

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
