"""The tables of rules, as its migrations made them."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class RulesRow(Row):
    """The base of the rows of rules."""

    __abstract__ = True
    metadata = schema_metadata("rules")


class RuleRow(TenantOwned, RulesRow):
    """A rule."""

    __tablename__ = "rules"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    type: Mapped[str]
    device_id: Mapped[UUID]
    metric: Mapped[str]
    condition: Mapped[dict[str, object]] = mapped_column(JSONB)
    hold: Mapped[timedelta]
    severity: Mapped[str]
    enabled: Mapped[bool]
    version: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class RuleStateRow(TenantOwned, RulesRow):
    """How far a rule has got with a device."""

    __tablename__ = "rule_state"

    rule_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    since: Mapped[datetime | None]
    fired_at: Mapped[datetime | None]
    last_at: Mapped[datetime | None]
    last_ts: Mapped[datetime | None]
