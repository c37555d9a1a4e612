"""Ingest's tables, as its migrations made them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class IngestRow(Row):
    """The base of ingest's rows."""

    __abstract__ = True
    metadata = schema_metadata("ingest")


class DeviceRow(TenantOwned, IngestRow):
    """A registered device."""

    __tablename__ = "devices"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    type: Mapped[str]
    description: Mapped[str]
    status: Mapped[str]
    status_reason: Mapped[str]
    status_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class CredentialRow(TenantOwned, IngestRow):
    """What is kept of a device's token."""

    __tablename__ = "credentials"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class QuarantineRow(TenantOwned, IngestRow):
    """Something acknowledged that could not be stored."""

    __tablename__ = "quarantine"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID]
    received_at: Mapped[datetime]
    reason: Mapped[str]
    detail: Mapped[str]
    metric: Mapped[str | None]
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    channel: Mapped[str]
    cut_from: Mapped[int | None]


class QuarantineOverflowRow(TenantOwned, IngestRow):
    """How much of a tenant's quarantine gave way to what came later."""

    __tablename__ = "quarantine_overflow"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    dropped: Mapped[int]
    since: Mapped[datetime]
    latest: Mapped[datetime]


class TenantRow(IngestRow):
    """A tenant whose status tenancy has spoken of."""

    __tablename__ = "tenants"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]
    said_at: Mapped[datetime]
