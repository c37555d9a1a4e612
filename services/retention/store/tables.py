"""The tables of retention, as its migrations made them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class RetentionRow(Row):
    """The base of the rows of retention."""

    __abstract__ = True
    metadata = schema_metadata("retention")


class PolicyRow(TenantOwned, RetentionRow):
    """A policy."""

    __tablename__ = "policies"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    data_type: Mapped[str]
    keep_days: Mapped[int]
    version: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
