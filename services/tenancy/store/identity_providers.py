"""A tenant's identity providers, who is on the way to one, and who is whom there."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

import msgspec
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from libs.common.errors import Conflict, NotFound
from services.tenancy.domain.identity_provider import (
    IdentityProvider,
    Kind,
    LdapSettings,
    Offered,
    OidcSettings,
    SamlSettings,
)
from services.tenancy.store.tables import IdentityProviderRow, IdentityRow, SignOnRow

_SETTINGS = {Kind.OIDC: OidcSettings, Kind.SAML: SamlSettings, Kind.LDAP: LdapSettings}


class IdentityProviders:
    """The identity providers of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, provider: IdentityProvider, secret: bytes | None) -> None:
        """Keep a new one, and its sealed secret. Raises Conflict if there is one of that name."""
        row = IdentityProviderRow(
            tenant_id=self._tenant_id,
            id=provider.id,
            kind=provider.kind,
            secret=secret,
            created_at=provider.created_at,
        )
        _fill(row, provider)
        self._session.add(row)
        await self._flush(provider)

    async def count(self) -> int:
        """Return how many there are."""
        query = select(func.count()).where(IdentityProviderRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def all(self) -> Sequence[IdentityProvider]:
        """Return all, by name."""
        rows = await self._session.scalars(
            select(IdentityProviderRow)
            .where(IdentityProviderRow.tenant_id == self._tenant_id)
            .order_by(IdentityProviderRow.name)
        )
        return [_to_provider(row) for row in rows]

    async def get(self, provider_id: UUID) -> IdentityProvider:
        """Return one. Raises NotFound."""
        return _to_provider(await self._row(provider_id))

    async def sealed_secret(self, provider_id: UUID) -> bytes | None:
        """Return its secret, sealed; None if it has none. Raises NotFound."""
        return (await self._row(provider_id)).secret

    async def update(self, provider: IdentityProvider) -> None:
        """Save what may change. Raises NotFound, and Conflict if the name is another's."""
        _fill(await self._row(provider.id), provider)
        await self._flush(provider)

    async def set_secret(self, provider_id: UUID, secret: bytes | None) -> None:
        """Keep another secret, sealed, or none. Raises NotFound."""
        (await self._row(provider_id)).secret = secret

    async def remove(self, provider_id: UUID) -> None:
        """Forget one, and who is whom there. Raises NotFound."""
        await self._session.delete(await self._row(provider_id))

    async def _flush(self, provider: IdentityProvider) -> None:
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "identity_providers_tenant_id_name_key" in str(error.orig):
                raise Conflict(f"there is an identity provider {provider.name!r}") from error
            raise

    async def _row(self, provider_id: UUID) -> IdentityProviderRow:
        row = await self._session.scalar(
            select(IdentityProviderRow).where(
                IdentityProviderRow.tenant_id == self._tenant_id,
                IdentityProviderRow.id == provider_id,
            )
        )
        if row is None:
            raise NotFound(f"no identity provider {provider_id}")
        return row


class SignOns:
    """Browsers on their way, of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def keep(
        self, state_hash: bytes, provider_id: UUID, attempt: bytes, expires_at: datetime
    ) -> None:
        """Keep what belongs to a browser's way, sealed."""
        self._session.add(
            SignOnRow(
                tenant_id=self._tenant_id,
                state_hash=state_hash,
                provider_id=provider_id,
                attempt=attempt,
                expires_at=expires_at,
            )
        )

    async def take(self, state_hash: bytes, now: datetime) -> tuple[UUID, bytes] | None:
        """Use one up: return its provider and what was kept; None if unknown, used or too old."""
        taken = (
            await self._session.execute(
                delete(SignOnRow)
                .where(
                    SignOnRow.tenant_id == self._tenant_id,
                    SignOnRow.state_hash == state_hash,
                    SignOnRow.expires_at > now,
                )
                .returning(SignOnRow.provider_id, SignOnRow.attempt)
            )
        ).one_or_none()
        return None if taken is None else (taken.provider_id, taken.attempt)


class Identities:
    """Who is whom at the identity providers of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def user_of(self, provider_id: UUID, subject: str) -> UUID | None:
        """Return the user whom a provider knows by this; None if they never came in by it."""
        user_id: UUID | None = await self._session.scalar(
            select(IdentityRow.user_id).where(
                IdentityRow.tenant_id == self._tenant_id,
                IdentityRow.provider_id == provider_id,
                IdentityRow.subject == subject,
            )
        )
        return user_id

    async def add(self, provider_id: UUID, subject: str, user_id: UUID, at: datetime) -> None:
        """Remember by what a provider knows a member."""
        self._session.add(
            IdentityRow(
                tenant_id=self._tenant_id,
                provider_id=provider_id,
                subject=subject,
                user_id=user_id,
                created_at=at,
            )
        )


class OfferedProviders:
    """What is looked up before a tenant is known, by role `tenancy_engine`."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def of(self, slug: str) -> list[Offered]:
        """Return where one may log in to the tenant of that name; nothing if there is none."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text("SELECT * FROM tenancy.providers_of_slug(:slug)"), {"slug": slug}
            )
            return [Offered(row.tenant_id, row.id, row.name, Kind(row.kind)) for row in rows]

    async def forget_expired(self, now: datetime) -> None:
        """Remove what belongs to browsers that never came back."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text("DELETE FROM tenancy.sign_ons WHERE expires_at <= :now"), {"now": now}
            )


def _fill(row: IdentityProviderRow, provider: IdentityProvider) -> None:
    row.name = provider.name
    row.settings = msgspec.to_builtins(asdict(provider.settings))
    row.domains = list(provider.domains)
    row.roles_of_group = {group: list(roles) for group, roles in provider.roles_of_group.items()}
    row.default_roles = list(provider.default_roles)
    row.is_enabled = provider.is_enabled
    row.updated_at = provider.updated_at
    row.version = provider.version


def _to_provider(row: IdentityProviderRow) -> IdentityProvider:
    kind = Kind(row.kind)
    return IdentityProvider(
        id=row.id,
        name=row.name,
        kind=kind,
        settings=msgspec.convert(row.settings, _SETTINGS[kind]),
        domains=tuple(row.domains),
        roles_of_group={group: tuple(roles) for group, roles in row.roles_of_group.items()},
        default_roles=tuple(row.default_roles),
        is_enabled=row.is_enabled,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
