"""Tenancy's tables, as its migrations made them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from libs.common.db.tables import Row, TenantOwned, schema_metadata


class TenancyRow(Row):
    """The base of tenancy's rows."""

    __abstract__ = True
    metadata = schema_metadata("tenancy")


class TenantRow(TenancyRow):
    """A tenant, which belongs to itself."""

    __tablename__ = "tenants"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class UserRow(TenancyRow):
    """What a tenant may read of the users who are its members. Never written from here."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str]


class MembershipRow(TenancyRow):
    """A user's place in a tenant."""

    __tablename__ = "memberships"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    status: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class InvitationRow(TenantOwned, TenancyRow):
    """What is kept of an invitation that has not been accepted yet."""

    __tablename__ = "invitations"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime]


class RoleRow(TenantOwned, TenancyRow):
    """A role that a tenant made for itself."""

    __tablename__ = "roles"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    permissions: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class RemovedTenantRow(TenancyRow):
    """A tenant that was removed, until that was said for the last time."""

    __tablename__ = "removed_tenants"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str]
    removed_at: Mapped[datetime]
