"""Tenancy's tables, as its migrations made them."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, LargeBinary, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
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
    plan: Mapped[str]
    plan_version: Mapped[int]
    own_quotas: Mapped[dict[str, Any]] = mapped_column(JSONB)
    status_reason: Mapped[str]
    erased_from: Mapped[datetime | None]


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
    device_groups: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))


class InvitationRow(TenantOwned, TenancyRow):
    """What is kept of an invitation that has not been accepted yet."""

    __tablename__ = "invitations"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    mailed_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime]


class RegistrationPolicyRow(TenancyRow):
    """Whom a tenant lets register themselves."""

    __tablename__ = "registration_policies"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    admits: Mapped[str]
    domains: Mapped[list[str]] = mapped_column(ARRAY(Text))
    role: Mapped[str]
    updated_at: Mapped[datetime]


class RegistrationRow(TenantOwned, TenancyRow):
    """Who registered, until they confirm the address."""

    __tablename__ = "registrations"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str]
    name: Mapped[str]
    password_hash: Mapped[str]
    token_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime]


class MailRow(TenantOwned, TenancyRow):
    """A mail that is to be sent, or was given up."""

    __tablename__ = "mails"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    purpose: Mapped[str]
    email: Mapped[str]
    about: Mapped[UUID | None]
    status: Mapped[str]
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    attempts: Mapped[int]
    reason: Mapped[str | None]


class RoleRow(TenantOwned, TenancyRow):
    """A role that a tenant made for itself."""

    __tablename__ = "roles"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    permissions: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class ApiKeyRow(TenantOwned, TenancyRow):
    """A key that a program shows."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    handle: Mapped[str]
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    previous_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    overlap_until: Mapped[datetime | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    allowed_networks: Mapped[list[str]] = mapped_column(ARRAY(Text))
    device_groups: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))
    expires_at: Mapped[datetime | None]
    created_by: Mapped[UUID]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class ApiKeyUseRow(TenantOwned, TenancyRow):
    """When a key was used last, and from where."""

    __tablename__ = "api_key_uses"

    key_id: Mapped[UUID] = mapped_column(primary_key=True)
    used_at: Mapped[datetime]
    address: Mapped[str]


class RemovedTenantRow(TenancyRow):
    """A tenant that was removed, until that was said for the last time."""

    __tablename__ = "removed_tenants"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str]
    removed_at: Mapped[datetime]


class PlanRow(TenancyRow):
    """A plan, of no tenant."""

    __tablename__ = "plans"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    quotas: Mapped[dict[str, Any]] = mapped_column(JSONB)
    is_built_in: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class BrandingRow(TenancyRow):
    """How a tenant looks."""

    __tablename__ = "brandings"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    product_name: Mapped[str | None]
    colour_on_light: Mapped[str | None]
    colour_on_dark: Mapped[str | None]
    sender_name: Mapped[str | None]
    email_footer: Mapped[str | None]
    updated_at: Mapped[datetime]


class UsageDayRow(TenancyRow):
    """How much of something a tenant used on a day."""

    __tablename__ = "usage_days"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    resource: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class UsageStandingRow(TenancyRow):
    """Where a tenant stands, and what was said of it."""

    __tablename__ = "usage_standing"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    resource: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date]
    amount: Mapped[int] = mapped_column(BigInteger)
    level: Mapped[str]
    worst: Mapped[str]
    worst_on: Mapped[date]


class IdentityProviderRow(TenantOwned, TenancyRow):
    """Where a tenant's people log in."""

    __tablename__ = "identity_providers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    settings: Mapped[dict[str, Any]] = mapped_column(JSONB)
    secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    domains: Mapped[list[str]] = mapped_column(ARRAY(Text))
    roles_of_group: Mapped[dict[str, list[str]]] = mapped_column(JSONB)
    default_roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    is_enabled: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]


class SignOnRow(TenantOwned, TenancyRow):
    """A browser on its way to an identity provider and back."""

    __tablename__ = "sign_ons"

    state_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    provider_id: Mapped[UUID]
    attempt: Mapped[bytes] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime]


class IdentityRow(TenantOwned, TenancyRow):
    """Who somebody is at an identity provider."""

    __tablename__ = "identities"

    provider_id: Mapped[UUID] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    created_at: Mapped[datetime]


class OneTimeCodesRow(TenancyRow):
    """A user's authenticator app."""

    __tablename__ = "one_time_codes"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID]
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    confirmed_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    last_step: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int]
    failed_at: Mapped[datetime | None]


class RecoveryCodeRow(TenancyRow):
    """What is kept of a recovery code that was not used yet."""

    __tablename__ = "recovery_codes"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    code_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)


class PasskeyRow(TenancyRow):
    """A user's passkey."""

    __tablename__ = "passkeys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    credential_id: Mapped[bytes] = mapped_column(LargeBinary)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    sign_count: Mapped[int] = mapped_column(BigInteger)
    transports: Mapped[list[str]] = mapped_column(ARRAY(Text))
    name: Mapped[str]
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]


class LoginPolicyRow(TenancyRow):
    """What a tenant asks of those who enter it."""

    __tablename__ = "login_policies"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    require_second_factor: Mapped[bool]
    updated_at: Mapped[datetime]
