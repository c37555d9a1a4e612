"""The gateway's tables, as its migrations made them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class GatewayRow(Row):
    """The base of the gateway's rows."""

    __abstract__ = True
    metadata = schema_metadata("gateway")


class SessionRow(TenantOwned, GatewayRow):
    """A login of a user to a tenant."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    revoked_because: Mapped[str | None]
    address: Mapped[str]
    user_agent: Mapped[str]
    proofs: Mapped[list[str]] = mapped_column(ARRAY(Text))
    proved_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime | None]


class RefreshTokenRow(TenantOwned, GatewayRow):
    """What is kept of a refresh token."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[UUID]
    parent_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class TicketRow(TenantOwned, GatewayRow):
    """What is kept of a ticket for one live connection."""

    __tablename__ = "tickets"

    ticket_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[UUID]
    user_id: Mapped[UUID]
    expires_at: Mapped[datetime]


class RateLimitPolicyRow(TenantOwned, GatewayRow):
    """How much may be asked for, by whom and of what."""

    __tablename__ = "rate_limit_policies"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    by_platform: Mapped[bool]
    match: Mapped[dict[str, Any]] = mapped_column(JSONB)
    requests: Mapped[int | None]
    per: Mapped[str]
    burst: Mapped[int | None]
    cost: Mapped[int]
    version: Mapped[int]
    updated_at: Mapped[datetime]


class CorsOriginRow(TenantOwned, GatewayRow):
    """A site whose scripts may use the API."""

    __tablename__ = "cors_origins"

    origin: Mapped[str] = mapped_column(primary_key=True)
    added_at: Mapped[datetime]


class PendingLoginRow(TenantOwned, GatewayRow):
    """What is kept of a login that waits for its second step."""

    __tablename__ = "pending_logins"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[UUID]
    proofs: Mapped[list[str]] = mapped_column(ARRAY(Text))
    enrols: Mapped[bool]
    attempts: Mapped[int]
    proved_at: Mapped[datetime]
    expires_at: Mapped[datetime]
