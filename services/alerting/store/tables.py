"""Alerting's tables, as its migrations made them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Identity
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class AlertingRow(Row):
    """The base of alerting's rows."""

    __abstract__ = True
    metadata = schema_metadata("alerting")


class AlertRow(TenantOwned, AlertingRow):
    """An alert."""

    __tablename__ = "alerts"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    dedup_key: Mapped[str]
    title: Mapped[str]
    message: Mapped[str]
    severity: Mapped[str]
    state: Mapped[str]
    source_kind: Mapped[str]
    source_id: Mapped[UUID]
    device_id: Mapped[UUID | None]
    metric: Mapped[str | None]
    value: Mapped[float | None]
    condition: Mapped[str | None]
    count: Mapped[int]
    opened_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[UUID | None]
    resolved_at: Mapped[datetime | None]
    resolved_by: Mapped[UUID | None]
    resolved_how: Mapped[str | None]
    version: Mapped[int]


class FiringRow(TenantOwned, AlertingRow):
    """What is known of a firing."""

    __tablename__ = "firings"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    alert_id: Mapped[UUID | None]
    triggered_at: Mapped[datetime | None]
    cleared_at: Mapped[datetime | None]
    recurs: Mapped[bool]


class HistoryRow(TenantOwned, AlertingRow):
    """One line of an alert's history."""

    __tablename__ = "alert_history"

    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    alert_id: Mapped[UUID]
    what: Mapped[str]
    at: Mapped[datetime]
    state: Mapped[str]
    severity: Mapped[str]
    by: Mapped[UUID | None]
    detail: Mapped[str]


class NoteRow(TenantOwned, AlertingRow):
    """A note to an alert."""

    __tablename__ = "alert_notes"

    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    id: Mapped[UUID]
    alert_id: Mapped[UUID]
    at: Mapped[datetime]
    by: Mapped[UUID]
    text: Mapped[str]


class ChannelRow(TenantOwned, AlertingRow):
    """A channel; `secret` signs what a webhook is sent."""

    __tablename__ = "channels"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    config: Mapped[dict[str, str]] = mapped_column(JSONB)
    secret: Mapped[str | None]
    enabled: Mapped[bool]
    disabled_reason: Mapped[str]
    min_severity: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class NotificationRow(TenantOwned, AlertingRow):
    """A notice on its way to a channel."""

    __tablename__ = "notifications"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    alert_id: Mapped[UUID]
    channel_id: Mapped[UUID]
    channel_name: Mapped[str]
    channel_kind: Mapped[str]
    kind: Mapped[str]
    sequence: Mapped[int]
    status: Mapped[str]
    attempts: Mapped[int]
    due_at: Mapped[datetime]
    lease_token: Mapped[UUID | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    reason: Mapped[str]
    receipt: Mapped[str]


class NameRow(TenantOwned, AlertingRow):
    """What a device or a user is called."""

    __tablename__ = "names"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str | None]
    changed_at: Mapped[datetime]
    gone: Mapped[bool]
