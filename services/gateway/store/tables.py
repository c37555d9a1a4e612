"""The gateway's tables, as its migrations made them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary
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
