"""Ingest's tables, as its migrations made them."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Identity, LargeBinary, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
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
    serial: Mapped[str | None]
    profile_id: Mapped[UUID | None]
    group_id: Mapped[UUID | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    is_claimed: Mapped[bool]
    provisioned_by: Mapped[UUID | None]
    deleted_at: Mapped[datetime | None]


class CredentialRow(TenantOwned, IngestRow):
    """What is kept of a device's credential."""

    __tablename__ = "credentials"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    identity: Mapped[str | None]
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class GatewayRow(TenantOwned, IngestRow):
    """A device that may speak for others."""

    __tablename__ = "gateways"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    registers: Mapped[str | None]
    most: Mapped[int]
    changed_at: Mapped[datetime]


class GatewayDeviceRow(TenantOwned, IngestRow):
    """A device behind a gateway, and what that calls it."""

    __tablename__ = "gateway_devices"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    gateway_id: Mapped[UUID]
    name: Mapped[str]


class ContactRow(TenantOwned, IngestRow):
    """What was last heard of a device."""

    __tablename__ = "contacts"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime]
    protocol: Mapped[str | None]
    payload_format: Mapped[str | None]


class ProfileRow(TenantOwned, IngestRow):
    """What devices of one type have in common."""

    __tablename__ = "device_profiles"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSONB)
    protocol: Mapped[str | None]
    payload_format: Mapped[str | None]
    fields: Mapped[dict[str, Any]] = mapped_column(JSONB)
    offline_after: Mapped[timedelta | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class GroupRow(TenantOwned, IngestRow):
    """A group of devices; `path` leads from the root down to it."""

    __tablename__ = "device_groups"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    parent_id: Mapped[UUID | None]
    name: Mapped[str]
    kind: Mapped[str]
    path: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class AttributesRow(TenantOwned, IngestRow):
    """A device's attributes of one scope."""

    __tablename__ = "device_attributes"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    scope: Mapped[str] = mapped_column(primary_key=True)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSONB)
    updated_at: Mapped[datetime]


class ClaimRow(TenantOwned, IngestRow):
    """The token by which a device may be claimed."""

    __tablename__ = "claims"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class ProvisioningKeyRow(TenantOwned, IngestRow):
    """A key by which devices register themselves."""

    __tablename__ = "provisioning_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    device_type: Mapped[str]
    profile_id: Mapped[UUID | None]
    group_id: Mapped[UUID | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    is_enabled: Mapped[bool]
    expires_at: Mapped[datetime | None]
    max_devices: Mapped[int | None]
    devices: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


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


class PolicyRow(TenantOwned, IngestRow):
    """What a tenant lets its devices do."""

    __tablename__ = "policies"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    plain_coap: Mapped[bool]
    changed_at: Mapped[datetime]


class OscoreSequenceRow(TenantOwned, IngestRow):
    """Up to which sequence number those of an OSCORE secret were given out."""

    __tablename__ = "oscore_sequences"

    identity: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[UUID]
    used: Mapped[int] = mapped_column(BigInteger)


class CommandRow(TenantOwned, IngestRow):
    """A command to a device."""

    __tablename__ = "commands"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID]
    name: Mapped[str]
    params: Mapped[dict[str, Any]] = mapped_column(JSONB)
    two_way: Mapped[bool]
    timeout: Mapped[timedelta]
    status: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    """When it was first sent."""
    tried_at: Mapped[datetime | None]
    """When it was last sent."""
    acknowledged_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    """When it ends by itself: it expires, or its answer is overdue. None when it is done."""
    attempts: Mapped[int]
    """How often it was sent."""
    result: Mapped[Any] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[str | None]


class CommandStepRow(TenantOwned, IngestRow):
    """What happened to a command."""

    __tablename__ = "command_steps"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    at: Mapped[datetime]
    status: Mapped[str]
    detail: Mapped[str]


class LedgerRow(TenantOwned, IngestRow):
    """What was received of a device within one hour, counted."""

    __tablename__ = "ledger"

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    accepted: Mapped[int]
    duplicates: Mapped[int]
    quarantined: Mapped[int]
    gaps: Mapped[int]
    missing: Mapped[int]
