"""What the tables of every service share."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, MetaData, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Row(DeclarativeBase):
    """The base of all table classes. A service derives its own, with its schema in the metadata."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as declared
        datetime: DateTime(timezone=True),
        UUID: Uuid(),
        dict: JSONB,
        list: JSONB,
    }


def schema_metadata(schema: str) -> MetaData:
    """Return the metadata for a service's own tables."""
    return MetaData(schema=schema)


class TenantOwned:
    """A row that belongs to a tenant. Its policy and the repositories' predicates both use it."""

    tenant_id: Mapped[UUID] = mapped_column()
